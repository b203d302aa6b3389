"""Metrics agree with their definitions, written out in NumPy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from udskd.results.statistics import spearman
from udskd.training.evaluation.metrics import BINS, Metrics, against_posterior, bin_of, summarise


def compute(logits: torch.Tensor, labels: torch.Tensor, batch: int = 7) -> dict[str, float]:
    metrics = Metrics()
    for x, y in zip(logits.split(batch), labels.split(batch), strict=True):
        metrics.update(x, y)
    return summarise(metrics.table())


def by_definition(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> dict[str, float]:
    n, classes = logits.shape
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    order = (-p).argsort(1, kind="stable")
    confidence, correct = p.max(1), order[:, 0] == labels
    edges = np.linspace(0, 1, BINS + 1)
    counts, _ = np.histogram(confidence, edges)
    hits, _ = np.histogram(confidence, edges, weights=correct.astype(float))
    sums, _ = np.histogram(confidence, edges, weights=confidence)
    filled = counts > 0
    ece = (counts / n)[filled] @ np.abs(hits[filled] / counts[filled] - sums[filled] / counts[filled])
    entropies = -(p * np.log(p)).sum(1)
    groups = {"entropy": entropies, "entropy_right": entropies[correct], "entropy_wrong": entropies[~correct]}
    return {
        **{name: values.mean() for name, values in groups.items() if values.size},
        "top1": 100 * correct.mean(),
        "top5": 100 * (order[:, :5] == labels[:, None]).any(1).mean(),
        "nll": -np.log(p[np.arange(n), labels]).mean(),
        "ece": float(ece),
        "brier": ((p - np.eye(classes)[labels]) ** 2).sum(1).mean(),
    }


@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 60), classes=st.integers(2, 12), scale=st.sampled_from([0.1, 1.0, 5.0])
)
def test_metrics_are_their_definitions_however_the_images_are_batched(
    seed: int, n: int, classes: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = scale * rng.standard_normal((n, classes)), rng.integers(0, classes, n)
    got = compute(torch.from_numpy(logits), torch.from_numpy(labels), batch=1 + seed % 9)
    assert got == pytest.approx(by_definition(logits, labels), abs=1e-9)


def test_confidence_one_falls_into_the_last_bin() -> None:
    assert bin_of(np.array([1.0, 0.999, 14.5 / 15, 0.0])).tolist() == [BINS - 1, BINS - 1, BINS - 1, 0]
    assert compute(torch.tensor([[900.0, 0.0]]), torch.tensor([1]))["ece"] == 1.0


def test_top5_of_fewer_than_five_classes_is_everything() -> None:
    assert compute(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))["top5"] == 100.0


def test_a_network_that_gives_nan_is_not_correct() -> None:
    result = compute(torch.full((4, 3), math.nan), torch.tensor([1, 2, 1, 2]))
    assert result["top1"] < 100
    assert math.isnan(result["nll"])


def test_the_batches_of_the_same_images_do_not_change_a_bit() -> None:
    logits, labels = torch.randn(50, 8), torch.randint(0, 8, (50,))
    assert compute(logits, labels, batch=50) == compute(logits, labels, batch=7)


def test_bfloat16_logits_are_measured_in_double() -> None:
    logits, labels = torch.randn(50, 8).bfloat16(), torch.randint(0, 8, (50,))
    assert compute(logits, labels) == compute(logits.double(), labels)


def test_no_images_give_nan_not_zero() -> None:
    assert all(math.isnan(v) for v in summarise(Metrics().table()).values())


def test_spearman_depends_on_the_order_only_and_ties_share_their_mean_rank() -> None:
    x = np.array([0.1, 0.2, 0.3, 0.9])
    assert spearman(x, np.exp(10 * x)) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(math.sqrt(3) / 2)
    assert spearman(x, np.ones(4)) == 0.0


def test_the_true_posterior_itself_has_no_divergence_and_full_correlation() -> None:
    rng = np.random.default_rng(0)
    posterior = rng.dirichlet(np.full(5, 0.3), size=40)
    result = against_posterior(np.log(posterior), posterior)
    assert result["posterior_kl"] == pytest.approx(0, abs=1e-12)
    assert result["entropy_corr"] == pytest.approx(1)


def test_the_divergence_is_from_the_truth_to_the_prediction() -> None:
    posterior, prediction = np.array([[1.0, 0.0]]), np.array([[0.25, 0.75]])
    assert against_posterior(np.log(prediction), posterior)["posterior_kl"] == pytest.approx(math.log(4))
