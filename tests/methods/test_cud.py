"""CUD: the shaped logits, and the method's loss compared with its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from udskd import methods
from udskd.config.schema import Config, CudConfig, DataConfig, LossConfig, TargetConfig
from udskd.errors import ConfigError
from udskd.methods.base import Answers, Shape
from udskd.methods.cud import MassBounds, WrongMassClip
from udskd.methods.masses import bound_masses

B, C, T = 12, 5, 3.0
SHAPES = [WrongMassClip, MassBounds]
CLIPS = ["before", "after"]


def config(**cud: Any) -> Config:
    return Config(cud=CudConfig(**cud), loss=LossConfig(temperature=T))


@pytest.fixture
def batch() -> Answers:
    """A teacher that is right in some rows and wrong in others."""
    generator = torch.Generator().manual_seed(0)
    t, a, b = (3 * torch.randn(B, C, dtype=torch.float64, generator=generator) for _ in range(3))
    target = torch.where(torch.arange(B) < B // 3, t.argmax(-1), torch.randint(0, C, (B,), generator=generator))
    assert 0 < (t.argmax(-1) == target).sum() < B
    return Answers(teacher=t, student_a=a.requires_grad_(), student_b=b.requires_grad_(), target=target)


def shaped(shape: Shape, logits: Tensor, target: Tensor) -> Tensor:
    out = shape(logits, "student_a", Answers(teacher=logits, student_a=logits, student_b=logits, target=target))
    assert out.loss is None
    return out.logits


def clipped(p: Tensor, target: Tensor, eta: float = 0.5, margin: float = 0.7) -> Tensor:
    """The definition, a row at a time."""
    q = p.clone()
    for row, label in zip(q, target.tolist(), strict=True):
        top = int(row.argmax())
        if top != label:
            delta = min(eta * float(row[top]), margin * float(row[top] - row[label]))
            row[top] -= delta
            row[label] += delta
    return q


def bounded(p: Tensor, target: Tensor) -> Tensor:
    near = F.one_hot(target, C).bool()
    return bound_masses(p, near, p > p.gather(-1, target[:, None]), least=0.5, most=0.3)


DEFINITIONS = {WrongMassClip: clipped, MassBounds: bounded}


@pytest.mark.parametrize("shape", SHAPES)
def test_shaped_before_tempering_a_student_sees_the_tempered_definition(shape: type[Shape], batch: Answers) -> None:
    assert batch.teacher is not None
    logits = shaped(shape(config(clip="before")), batch.teacher, batch.target)
    q = DEFINITIONS[shape](batch.teacher.softmax(-1), batch.target)
    torch.testing.assert_close(logits.softmax(-1), q)
    tempered = q ** (1 / T)
    torch.testing.assert_close((logits / T).softmax(-1), tempered / tempered.sum(-1, keepdim=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_shaped_after_tempering_a_student_sees_the_definition_of_the_tempered(
    shape: type[Shape], batch: Answers
) -> None:
    assert batch.teacher is not None
    logits = shaped(shape(config(clip="after")), batch.teacher, batch.target)
    want = DEFINITIONS[shape]((batch.teacher / T).softmax(-1), batch.target)
    torch.testing.assert_close((logits / T).softmax(-1), want)


@pytest.mark.parametrize("clip", CLIPS)
def test_clipping_changes_two_logits_of_a_wrong_row_and_no_others(clip: str, batch: Answers) -> None:
    assert batch.teacher is not None
    logits = shaped(WrongMassClip(config(clip=clip)), batch.teacher, batch.target)
    wrong = batch.teacher.argmax(-1) != batch.target
    assert torch.equal((logits != batch.teacher).sum(-1), 2 * wrong)
    changed = torch.zeros(B, C, dtype=torch.bool).scatter_(-1, batch.target[:, None], True)
    changed.scatter_(-1, batch.teacher.argmax(-1, keepdim=True), True)
    assert torch.equal(logits[~changed], batch.teacher[~changed])


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_need_no_change_keep_every_bit(dtype: torch.dtype, shape: type[Shape], clip: str) -> None:
    z = (2 * torch.randn(200, C, generator=torch.Generator().manual_seed(1))).to(dtype)
    z[0, 0] = -0.0
    target = z.argmax(-1)
    logits = shaped(shape(config(clip=clip, label_mass=0.1)), z, target)
    assert logits.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert torch.equal(logits, z.to(logits.dtype))
    assert torch.equal(logits.signbit(), z.signbit())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_class_that_ties_with_the_label_is_no_wrong_class(shape: type[Shape]) -> None:
    z = torch.tensor([[2.0, 2.0, 1.0]])
    for label in (0, 1):
        assert torch.equal(shaped(shape(config(label_mass=0.4)), z, torch.tensor([label])), z)


def test_bounding_raises_the_label_and_lowers_what_is_ranked_above_it(batch: Answers) -> None:
    assert batch.teacher is not None
    q = shaped(MassBounds(config(label_mass=0.4, wrong_mass=0.2)), batch.teacher, batch.target).softmax(-1)
    above = batch.teacher > batch.teacher.gather(-1, batch.target[:, None])
    assert (q.gather(-1, batch.target[:, None]) >= 0.4 - 1e-12).all()
    assert ((q * above).sum(-1) <= 0.2 + 1e-12).all()


def test_without_any_wrong_mass_the_classes_above_the_label_are_excluded() -> None:
    logits = shaped(
        MassBounds(config(label_mass=0.0, wrong_mass=0.0)), torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1])
    )
    torch.testing.assert_close(logits.softmax(-1), torch.tensor([[0.0, 1.0, math.exp(-1)]]) / (1 + math.exp(-1)))


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("label", [0, 1, 2])
def test_extreme_logits_stay_finite_and_meet_the_definition(label: int, shape: type[Shape], clip: str) -> None:
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 9999.0]])
    target = torch.tensor([label, label])
    logits = shaped(shape(config(clip=clip)), z, target)
    assert logits.isfinite().all()
    at = T if clip == "after" else 1.0
    got, p = (logits.double() / at).softmax(-1), (z.double() / at).softmax(-1)
    torch.testing.assert_close(got[0], _extreme(shape, p[0], label), rtol=2e-3, atol=1e-6)  # 1e4 has steps of 0.001


def _extreme(shape: type[Shape], p: Tensor, label: int) -> Tensor:
    """Where class 0 has everything: half of it moves (eta), or all but cud.wrong_mass."""
    q = p.clone()
    if label != 0:
        kept = 0.5 if shape is WrongMassClip else 0.3
        q[0], q[label] = kept, 1 - kept
        if shape is MassBounds and label == 1:  # class 2 is likelier, so it is among the wrong
            q[0], q[2] = 0.3, 0.0
    return q


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_that_are_ignored_or_no_distribution_do_no_harm(shape: type[Shape]) -> None:
    z = torch.tensor([[1.0, 2.0], [2.0, 1.0], [math.nan, 1.0], [math.inf, 1.0], [-math.inf] * 2, [2.0, 1.0]])
    logits = shaped(shape(config()), z, torch.tensor([-100, 2, 1, 1, 1, 1]))
    assert torch.equal(logits[:2], z[:2])
    assert logits[2:5].softmax(-1).isnan().any(-1).all()
    torch.testing.assert_close(logits[5:], shaped(shape(config()), z[5:], torch.tensor([1])))


@pytest.mark.parametrize("shape", SHAPES)
def test_an_excluded_label_gets_its_mass(shape: type[Shape]) -> None:
    logits = shaped(shape(config()), torch.tensor([[0.0, -math.inf, -2000.0]]), torch.tensor([1]))
    assert logits.softmax(-1)[0, 1] >= 0.5 - 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_no_rows_will_do_and_no_value_is_looked_at(shape: type[Shape]) -> None:
    none = shaped(shape(config()), torch.zeros(0, C), torch.zeros(0, dtype=torch.int64))
    assert none.shape == (0, C)
    unseen = torch.empty(B, C, device="meta"), torch.empty(B, dtype=torch.int64, device="meta")
    assert shaped(shape(config()), *unseen).shape == (B, C)  # to look at a meta tensor raises


def kl(log_p: Tensor, student: Tensor) -> Tensor:
    return T**2 * F.kl_div((student / T).log_softmax(-1), log_p, reduction="none", log_target=True).sum(-1)


def check(method: str, target: TargetConfig, batch: Answers, weight: Tensor, peer: float) -> None:
    """The loss and both students' gradients, with the clipped target written out."""
    loss = LossConfig(temperature=T, ce_weight=0.7, kd_weight=0.8, peer_weight=0.4)
    got = methods.build(Config(method=method, loss=loss, target=target)).loss(batch)["loss"]
    assert batch.teacher is not None
    log_q = (clipped(batch.teacher.softmax(-1), batch.target).log() / T).log_softmax(-1)
    want = torch.zeros((), dtype=torch.float64)
    for own, other in ((batch.student_a, batch.student_b), (batch.student_b, batch.student_a)):
        want = want + 0.7 * F.cross_entropy(own, batch.target) + 0.8 * (weight * kl(log_q, own)).mean()
        want = want + peer * kl((other.detach() / T).log_softmax(-1), own).mean()
    torch.testing.assert_close(got, want)
    students, upstream = (batch.student_a, batch.student_b), torch.tensor(1.7, dtype=torch.float64)
    grads = torch.autograd.grad(got, students, upstream), torch.autograd.grad(want, students, upstream)
    torch.testing.assert_close(*grads)


def test_the_method_is_distillation_from_the_clipped_teacher(batch: Answers) -> None:
    check("cud", TargetConfig(), batch, torch.ones(B, dtype=torch.float64), peer=0.0)


def test_clipping_goes_with_the_uncertainty_and_the_peer_of_udskd(batch: Answers) -> None:
    assert batch.teacher is not None
    q = clipped(batch.teacher.softmax(-1), batch.target)
    certainty = 1 + (q * q.log()).sum(-1) / math.log(C)
    check("udskd", TargetConfig(shape="wrong_mass_clip"), batch, certainty, peer=0.4)


@pytest.mark.parametrize("name", ["none", "mass_bounds", "mass_bounds+wrong_mass_clip"])
def test_the_method_goes_with_other_shapes(name: str, batch: Answers) -> None:
    method = methods.build(Config(method="cud", target=TargetConfig(shape=name)))
    assert method.loss(batch)["loss"].isfinite()
    assert [shape.name for shape in method.shapes] == [n for n in name.split("+") if n != "none"]


def test_the_method_brings_its_stage_and_shape() -> None:
    method = methods.build(Config(method="cud"))
    assert (method.stage, method.shape) == ("uncertainty_shaping", "wrong_mass_clip")


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ("wrong_mass_clip", {"eta": 0.0}, r"cud\.eta must be above 0 and below 1, got 0\.0"),
        ("wrong_mass_clip", {"eta": 1.0}, r"cud\.eta must be above 0 and below 1, got 1\.0"),
        ("wrong_mass_clip", {"margin": 0.0}, r"cud\.margin must be above 0 and at most 1, got 0\.0"),
        ("wrong_mass_clip", {"margin": math.nan}, r"cud\.margin must be above 0 and at most 1, got nan"),
        ("mass_bounds", {"label_mass": 1.0}, r"cud\.label_mass must be at least 0 and below 1, got 1\.0"),
        ("mass_bounds", {"wrong_mass": -0.1}, r"cud\.wrong_mass must be at least 0 and below 1, got -0\.1"),
    ],
)
def test_options_out_of_range_are_refused(shape: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        methods.check(Config(method="kd", cud=CudConfig(**options), target=TargetConfig(shape=shape)))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", ["wrong_mass_clip", "mass_bounds"])
def test_mixup_is_refused(shape: str) -> None:
    with pytest.raises(ConfigError, match=rf'^data\.mixup is 0\.2, but target\.shape "{shape}" needs labels: set '):
        methods.build(Config(method="kd", data=DataConfig(mixup=0.2), target=TargetConfig(shape=shape)))
