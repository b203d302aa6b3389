"""Every method through the training loop: what it asks for, what it trains beside the students, how it continues."""

from __future__ import annotations

import ast
import json
import math
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.conftest import write_tree
from tests.training.test_run import events, on_call, outcome
from udskd import methods, recipe
from udskd.config import Config
from udskd.errors import CheckpointError, ConfigError, Interrupted
from udskd.training import evaluate_run, train
from udskd.training.checkpoint import load_state, load_weights
from udskd.training.students import StudentsTask
from udskd.training.task import Inputs

SHORT = {"teacher.epochs": 1, "training.epochs": 2, "cud.stage_epochs": 2, "sdkd.stages": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in methods.names()},
    "variance from views": {"method": "variance", "variance.source": "views"},
    "variance from dropout": {"method": "variance", "variance.source": "dropout"},
    "akd, learned": {"method": "akd", "akd.alpha": "learned"},
    "akd, kendall": {"method": "akd", "akd.alpha": "learned", "akd.guard": "kendall"},
    "akd, sample": {"method": "akd", "akd.alpha": "sample", "akd.gap": "js"},
    "udskd of everything": {
        **{"method": "udskd", "teacher.stage": "uncertainty_shaping"},
        **{"target.shape": "average+wrong_mass_clip+context", "target.weight": "margin"},
    },
    "sdkd of clipped targets": {"method": "sdkd", "target.shape": "wrong_mass_clip", "target.weight": "wsl"},
    "variance from draws, peers": {"method": "variance", "variance.student": "peers"},
    "udskd within bounds": {"method": "udskd", "target.shape": "mass_bounds"},
}


def options(config: Config, values: dict[str, Any]) -> Config:
    return recipe.with_values(config, {**SHORT, **values})


def run_of(config: Config) -> Path:
    return Path(config.output or "")


@pytest.fixture(scope="module")
def teacher(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of a teacher that has learnt something."""
    from tests.training.conftest import tiny_config

    run = tmp_path_factory.mktemp("teacher") / "run"
    train(options(tiny_config(tree, run), {"method": "kd", "training.epochs": 1, "teacher.epochs": 3}))
    return str(run / "teacher.safetensors")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_was_stopped_and_continued_ends_bit_identical(
    variant: str, config: Config, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(config, {**VARIANTS[variant], "teacher.checkpoint": teacher})
    straight = replace(config, output=str(tmp_path / "straight"))
    summary = train(straight)
    assert all(math.isfinite(summary[role]["nll"]) for role in ("student_a", "student_b"))
    with monkeypatch.context() as patch:
        on_call(patch, StudentsTask, "losses", 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            train(config)
    torch.manual_seed(4321)
    train(config, resume=run_of(config))
    assert outcome(run_of(config)) == outcome(run_of(straight))


@pytest.mark.parametrize(("method", "parts"), [("akd", {"alpha", "context"}), ("sdkd", {"fusion_a", "fusion_b"})])
def test_what_a_method_trains_is_in_the_state_but_not_among_the_students(
    method: str, parts: set[str], config: Config, teacher: str
) -> None:
    config = options(config, {"method": method, "teacher.checkpoint": teacher})
    train(config)
    state = load_state(run_of(config) / "checkpoints" / "students.pt")
    assert state["networks"].keys() == {"student_a", "student_b"} | parts
    names = load_weights(run_of(config) / "student_a.safetensors")[0].keys()
    assert names == load_weights(Path(teacher))[0].keys()


def test_the_parts_of_a_method_learn(config: Config, teacher: str) -> None:
    config = options(config, {"method": "sdkd", "teacher.checkpoint": teacher, "training.epochs": 1})
    first = Watch(config).weights("fusion_a")
    train(config)
    state = load_state(run_of(config) / "checkpoints" / "students.pt")["networks"]["fusion_a"]["model"]
    changed = [name for name, value in first.items() if not torch.equal(value, state[name])]
    assert any("scale" in name for name in changed)


class Watch:
    """A method's own parts as a run with these options begins with them."""

    def __init__(self, config: Config) -> None:
        from udskd.data import EmbeddedSet
        from udskd.doctor.trial import Trial

        images = EmbeddedSet("train", 48)
        self.trial = Trial(recipe.with_values(config, {"teacher.checkpoint": None}), images)

    def weights(self, name: str) -> dict[str, Tensor]:
        (part,) = (part for part in self.trial.task.parts if part.role == name)
        return {key: value.clone() for key, value in part.module.state_dict().items()}


# --- the teacher's further training --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shaped(tree: Path, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.training.conftest import tiny_config

    run = tmp_path_factory.mktemp("shaped") / "run"
    train(options(tiny_config(tree, run), {"method": "cud", "teacher.checkpoint": teacher}))
    return run


def test_the_stage_trains_the_teacher_further_and_keeps_the_one_it_began_with(shaped: Path, teacher: str) -> None:
    before, after = load_weights(Path(teacher))[0], load_weights(shaped / "teacher_shaped.safetensors")[0]
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert [e["epoch"] for e in events(shaped, "teacher_stage_epoch")] == [1, 2]
    assert events(shaped, "teacher_stage_epoch")[0]["components"].keys() == {"focal", "bonus"}


def test_a_teacher_trained_in_the_run_is_shaped_as_one_that_was_given(config: Config, tmp_path: Path) -> None:
    """Its weights are an average here, which nothing trains."""
    config = options(config, {"method": "cud", "training.epochs": 1})
    train(config)
    given = recipe.with_values(config, {"teacher.checkpoint": str(run_of(config) / "teacher.safetensors")})
    train(replace(given, output=str(tmp_path / "given")))
    own, after = (load_weights(f / "teacher_shaped.safetensors")[0] for f in (run_of(config), tmp_path / "given"))
    assert all(torch.equal(own[name], after[name]) for name in own)
    before = load_weights(run_of(config) / "teacher.safetensors")[0]
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))


def test_a_shaped_teacher_serves_another_run_without_its_stage(shaped: Path, config: Config) -> None:
    values = {"teacher.checkpoint": str(shaped / "teacher_shaped.safetensors"), "teacher.stage": "none"}
    summary = train(options(config, {"method": "cud", **values}))
    assert not (run_of(config) / "teacher_shaped.safetensors").exists()
    assert summary["teacher"]["nll"] == json.loads((shaped / "summary.json").read_text())["teacher"]["nll"]


def test_evaluating_a_run_tells_both_teachers(shaped: Path) -> None:
    results = evaluate_run(shaped)
    assert results["teacher_shaped"]["nll"] == json.loads((shaped / "summary.json").read_text())["teacher"]["nll"]


def test_a_run_stopped_in_its_stage_continues_there(
    config: Config, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from udskd.training.teacher import StageTask

    config = options(config, {"method": "cud", "teacher.checkpoint": teacher})
    train(replace(config, output=str(tmp_path / "straight")))
    with monkeypatch.context() as patch:
        on_call(patch, StageTask, "losses", 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted, match="1 of 2 epochs of the teacher's stage and 2 of 3 steps"):
            train(config)
    train(config, resume=run_of(config))
    assert outcome(run_of(config)) == outcome(tmp_path / "straight")


def test_a_stage_is_not_continued_from_another_teacher(config: Config, teacher: str, shaped: Path) -> None:
    config = options(config, {"method": "cud", "teacher.checkpoint": teacher, "training.epochs": 1})
    train(config)
    (run_of(config) / "summary.json").unlink()
    other = recipe.with_values(config, {"teacher.checkpoint": str(shaped / "teacher_shaped.safetensors")})
    with pytest.raises(CheckpointError, match=r"teacher_shaped\.safetensors was made of another teacher"):
        train(other, resume=run_of(config))


def test_a_stage_begun_anew_with_another_teacher_can_be_continued(
    config: Config, teacher: str, shaped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before anything of the stage was saved, a run may be given another teacher."""
    from udskd.training.teacher import StageTask

    def fail() -> None:
        raise ZeroDivisionError

    config = options(config, {"method": "cud", "teacher.checkpoint": teacher, "training.epochs": 1})
    other = recipe.with_values(config, {"teacher.checkpoint": str(shaped / "teacher_shaped.safetensors")})
    for first, task in ((config, StageTask), (other, StudentsTask)):
        with monkeypatch.context() as patch:
            on_call(patch, task, "losses", 1, fail)
            with pytest.raises(ZeroDivisionError):
                train(first, resume=run_of(config) if run_of(config).exists() else None)
    assert train(other, resume=run_of(config))["status"] == "complete"


def test_a_parts_learning_rate_is_its_own(config: Config) -> None:
    values = {"method": "sdkd", "target.shape": "context", "akd.lr": 0.001, "sdkd.lr": 0.5}
    rates = {part.role: part.schedule.peak for part in Watch(options(config, values)).trial.task.parts}
    assert rates == {"context": 0.001, "fusion_a": 0.5, "fusion_b": 0.5}


def test_a_method_of_ones_own_may_keep_the_teachers_logits(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Products(methods.Method):
        name = "products"

        def loss(self, answers: methods.Answers) -> dict[str, Tensor]:
            assert answers.teacher is not None
            zero = torch.zeros(())
            students = answers.student_a + answers.student_b
            return {"loss": (answers.teacher * students).mean(), **dict.fromkeys(methods.COMPONENTS, zero)}

    monkeypatch.setitem(methods._METHODS, "products", Products)
    train(options(config, {"method": "products", "training.epochs": 1}))


def test_the_summary_says_which_stage_the_teacher_had(config: Config, teacher: str) -> None:
    values = {"method": "kd", "teacher.stage": "cross_entropy", "teacher.checkpoint": teacher}
    assert train(options(config, values))["options"]["teacher.stage"] == "cross_entropy"


# --- combinations that cannot be -----------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a shape without a teacher": (
        {"method": "dml", "target.shape": "wrong_mass_clip"},
        'target.shape is "wrong_mass_clip", but method "dml" has no teacher',
    ),
    "a weight without a teacher": (
        {"method": "ce", "target.weight": "margin"},
        'target.weight is "margin", but method "ce" has no teacher',
    ),
    "a stage without a teacher": (
        {"method": "ce", "teacher.stage": "uncertainty_shaping"},
        'teacher.stage is "uncertainty_shaping", but method "ce" has no teacher',
    ),
    "answers of the teacher after a shape": (
        {"target.shape": "wrong_mass_clip+average", "variance.source": "views"},
        r'"average" takes the teacher\'s own answers \(views\), whatever comes before it: put it first',
    ),
    "the same shape twice": ({"target.shape": "context+context"}, "target.shape must name different shapes"),
    "features and several answers": (
        {"method": "sdkd", "sdkd.stages": 2, "target.shape": "average", "variance.source": "views"},
        "only one of them can be had",
    ),
    "an unknown shape": (
        {"target.shape": "wrong_mas_clip"},
        r'unknown target.shape "wrong_mas_clip" \(did you mean "wrong_mass_clip"\?\); known are',
    ),
    "one answer": ({"method": "variance", "variance.responses": 1}, "variance.responses must be at least 2"),
    "alpha's bounds": (
        {"method": "akd", "akd.alpha_min": 0.9, "akd.alpha_max": 0.1},
        "akd.alpha_min",
    ),
    "a layer that is not there": (
        {"method": "sdkd", "sdkd.teacher_layers": "layer2,layer3"},
        'sdkd.teacher_layers.*"layer2"',
    ),
    "too many stages": ({"method": "sdkd", "sdkd.stages": 9}, "sdkd.stages"),
    "mixup where labels are needed": ({"method": "dkd", "data.mixup": 0.2}, "data.mixup"),
    "a cache of logits for features": (
        {"method": "sdkd", "teacher.cache": "cache"},
        "teacher.cache holds logits only, but this method asks the teacher for features",
    ),
    "a cache of logits for views": (
        {"method": "variance", "variance.source": "views", "teacher.cache": "cache"},
        "teacher.cache holds logits only, but this method asks the teacher for views",
    ),
    "a cache of the unshaped teacher": ({"method": "cud", "teacher.cache": "cache"}, "this method trains it further"),
    "dropout before no linear layer": (
        {"method": "variance", "variance.source": "dropout", "teacher.model": "squeezenet1_1", "data.image_size": 32},
        "last layer is not linear",
    ),
    "eta": ({"method": "cud", "cud.eta": 1.5}, "cud.eta must be above 0 and below 1"),
    "beta": ({"method": "dkd", "dkd.beta": -1.0}, "dkd.beta must be a finite number, 0 or more"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_combination_that_cannot_be_is_one_sentence_before_anything_is_written(case: str, config: Config) -> None:
    values, words = BAD[case]
    with pytest.raises(ConfigError, match=words) as error:
        train(recipe.with_values(config, values))
    assert "\n" not in str(error.value)
    assert not run_of(config).exists()


def test_another_number_of_classes_than_the_teachers_is_refused(config: Config, teacher: str, tmp_path: Path) -> None:
    other = write_tree(tmp_path / "other", classes=("blue", "green", "red", "white"))
    with pytest.raises(CheckpointError, match="classes"):
        train(recipe.with_values(config, {"data.root": str(other), "teacher.checkpoint": teacher}))


# --- one operator, and a loop that knows no method -----------------------------------------------------------------

SOFTMAX = ("_softmax", "_log_softmax", "logsumexp", "kl_div", "nll_loss_forward", "cross_entropy_loss")
# What needs the probabilities themselves, in calls of a step: the average of distributions and the students' own, of
# each student; the two sides of a mixture; the masses that are moved; the classes but the label as one.
OWN = {
    "cud": {"_softmax": 1, "logsumexp": 1},
    "variance": {"_softmax": 4},
    "variance from views": {"_softmax": 6},
    "variance from dropout": {"_softmax": 6},
    "variance from draws, peers": {"_softmax": 6},
    "akd, sample": {"_log_softmax": 4},
    "dkd": {"logsumexp": 3},
    "udskd of everything": {"_softmax": 2, "logsumexp": 1},
    "sdkd of clipped targets": {"_softmax": 1, "logsumexp": 1},
    "udskd within bounds": {"_log_softmax": 8},
}


class Counting(TorchDispatchMode):
    """Counts the calls of PyTorch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """The operators of each step's losses."""
    found: list[Counter[str]] = []
    losses = StudentsTask.losses

    def counting(self: StudentsTask, inputs: Inputs) -> dict[str, Tensor]:
        with Counting() as mode:
            terms = losses(self, inputs)
        found.append(mode.calls)
        return terms

    monkeypatch.setattr(StudentsTask, "losses", counting)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_divergence_goes_through_the_operator(
    variant: str, config: Config, teacher: str, counted: list[Counter[str]]
) -> None:
    values = {**VARIANTS[variant], "teacher.checkpoint": teacher, "training.epochs": 1, "cud.stage_epochs": 1}
    train(options(config, values))
    calls = counted[-1]
    ours = sum(number for name, number in calls.items() if name.startswith("dual_student_loss"))
    assert ours >= 1
    found = {name: calls[name] for name in SOFTMAX if calls[name]}
    assert found == OWN.get(variant, {})


def test_the_loop_names_no_method() -> None:
    names = set(methods.names()) - {"udskd"} | {"wrong_mass_clip", "uncertainty_shaping", "context"}
    for file in (Path(__file__).parents[2] / "udskd" / "training").glob("*.py"):
        words = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
        assert not words & names, file


def test_weights_do_not_depend_on_what_a_method_has_beside_them(config: Config, teacher: str) -> None:
    """The students of sdkd begin as those of kd do."""
    weights = [
        Watch(options(config, {"method": method})).trial.task.networks[0].module.state_dict()
        for method in ("kd", "sdkd", "akd")
    ]
    assert all(torch.equal(value, other[name]) for other in weights[1:] for name, value in weights[0].items())


def test_a_trial_of_any_method_can_be_timed(config: Config) -> None:
    for method in methods.names():
        trial = Watch(options(config, {"method": method})).trial
        trial.train_step(trial.inputs(trial.batch()))
        trial.close()


def test_a_head_with_dropout_answers_differently_around_the_plain_answer() -> None:
    from udskd.methods import Needs
    from udskd.training.runtime import Runtime
    from udskd.training.said import saying

    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 3))
    config = recipe.with_values(Config(), {"training.device": "cpu", "variance.dropout": 0.3})
    runtime = Runtime.of(config.training)
    said = saying(config, runtime, module, Needs(responses=2000, source="dropout"), True)(torch.randn(5, 3, 2, 2))
    assert said.responses is not None
    assert said.logits is not None
    error = said.responses.std(0) / math.sqrt(2000)
    assert ((said.responses.mean(0) - said.logits).abs() < 5 * error).all()
    assert said.responses.std(0).min() > 0


def test_a_view_is_mirrored_or_not_and_moved_by_an_eighth_at_most() -> None:
    from udskd.training.said import view

    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, 64).expand(200, 3, 64, 64).contiguous()
    centre = view(ramp, 0.5)[:, 0, 32, 24:40]
    slope = centre[:, -1] - centre[:, 0]
    assert 60 < (slope < 0).sum() < 140
    middle = centre.mean(1).abs() / (2 / 63)  # in pixels
    assert middle.max() < 9
    assert middle.max() > 6


def test_a_view_is_not_mirrored_where_images_are_not() -> None:
    from udskd.training.said import view

    ramp = torch.linspace(-1, 1, 64).expand(200, 3, 64, 64).contiguous()
    centre = view(ramp, 0.0)[:, 0, 32, 24:40]
    assert (centre[:, -1] > centre[:, 0]).all()


def test_layers_are_tapped_after_batch_norm_was_exchanged(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """training.sync_batchnorm puts other layers in the place of batch-norms, one of which may be what is tapped."""
    from udskd import models
    from udskd.config import StudentConfig
    from udskd.training.network import Network
    from udskd.training.runtime import Runtime
    from udskd.training.world import World

    monkeypatch.setattr(Runtime, "parallel", lambda self, module, size: module)
    world = World(ranks=2, control=object())
    runtime = Runtime(torch.device("cpu"), "fp32", torch.contiguous_format, world, sync_batchnorm=True)
    model = models.build("densenet121", 3, 32)
    layers = ("features.norm5",)
    network = Network("student_a", model, StudentConfig(), config.training, runtime, 1, 1, layers)
    tapped = network.module.get_submodule(*layers)
    assert isinstance(tapped, nn.SyncBatchNorm)
    assert tapped._forward_hooks
