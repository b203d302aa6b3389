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
from udskd.results.statistics import Floats
from udskd.training.evaluation.metrics import COLUMNS, Metrics, against_posterior, summarise
from udskd.training.runtime.device import Runtime

Classes = npt.NDArray[np.int64]
MAX_EVALUATION_BATCH = 256
"""The largest evaluation batch. A rank evaluates whole batches, and its memory may be too small for the batch of a
training step, which all ranks share."""


@torch.inference_mode()
def evaluate(
    networks: Mapping[str, nn.Module],
    loader: EvalLoader,
    data: DataConfig,
    runtime: Runtime,
    display: Display,
    poll: Callable[[], Any],
) -> dict[str, dict[str, float]]:
    """Metrics of each network by name; if the images' true posterior is known, also how well the network matches it.

    The networks are in eval mode during the evaluation. The ranks share the batches; the result has the same bits for
    every number of ranks. Each rank calls poll() after each batch, all of them equally often.

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
) -> dict[str, tuple[dict[str, float], Classes]]:
    """As evaluate(), with the predicted class of every image, int64 [N], beside each network's metrics."""
    posterior = getattr(loader.images, "posterior", None)
    keep = _log_p if posterior is not None else None
    tables, log_p = _evaluate_images(networks, loader, data, runtime, display, poll, keep)
    results = {name: summarise(table) for name, table in tables.items()}
    for name, rows in log_p.items():
        results[name] |= against_posterior(rows, np.asarray(posterior, dtype=np.float64))
    return {
        name: (results[name], table[:, COLUMNS.index("predicted")].astype(np.int64)) for name, table in tables.items()
    }


@torch.inference_mode()
def predict(
    networks: Mapping[str, nn.Module],
    loader: EvalLoader,
    data: DataConfig,
    runtime: Runtime,
    display: Display,
    poll: Callable[[], Any],
) -> dict[str, npt.NDArray[np.float16]]:
    """Each network's p(class | image), float16 [N, C] in the order of the images; otherwise as evaluate()."""
    return _evaluate_images(networks, loader, data, runtime, display, poll, _half_p)[1]


def _evaluate_images(
    networks: Mapping[str, nn.Module],
    loader: EvalLoader,
    data: DataConfig,
    runtime: Runtime,
    display: Display,
    poll: Callable[[], Any],
    keep: Callable[[Tensor], Tensor] | None,
) -> tuple[dict[str, Floats], dict[str, Any]]:
    """By network: the metrics of every image, [N, COLUMNS], and keep(logits) of every image."""
    for module in networks.values():
        runtime.world.broadcast_from_rank0(module.buffers())
    modes = {name: module.training for name, module in networks.items()}
    try:
        for module in networks.values():
            module.eval()
        own = _RankEvaluation(networks, keep)
        own.run(loader, data, runtime, display, poll)
    finally:
        for name, module in networks.items():
            module.train(modes[name])
    tables, kept = (_merge(runtime.world.gather(part)) for part in own.by_batch())
    return (
        {name: np.concatenate(parts) for name, parts in tables.items()},
        {name: np.concatenate(parts) for name, parts in kept.items()},
    )


def _log_p(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.double(), -1)


def _half_p(logits: Tensor) -> Tensor:
    """On the host: the probabilities of all images may exceed the memory of a GPU."""
    return torch.softmax(logits.double(), -1).half().cpu()


ByBatch = dict[str, dict[int, Floats]]
"""By network and by number of the batch: a row for each image of the batch."""


class _RankEvaluation:
    """The evaluation of one rank's batches with all networks."""

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
            for _ in range(rounds):  # a rank with one batch less than the others must call poll() equally often
                if (batch := next(batches, None)) is not None:
                    self._sizes[batch.step] = len(batch)
                    self._evaluate_batch(
                        *normalize_batch(batch, data, runtime.device, classes, runtime.memory_format), runtime
                    )
                advance()
                poll()

    def _evaluate_batch(self, images: Tensor, labels: Tensor, runtime: Runtime) -> None:
        for name, module in self._networks.items():
            with runtime.autocast():
                logits = module(images)
            self._metrics[name].update(logits, labels)
            if self._keep is not None:
                self._kept[name].append(self._keep(logits))

    def by_batch(self) -> tuple[ByBatch, ByBatch]:
        """The metrics of every image, and what was kept of its logits."""
        tables = {name: _split(metrics.table(), self._sizes) for name, metrics in self._metrics.items()}
        kept = {name: torch.cat(parts).cpu().numpy() for name, parts in self._kept.items() if parts}
        return tables, {name: _split(rows, self._sizes) for name, rows in kept.items()}


def _split(rows: Floats, sizes: dict[int, int]) -> dict[int, Floats]:
    """Split the rows of all batches, in order, by the number of the batch."""
    ends = np.cumsum(list(sizes.values()))
    return dict(zip(sizes, np.split(rows, ends[:-1]), strict=True)) if sizes else {}


def _merge(ranks: list[ByBatch]) -> dict[str, list[Floats]]:
    """By network: the rows of the batches of all ranks, in the order of the batches."""
    names = [name for own in ranks for name in own]
    merged = {name: {k: v for own in ranks for k, v in own.get(name, {}).items()} for name in names}
    return {name: [by_number[k] for k in sorted(by_number)] for name, by_number in merged.items()}


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Top-1 and calibration as text for the console."""
    return f"top-1 {metrics['top1']:.2f} %  nll {metrics['nll']:.3f}  ece {metrics['ece']:.3f}"
