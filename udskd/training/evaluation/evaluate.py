"""Evaluation of several networks in one pass over the images, so that each image is decoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from udskd.config.schema import DataConfig
from udskd.data import EvalLoader, normalize_batch
from udskd.progress import Display
from udskd.training.evaluation.metrics import COLUMNS, Metrics, summarise
from udskd.training.runtime.device import Runtime

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
MAX_EVALUATION_BATCH = 256
"""Most images in a batch of evaluation: all of a step's may be too many for one process, and too few for all."""


@torch.inference_mode()
def evaluate(
    networks: Mapping[str, nn.Module],
    loader: EvalLoader,
    data: DataConfig,
    runtime: Runtime,
    display: Display,
    poll: Callable[[], Any],
) -> dict[str, dict[str, float]]:
    """Metrics of each network by its name; where the set knows its true posterior, also how well the network knows it.

    Each network is put into eval mode and back into the mode it was in. The processes of a run share the batches, and
    the result is that of one process, to the last bit. poll() is called after each batch, equally often in all of them.

    Raises DataError for an unreadable image, and what poll() raises.
    """
    results = evaluate_and_classify(networks, loader, data, runtime, display, poll)
    return {name: metrics for name, (metrics, _) in results.items()}


@torch.inference_mode()
def evaluate_and_classify(
    networks: Mapping[str, nn.Module],
    loader: EvalLoader,
    data: DataConfig,
    runtime: Runtime,
    display: Display,
    poll: Callable[[], Any],
) -> dict[str, tuple[dict[str, float], Numbers]]:
    """As evaluate(), and with each network's metrics its most probable class of every image, int64 [N]."""
    posterior = getattr(loader.images, "posterior", None)
    keep = _log_p if posterior is not None else None
    tables, log_p = _answers(networks, loader, data, runtime, display, poll, keep)
    results = {name: summarise(table) for name, table in tables.items()}
    for name, rows in log_p.items():
        results[name] |= against_posterior(rows, np.asarray(posterior, dtype=np.float64))
    return {name: (results[name], table[:, COLUMNS.index("answer")].astype(np.int64)) for name, table in tables.items()}


@torch.inference_mode()
def predict(
    networks: Mapping[str, nn.Module],
    loader: EvalLoader,
    data: DataConfig,
    runtime: Runtime,
    display: Display,
    poll: Callable[[], Any],
) -> dict[str, npt.NDArray[np.float16]]:
    """Each network's p(class | image), [N, C] in the order of the images; all else as evaluate()."""
    return _answers(networks, loader, data, runtime, display, poll, _half_p)[1]


def _answers(
    networks: Mapping[str, nn.Module],
    loader: EvalLoader,
    data: DataConfig,
    runtime: Runtime,
    display: Display,
    poll: Callable[[], Any],
    keep: Callable[[Tensor], Tensor] | None,
) -> tuple[dict[str, Floats], dict[str, Any]]:
    """Of each network, the table of metrics of every image, and what `keep` makes of its logits."""
    for module in networks.values():
        runtime.world.broadcast_from_rank0(module.buffers())
    modes = {name: module.training for name, module in networks.items()}
    try:
        for module in networks.values():
            module.eval()
        mine = _Pass(networks, keep)
        mine.run(loader, data, runtime, display, poll)
    finally:
        for name, module in networks.items():
            module.train(modes[name])
    tables, kept = (_in_order(runtime.world.gather(part)) for part in mine.parts())
    return (
        {name: np.concatenate(parts) for name, parts in tables.items()},
        {name: np.concatenate(parts) for name, parts in kept.items()},
    )


def _log_p(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.double(), -1)


def _half_p(logits: Tensor) -> Tensor:
    """On the host, where there is more room for all images' than on a GPU."""
    return torch.softmax(logits.double(), -1).half().cpu()


Parts = dict[str, dict[int, Floats]]  # of each network: what its batches gave, by their numbers


class _Pass:
    """One process's batches through all networks, so that each image is decoded once."""

    def __init__(self, networks: Mapping[str, nn.Module], keep: Callable[[Tensor], Tensor] | None) -> None:
        self._networks, self._keep = networks, keep
        self._metrics = {name: Metrics() for name in networks}
        self._kept: dict[str, list[Tensor]] = {name: [] for name in networks}
        self._sizes: dict[int, int] = {}

    def run(
        self, loader: EvalLoader, data: DataConfig, runtime: Runtime, display: Display, poll: Callable[[], Any]
    ) -> None:
        classes, rounds = len(loader.images.classes), -(-loader.batches // runtime.world.ranks)
        with display.steps("evaluate", rounds) as advance, closing(runtime.prefetch(loader)) as batches:
            for _ in range(rounds):  # also who has a batch less than the others asks as often whether to stop
                if (batch := next(batches, None)) is not None:
                    self._sizes[batch.step] = len(batch)
                    self._take(*normalize_batch(batch, data, runtime.device, classes, runtime.memory_format), runtime)
                advance()
                poll()

    def _take(self, images: Tensor, labels: Tensor, runtime: Runtime) -> None:
        for name, module in self._networks.items():
            with runtime.autocast():
                logits = module(images)
            self._metrics[name].update(logits, labels)
            if self._keep is not None:
                self._kept[name].append(self._keep(logits))

    def parts(self) -> tuple[Parts, Parts]:
        """The metrics' table of each network and batch, and what was kept of it."""
        tables = {name: _split(metrics.table(), self._sizes) for name, metrics in self._metrics.items()}
        kept = {name: torch.cat(parts).cpu().numpy() for name, parts in self._kept.items() if parts}
        return tables, {name: _split(rows, self._sizes) for name, rows in kept.items()}


def _split(rows: Floats, sizes: dict[int, int]) -> dict[int, Floats]:
    """The rows of each batch by its number."""
    ends = np.cumsum(list(sizes.values()))
    return dict(zip(sizes, np.split(rows, ends[:-1]), strict=True)) if sizes else {}


def _in_order(everybodys: list[Parts]) -> dict[str, list[Floats]]:
    """What all processes have of each network, in the order of the batches."""
    names = [name for parts in everybodys for name in parts]
    merged = {name: {k: v for parts in everybodys for k, v in parts.get(name, {}).items()} for name in names}
    return {name: [by_number[k] for k in sorted(by_number)] for name, by_number in merged.items()}


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


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """The line a person reads: top-1 and calibration."""
    return f"top-1 {metrics['top1']:.2f} %  nll {metrics['nll']:.3f}  ece {metrics['ece']:.3f}"
