"""The epoch's numbers are means over its images, however they were summed up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from udskd.training.engine.meter import Meter, means

CPU = torch.device("cpu")
SIZES = (8, 8, 5)


def terms(size: int, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    loss, weight = torch.rand((), requires_grad=True), torch.rand(size)
    return {"loss": loss, "ce_a": 2 * loss, "weight": weight, "entropy": 1 - weight}


def filled(seeds: tuple[int, ...] = (0, 1, 2)) -> Meter:
    meter = Meter()
    for seed in seeds:
        meter.add(terms(SIZES[seed], seed), SIZES[seed])
    return meter


def test_the_meter_means_over_images() -> None:
    values = means([filled().state()])
    batches = [terms(size, seed) for seed, size in enumerate(SIZES)]
    loss = sum(float(b["loss"]) * size for b, size in zip(batches, SIZES, strict=True)) / sum(SIZES)
    assert (values["loss"], values["components"]) == (pytest.approx(loss), {"ce_a": pytest.approx(2 * loss)})
    weights = torch.cat([b["weight"] for b in batches]).numpy()
    p10, p90 = np.percentile(weights, [10, 90])
    assert values["weight"] == pytest.approx({"mean": weights.mean(), "p10": p10, "p90": p90}, abs=1e-6)
    assert values["entropy"] == pytest.approx(1 - weights.mean(), abs=1e-6)


def test_a_meter_without_a_teacher_has_no_weights() -> None:
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0)}, 3)
    assert means([meter.state()]) == {"loss": 1.0, "components": {}}


def test_a_meter_that_was_saved_and_restored_goes_on_to_the_last_bit() -> None:
    meter = Meter.from_state(filled((0, 1)).state(), CPU)
    meter.add(terms(SIZES[2], 2), SIZES[2])
    assert means([meter.state()]) == means([filled().state()])


@pytest.mark.parametrize("split", [((0,), (1, 2)), ((0, 1, 2), ()), ((0,), (1,), (2,))])
def test_the_meters_of_several_processes_make_one(split: tuple[tuple[int, ...], ...]) -> None:
    values, whole = means([filled(part).state() for part in split]), means([filled().state()])
    assert values["loss"] == pytest.approx(whole["loss"], rel=1e-14)
    assert values["weight"] == pytest.approx(whole["weight"])
    joined = Meter.merged([Meter.from_state(filled(part).state(), CPU) for part in split])
    assert means([joined.state()])["loss"] == pytest.approx(whole["loss"], rel=1e-14)


def test_what_is_taken_in_may_be_overwritten_afterwards() -> None:
    meter, batch = Meter(), terms(8, 0)
    expected = means([filled((0,)).state()])
    meter.add(batch, 8)
    for value in batch.values():
        value.detach().fill_(torch.nan)
    assert means([meter.state()]) == expected
