"""The way of every method that has a teacher's logits: shape them, weight the images, and call the operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor

from udskd.config.schema import STUDENTS, Config
from udskd.loss.functional import DualStudentLossOutput, training_loss
from udskd.methods.base import COMPONENTS, Answers, Method, Shape

Terms = dict[str, Tensor]


class OperatorMethod(Method):
    """A method that is udskd.dual_student_loss with some of its options held fixed, on targets that were shaped."""

    fixed: ClassVar[dict[str, Any]] = {}
    keeps_teacher = False  # the operator itself takes tensors of inference mode

    def __init__(self, config: Config, shapes: tuple[Shape, ...] = ()) -> None:
        super().__init__(config, shapes)
        self.arguments = {**asdict(config.loss), **self.fixed}
        weight = config.target.weight
        self._weighs_soft_labels = weight == "wsl"
        if weight not in ("auto", "wsl"):
            self.arguments["uncertainty"] = weight

    def loss(self, answers: Answers) -> Terms:
        """The operator's loss of the shaped targets, and the shapes' own."""
        if not self.uses_teacher:
            return self.together(None, answers)
        targets, own = self.targets(answers)
        changes = self.changes(answers, targets)
        alike = targets["student_a"] is targets["student_b"] and not changes
        terms = self.together(targets["student_a"], answers) if alike else self.apart(targets, answers, changes)
        return plus(terms, own)

    def changes(self, answers: Answers, targets: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
        """By role, the operator's options that depend on the batch and the student."""
        if not self._weighs_soft_labels:
            return {}
        return {
            role: {"uncertainty": weight} for role, weight in soft_label_weights(answers, self.options.backend).items()
        }

    def targets(self, answers: Answers) -> tuple[dict[str, Tensor], Terms]:
        """By role, what the student is to imitate: the same tensor for both unless a shape tells them apart; and the
        shapes' losses by name."""
        assert answers.teacher is not None
        logits: dict[str, Tensor] = dict.fromkeys(STUDENTS, answers.teacher)
        own: Terms = {}
        for shape in self.shapes:
            if not shape.per_student and logits["student_a"] is logits["student_b"]:
                shaped = shape(logits["student_a"], "student_a", answers)
                logits, losses = dict.fromkeys(STUDENTS, shaped.logits), [shaped.loss]
            else:
                each = {role: shape(logits[role], role, answers) for role in STUDENTS}
                logits, losses = {role: s.logits for role, s in each.items()}, [s.loss for s in each.values()]
            for loss in losses:
                if loss is not None:
                    own[shape.name] = own[shape.name] + loss if shape.name in own else loss
        return logits, own

    def together(self, teacher: Tensor | None, answers: Answers) -> Terms:
        """Both students in one pass over the logits."""
        out = training_loss(teacher, answers.student_a, answers.student_b, answers.target, **self.arguments)
        return terms_of(out) if teacher is not None else without_teacher(terms_of(out))

    def apart(
        self, teachers: Mapping[str, Tensor], answers: Answers, changes: Mapping[str, Mapping[str, Any]]
    ) -> Terms:
        """Each student with its own target and options, then what they say to each other."""
        outs = {}
        for role in STUDENTS:
            options = {**self.arguments, "peer_weight": 0.0, **changes.get(role, {})}
            outs[role] = training_loss(teachers[role], answers.student(role), None, answers.target, **options)
        peers = None
        if self.arguments["peer_weight"]:
            options = {**self.arguments, "uncertainty": "none", "ce_weight": 0.0, "kd_weight": 0.0}
            peers = training_loss(None, answers.student_a, answers.student_b, None, **options)
        return side_by_side(outs["student_a"], outs["student_b"], peers)


def side_by_side(a: DualStudentLossOutput, b: DualStudentLossOutput, peers: DualStudentLossOutput | None) -> Terms:
    """Two calls with one student each, and one of the students alone, as one call with two students would put it."""
    zero = torch.zeros_like(a.ce_a)
    return {
        "loss": a.loss + b.loss + (0.0 if peers is None else peers.loss),
        **{"ce_a": a.ce_a, "ce_b": b.ce_a, "kd_a": a.kd_a, "kd_b": b.kd_a},
        "peer_a": zero if peers is None else peers.peer_a,
        "peer_b": zero if peers is None else peers.peer_b,
        "weight": (a.weight + b.weight) / 2,
        "entropy": (a.entropy + b.entropy) / 2,
    }


def terms_of(out: DualStudentLossOutput) -> Terms:
    """What a method returns of a call with both students."""
    components = {name: getattr(out, name) for name in COMPONENTS}
    return {"loss": out.loss, **components, "weight": out.weight, "entropy": out.entropy}


def without_teacher(terms: Terms) -> Terms:
    """Where there is no teacher, there is nothing to say of its certainty."""
    return {name: value for name, value in terms.items() if name not in ("weight", "entropy")}


def plus(terms: Terms, own: Mapping[str, Tensor]) -> Terms:
    """The terms with further losses added, each also logged by its name."""
    total = terms["loss"]
    for loss in own.values():
        total = total + loss
    return {**terms, "loss": total, **{name: loss.detach() for name, loss in own.items()}}


@torch.no_grad()
def cross_entropies(target: Tensor, *logits: Tensor, backend: str = "auto") -> list[Tensor]:
    """The cross-entropy [B] of each logits [B, C] with the target, without a gradient."""
    options: dict[str, Any] = {"peer_weight": 0.0, "reduction": "none", "backend": backend}
    return [training_loss(None, x.detach(), None, target, **options).ce_a for x in logits]


def soft_label_weights(answers: Answers, backend: str = "auto") -> dict[str, Tensor]:
    """1 - exp(-CE(student) / CE(teacher)) for each image and student: more for images that the student finds harder
    than the teacher does [paper: Zhou et al., "Rethinking Soft Labels for Knowledge Distillation", ICLR 2021, eq. 9-10]
    """
    assert answers.teacher is not None
    students = (answers.student_a, answers.student_b)
    teacher, a, b = cross_entropies(answers.target, answers.teacher, *students, backend=backend)
    # where both know the label for certain there is nothing to weigh, and 0/0 must not be NaN
    harder = {"student_a": a, "student_b": b}
    # rounding can take a cross-entropy, and with it the weight, below 0
    return {role: -torch.expm1(-ce / (teacher + 1e-7)).clamp(max=0) for role, ce in harder.items()}
