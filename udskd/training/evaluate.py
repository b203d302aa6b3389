"""Evaluation of several networks in one pass over the images, so that each image is decoded once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from udskd.config import DataConfig
from udskd.data import EvalLoader, to_device
from udskd.training.metrics import Metrics
from udskd.training.progress import Display
from udskd.training.runtime import Runtime
from udskd.training.signals import StopRequest

Floats = npt.NDArray[np.float64]


@torch.inference_mode()
def evaluate(
    networks: Mapping[str, nn.Module],
    loader: EvalLoader,
    data: DataConfig,
    runtime: Runtime,
    display: Display,
    stop: StopRequest,
) -> dict[str, dict[str, float]]:
    """Metrics of each network by its name; where the set knows its true posterior, also how well the network knows it.

    Each network is put into eval mode and back into the mode it was in. Raises DataError for an unreadable image.
    """
    classes = len(loader.images.classes)
    metrics = {name: Metrics(runtime.device) for name in networks}
    posterior = getattr(loader.images, "posterior", None)
    kept: dict[str, list[Tensor]] = {name: [] for name in networks}
    modes = {name: module.training for name, module in networks.items()}
    try:
        for module in networks.values():
            module.eval()
        with display.steps("evaluate", len(loader)) as advance:
            for batch in loader:
                images, labels = to_device(batch, data, runtime.device, classes, runtime.memory_format)
                for name, module in networks.items():
                    with runtime.autocast():
                        logits = module(images)
                    metrics[name].update(logits, labels)
                    if posterior is not None:
                        kept[name].append(logits.double())
                advance()
                stop.poll()
    finally:
        for name, module in networks.items():
            module.train(modes[name])
    results: dict[str, dict[str, float]] = {name: m.result() for name, m in metrics.items()}
    if posterior is not None:
        for name, logits_of in kept.items():
            log_p = torch.log_softmax(torch.cat(logits_of), -1).cpu().numpy()
            results[name] |= against_posterior(log_p, np.asarray(posterior, dtype=np.float64))
    return results


def against_posterior(log_p: Floats, posterior: Floats) -> dict[str, float]:
    """How well predictions log_p [N, C] know the true posterior [N, C].

    entropy_corr: Spearman correlation of the predictions' entropies with the true ones. posterior_kl: mean KL(true ‖
    prediction), nats.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        log_true = np.where(posterior > 0, np.log(posterior), 0.0)
    true_entropy = -(posterior * log_true).sum(-1)
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    kl = (posterior * (log_true - log_p)).sum(-1)
    return {"entropy_corr": spearman(entropy, true_entropy), "posterior_kl": float(kl.mean())}


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation of two samples [N], ties ranked by their mean; 0 if one of them is constant."""
    a, b = _ranks(x), _ranks(y)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(x: Floats) -> Floats:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(np.float64)
    mean_rank: Floats = (last - (counts - 1) / 2)[inverse]
    return mean_rank


def brief(metrics: Mapping[str, Any]) -> str:
    """The line a person reads: top-1 and calibration."""
    return f"top-1 {metrics['top1']:.2f} %  nll {metrics['nll']:.3f}  ece {metrics['ece']:.3f}"
