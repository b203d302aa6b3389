"""Evaluation of several networks in one pass over the images, so that each image is decoded once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Evaluation(NamedTuple):
    """The result of one network."""

    metrics: dict[str, float]
    """Metrics by name. If the true posterior is known, also how well the network matches it."""
    predicted: Classes
    """The predicted class of every image, int64 [N]."""


@dataclass(frozen=True)
class Evaluator:
    """Evaluates networks on the images of a loader.

    The networks are in eval mode during the evaluation. The ranks share the batches; the results have the same bits for
    every number of ranks. All ranks must call a method together, and each calls poll() after each batch, all of them
    equally often. The methods raise DataError for an unreadable image, and what poll() raises.
    """

    loader: EvalLoader
    data: DataConfig
    runtime: Runtime
    display: Display
    poll: Callable[[], Any]

    @torch.inference_mode()
    def evaluate(self, networks: Mapping[str, nn.Module]) -> dict[str, Evaluation]:
        """The result of each network by name."""
        posterior = getattr(self.loader.images, "posterior", None)
        tables, log_p = self._run(networks, None if posterior is None else _log_p)
        metrics = {name: summarise(table) for name, table in tables.items()}
        for name, rows in log_p.items():
            metrics[name] |= against_posterior(rows, np.asarray(posterior, dtype=np.float64))
        predicted = COLUMNS.index("predicted")
        return {name: Evaluation(metrics[name], table[:, predicted].astype(np.int64)) for name, table in tables.items()}

    @torch.inference_mode()
    def predict(self, networks: Mapping[str, nn.Module]) -> dict[str, npt.NDArray[np.float16]]:
        """Each network's p(class | image), float16 [N, C] in the order of the images."""
        return self._run(networks, _half_p)[1]

    def _run(
        self, networks: Mapping[str, nn.Module], keep: Callable[[Tensor], Tensor] | None
    ) -> tuple[dict[str, Floats], dict[str, Any]]:
        """By network: the metrics of every image, [N, COLUMNS], and keep(logits) of every image."""
        world = self.runtime.world
        for module in networks.values():
            world.broadcast_from_rank0(module.buffers())
        own = _RankResults(networks, keep)
        with _eval_mode(networks.values()), closing(self._batches()) as batches:
            for images, labels, number in batches:
                own.add(images, labels, number, self.runtime)
        tables, kept = (_merge(world.gather(part)) for part in own.by_batch())
        return (
            {name: np.concatenate(parts) for name, parts in tables.items()},
            {name: np.concatenate(parts) for name, parts in kept.items()},
        )

    def _batches(self) -> Generator[tuple[Tensor, Tensor, int]]:
        """Normalised images, labels and number of each of this rank's batches."""
        loader, runtime = self.loader, self.runtime
        classes, rounds = len(loader.images.classes), -(-loader.batches // runtime.world.ranks)
        with self.display.steps("evaluate", rounds) as advance, closing(runtime.prefetch(loader)) as batches:
            for _ in range(rounds):  # a rank with one batch less than the others must call poll() equally often
                if (batch := next(batches, None)) is not None:
                    device, memory_format = runtime.device, runtime.memory_format
                    yield *normalize_batch(batch, self.data, device, classes, memory_format), batch.step
                advance()
                self.poll()


@contextmanager
def _eval_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put modules into eval mode, and afterwards back into the mode that each was in."""
    modes = [(module, module.training) for module in modules]
    try:
        for module, _ in modes:
            module.eval()
        yield
    finally:
        for module, training in modes:
            module.train(training)


def _log_p(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.double(), -1)


def _half_p(logits: Tensor) -> Tensor:
    """On the host: the probabilities of all images may exceed the memory of a GPU."""
    return torch.softmax(logits.double(), -1).half().cpu()


ByBatch = dict[str, dict[int, Floats]]
"""By network and by number of the batch: a row for each image of the batch."""


class _RankResults:
    """The metrics of one rank's batches for all networks, and what is kept of their logits."""

    def __init__(self, networks: Mapping[str, nn.Module], keep: Callable[[Tensor], Tensor] | None) -> None:
        self._networks, self._keep = networks, keep
        self._metrics = {name: Metrics() for name in networks}
        self._kept: dict[str, list[Tensor]] = {name: [] for name in networks}
        self._sizes: dict[int, int] = {}

    def add(self, images: Tensor, labels: Tensor, number: int, runtime: Runtime) -> None:
        """Evaluate all networks on batch `number`, so that each image is decoded once."""
        self._sizes[number] = len(images)
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
