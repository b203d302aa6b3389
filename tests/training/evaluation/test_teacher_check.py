"""The check of the teacher's predictions reports faulty teachers, and does not report weak ones."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.training.conftest import write_tree
from tests.training.test_train import events
from udskd.config import schema
from udskd.config.schema import Config
from udskd.errors import CheckpointError, ConfigError
from udskd.models.checkpoints import load_weights
from udskd.training import train
from udskd.training.evaluation.teacher_check import (
    _ClassCounts,
    binomial_cdf,
    find_fault,
    is_at_chance,
    permuted_classes,
)
from udskd.training.tasks.students import StudentsTask
from udskd.training.teacher_cache.writer import cache_teacher

Classes = npt.NDArray[np.int64]


def labels_of(classes: int, each: int) -> Classes:
    return np.repeat(np.arange(classes), each)


def predictions_of(labels: Classes, classes: int, accuracy: float, seed: int = 0, alike: int = 1) -> Classes:
    """The predictions of a teacher with this accuracy; the others are random, in groups of `alike` classes if > 1."""
    rng = np.random.default_rng(seed)
    other = rng.integers(0, classes, len(labels))
    if alike > 1:
        other = labels // alike * alike + other % alike
    right = rng.random(len(labels)) < accuracy
    return np.where(right, labels, other).astype(np.int64)


def names(count: int) -> list[str]:
    return [f"c{number}" for number in range(count)]


SIZES = [(2, 100), (3, 100), (10, 100), (25, 20), (100, 50), (1000, 50)]


@pytest.mark.parametrize(("classes", "each"), SIZES)
@pytest.mark.parametrize("accuracy", [0.4, 0.6, 0.95])
@pytest.mark.parametrize("kind", ["random", "reversed", "shifted"])
def test_another_order_of_the_classes_is_seen(classes: int, each: int, accuracy: float, kind: str) -> None:
    orders = {
        "random": np.roll(np.random.default_rng(1).permutation(classes), 1),
        "reversed": np.arange(classes)[::-1],
        "shifted": (np.arange(classes) + 1) % classes,
    }
    labels, order = labels_of(classes, each), orders[kind]
    right = max(accuracy, 1.5 / classes)  # of two classes, half of the random predictions are correct too
    predicted = order[predictions_of(labels, classes, right)]
    found = find_fault(labels, predicted, names(classes))
    assert found is not None
    assert found.cause == "class_order"
    moved = permuted_classes(labels, predicted, classes)
    assert np.mean([order[c] == answer for c, answer in moved.items()]) > 0.9


@pytest.mark.parametrize(("classes", "swapped"), [(4, 2), (10, 2), (25, 2), (25, 10), (100, 10), (100, 50)])
@pytest.mark.parametrize("accuracy", [0.5, 0.9])
def test_a_part_of_the_classes_in_another_order_is_seen(classes: int, swapped: int, accuracy: float) -> None:
    labels, order = labels_of(classes, 40), np.arange(classes)
    order[:swapped] = np.roll(order[:swapped], 1)
    predicted = order[predictions_of(labels, classes, accuracy)]
    assert permuted_classes(labels, predicted, classes) == {c: order[c] for c in range(swapped)}


def test_the_classes_are_named_with_their_predictions() -> None:
    labels = labels_of(4, 20)
    predicted = np.array([1, 0, 2, 3])[labels]
    predicted[:3] = 2
    found = find_fault(labels, predicted, ["cat", "dog", "owl", "fox"])
    assert found is not None
    assert found.text == (
        'images of "dog" are mostly classified as "cat" (20 of 20), images of "cat" are mostly classified as "dog" '
        "(17 of 20); so for 2 of 4 classes"
    )


@pytest.mark.parametrize(("classes", "each"), SIZES)
@pytest.mark.parametrize("seed", range(10))
def test_a_weak_teacher_is_not_reported(classes: int, each: int, seed: int) -> None:
    labels = labels_of(classes, each)
    for times in (2, 3, 5):
        right = times / (classes - 1 + times)  # the odds of a correct prediction are `times` those of chance
        accuracy = (right - 1 / classes) / (1 - 1 / classes)  # the others are correct by chance
        assert find_fault(labels, predictions_of(labels, classes, accuracy, seed), names(classes)) is None


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("alike", [2, 4, 10])
def test_a_teacher_that_confuses_similar_classes_is_not_reported(seed: int, alike: int) -> None:
    labels = labels_of(100, 50)
    for accuracy in (0.0, 0.05, 0.2):
        assert find_fault(labels, predictions_of(labels, 100, accuracy, seed, alike), names(100)) is None


@pytest.mark.parametrize("few", [1, 2, 3])
def test_a_teacher_that_takes_some_classes_for_others_is_not_reported(few: int) -> None:
    labels = labels_of(10, 40)
    predicted = np.where(labels < 5, labels % few + 5, labels)  # five classes are never predicted
    assert find_fault(labels, predicted, names(10)) is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("classes", "each"), [(2, 8000), (3, 2000), (10, 200), (25, 40), (100, 10), (1000, 50)])
def test_predictions_at_chance_are_reported_but_not_for_their_order(classes: int, each: int, seed: int) -> None:
    labels = labels_of(classes, each)
    found = find_fault(labels, predictions_of(labels, classes, 0.0, seed), names(classes))
    assert found is not None
    assert found.cause == "chance"


@pytest.mark.parametrize("answer", [0, 9])
def test_a_constant_prediction_is_chance_for_any_class_frequencies(answer: int) -> None:
    labels = np.repeat(np.arange(10), [1000, 20, 20, 20, 20, 20, 20, 20, 20, 200])
    predicted = np.full(len(labels), answer)
    found = find_fault(labels, predicted, names(10))
    assert found is not None
    share = 100 * (labels == answer).mean()
    assert found.text == f"it classifies {share:.1f} % of 1360 validation images correctly, and chance {share:.1f} %"


def skewed(classes: int, images: int) -> Classes:
    """95 % of the images are of class 0."""
    return np.where(np.arange(images) % 20 == 0, 1 + np.arange(images) // 20 % (classes - 1), 0)


@pytest.mark.parametrize("images", [100, 300, 1000, 5000])
@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("known", [0.05, 0.1, 0.15])
def test_a_teacher_that_knows_some_images_is_not_at_chance_for_any_class_frequencies(
    classes: int, images: int, known: float
) -> None:
    rng = np.random.default_rng(classes * images)
    for labels in (np.arange(images) % classes, skewed(classes, images)):
        predictions_of_unknown_images = (labels, np.arange(classes), np.zeros(1, dtype=np.int64))
        for other in predictions_of_unknown_images:
            for _ in range(5):
                predicted = np.where(rng.random(images) < known, labels, rng.choice(other, images))
                assert not is_at_chance(labels, predicted)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("classes", "images"), [(2, 50_000), (10, 20_000), (100, 20_000)])
def test_predictions_at_chance_are_reported_where_one_class_is_frequent(classes: int, images: int, seed: int) -> None:
    labels = skewed(classes, images)
    assert is_at_chance(labels, np.random.default_rng(seed).permutation(labels))


def test_a_rare_class_that_is_found_more_often_than_by_chance_is_knowledge() -> None:
    labels, predicted = np.repeat([0, 1], [950, 50]), np.zeros(1000, dtype=np.int64)
    predicted[:40] = predicted[950:960] = 1  # 50 predictions of the rare class, 10 of them correct: 2.5 by chance
    assert not is_at_chance(labels, predicted)
    assert find_fault(labels, predicted, names(2)) is None


def test_mean_and_variance_of_the_hits_are_those_over_all_orders() -> None:
    labels, predicted = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 1, 1, 2])
    hits = [int((labels == np.array(order)).sum()) for order in itertools.permutations(predicted.tolist())]
    counts = _ClassCounts.from_classes(labels, predicted)
    assert counts.mean_hits == pytest.approx(np.mean(hits))
    assert counts.variance == pytest.approx(np.var(hits))


def test_the_hits_of_a_weak_teacher_have_the_distribution_of_simulated_ones() -> None:
    rng, labels = np.random.default_rng(0), skewed(4, 2000)
    own = [0, 0, 0, 1, 2, 3]
    above, variances = [], []
    for _ in range(4000):
        predicted = np.where(rng.random(2000) < 0.05, labels, rng.choice(own, 2000))
        counts = _ClassCounts.from_classes(labels, predicted)
        mean, variance = counts.weak_teacher(0.05)
        above.append((labels == predicted).sum() - mean)
        variances.append(variance)
    assert np.mean(above) == pytest.approx(0, abs=4 * np.std(above) / len(above) ** 0.5)
    assert np.var(above) == pytest.approx(np.mean(variances), rel=0.1)


@pytest.mark.parametrize("answer", [0, 1])
def test_labels_of_one_class_decide_nothing(answer: int) -> None:
    labels = np.zeros(5000, dtype=np.int64)
    assert not is_at_chance(labels, labels + answer)
    assert not is_at_chance(labels[:1], labels[:1])


@pytest.mark.parametrize("each", [16, 32, 64])
def test_pairs_that_are_confused_with_a_preference_are_not_another_order(each: int) -> None:
    rng, labels = np.random.default_rng(0), labels_of(20, each)
    for _ in range(50):
        right = rng.uniform(0.2, 0.8, 20)[labels]
        assert permuted_classes(labels, np.where(rng.random(len(labels)) < right, labels, labels ^ 1), 20) == {}


@pytest.mark.parametrize("classes", [3, 10, 20])
def test_two_exchanged_classes_of_a_good_teacher_are_seen_in_few_images(classes: int) -> None:
    labels = labels_of(classes, 16)
    predicted = np.where(labels < 2, 1 - labels, labels)
    predicted[[4, 21]] = [0, 1]  # 15 of 16 images of each are predicted as the other
    assert permuted_classes(labels, predicted, classes) == {0: 1, 1: 0}


@pytest.mark.parametrize(("classes", "each"), [(10, 2), (3, 3), (100, 1)])
def test_with_few_images_nothing_is_reported(classes: int, each: int) -> None:
    labels = labels_of(classes, each)
    assert not any(is_at_chance(labels, predictions_of(labels, classes, 0.0, seed)) for seed in range(20))


def test_the_order_of_the_images_does_not_matter() -> None:
    labels = np.tile([0, 1], 50)  # every second image is of the same class
    assert permuted_classes(labels, 1 - labels, 2) == {0: 1, 1: 0}


@pytest.mark.parametrize(("k", "n", "p"), [(0, 1, 0.5), (3, 10, 0.2), (10, 10, 0.2), (40, 1000, 0.05)])
def test_the_binomial_cdf_is_the_sum_of_its_terms(k: int, n: int, p: float) -> None:
    exact = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
    assert binomial_cdf(k, n, p) == pytest.approx(exact, rel=1e-9)


# --- in a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with enough validation images for the check."""
    return write_tree(tmp_path_factory.mktemp("photographs"), train=12, val=120)


@pytest.fixture(scope="module")
def good(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a trained teacher."""
    from tests.training.conftest import tiny_config

    run = tmp_path_factory.mktemp("good") / "run"
    values = {"method": "kd", "training.epochs": 1, "teacher.epochs": 15}
    summary = train(schema.with_values(tiny_config(photographs, run), values))
    assert summary["teacher"]["top1"] > 80
    return run / "teacher.safetensors"


def with_teacher(config: Config, photographs: Path, tensors: dict[str, torch.Tensor], folder: Path) -> Config:
    torch.save(tensors, folder / "t.pth")
    values = {"data.root": str(photographs), "teacher.checkpoint": str(folder / "t.pth"), "training.epochs": 1}
    return schema.with_values(config, values)


def reordered(file: Path, order: list[int]) -> dict[str, torch.Tensor]:
    tensors = load_weights(file)[0]
    return {k: t[order] if k.startswith("classifier") else t for k, t in tensors.items()}


@pytest.mark.parametrize("cached", [False, True])
def test_a_teacher_with_its_classes_in_another_order_causes_a_warning_once(
    config: Config, photographs: Path, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cached: bool
) -> None:
    config = with_teacher(config, photographs, reordered(good, [2, 0, 1]), tmp_path)
    if cached:
        cache_teacher(config, tmp_path / "cache")
        config = schema.with_values(config, {"teacher.cache": str(tmp_path / "cache")})
    train(config)
    lines = [line for line in capsys.readouterr().out.splitlines() if "warning about" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"teacher: warning about {tmp_path / 't.pth'}: images of ")
    for word in ('images of "blue" are mostly classified as "green"', "3 of 3 classes", "another order", "sorted"):
        assert word in lines[0]
    (event,) = events(Path(config.output or ""), "teacher_warning")
    assert event["cause"] == "class_order"
    assert lines[0].endswith(event["text"])


def test_the_warning_is_not_repeated_on_resume(
    config: Config,
    photographs: Path,
    good: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = with_teacher(config, photographs, reordered(good, [2, 0, 1]), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(StudentsTask, "losses", lambda *_: (_ for _ in ()).throw(ConfigError("stopped")))
        with pytest.raises(ConfigError, match="stopped"):
            train(config)
    assert capsys.readouterr().out.count("warning about") == 1
    train(config, resume=Path(config.output or ""))
    assert "warning about" not in capsys.readouterr().out
    assert len(events(Path(config.output or ""), "teacher_warning")) == 1


def test_a_good_teacher_causes_no_warning(
    config: Config, photographs: Path, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_teacher(config, photographs, load_weights(good)[0], tmp_path)
    train(config)
    assert "warning about" not in capsys.readouterr().out
    assert events(Path(config.output or ""), "teacher_warning") == []


def test_a_teacher_of_another_normalisation_causes_a_warning(
    config: Config, photographs: Path, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_teacher(config, photographs, load_weights(good)[0], tmp_path)
    train(replace(config, data=replace(config.data, mean=(100.0, 100.0, 100.0))))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "warning about" in line]
    for word in (
        "it classifies 33.3 % of 360 validation images correctly, and chance 33.3 %",
        "data.mean",
        "teacher.stem",
    ):
        assert word in line
    assert events(Path(config.output or ""), "teacher_warning")[0]["cause"] == "chance"


def test_a_teacher_of_this_run_that_has_learnt_nothing_causes_a_warning(
    config: Config, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"data.root": str(photographs), "teacher.epochs": 1, "teacher.lr": 1e-9, "training.epochs": 1}
    values |= {"teacher.weight_decay": 0.0}
    train(schema.with_values(config, values))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "warning about" in line]
    assert "the teacher of this run: it classifies" in line
    assert "teacher.epochs" in line


def test_a_teacher_that_overflows_in_its_own_arithmetic_is_refused(
    config: Config, photographs: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = load_weights(good)[0]
    tensors["classifier.weight"] = tensors["classifier.weight"] * 1e6
    config = with_teacher(config, photographs, tensors, tmp_path)
    monkeypatch.setattr(StudentsTask, "losses", lambda *_: pytest.fail("the students were trained"))
    with pytest.raises(CheckpointError, match=r"t\.pth gives logits that are NaN or infinite in fp16: set teacher\.p"):
        train(schema.with_values(config, {"teacher.precision": "fp16"}))


@pytest.mark.parametrize("method", ["kd", "udskd"])
def test_a_teacher_whose_logits_are_not_finite_is_refused_before_the_students_train(
    config: Config, photographs: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    tensors = load_weights(good)[0]
    tensors["classifier.weight"] = (tensors["classifier.weight"] * 1e38).clamp(-3e38, 3e38)
    config = with_teacher(replace(config, method=method), photographs, tensors, tmp_path)
    monkeypatch.setattr(StudentsTask, "losses", lambda *_: pytest.fail("the students were trained"))
    with pytest.raises(CheckpointError, match=r"t\.pth gives logits .* in fp32 arithmetic: give another teacher$"):
        train(config)
