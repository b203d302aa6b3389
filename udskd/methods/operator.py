"""What the methods share: shape the teacher's logits, weight the images, call the loss operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor

from udskd.config.schema import STUDENTS, Config
from udskd.loss.functional import DualStudentLossOutput, training_loss
from udskd.methods.base import COMPONENTS, Answers, Method, Shape

LossTerms = dict[str, Tensor]


class OperatorMethod(Method):
    """A method whose loss is udskd.dual_student_loss with some options fixed, on shaped targets."""

    fixed: ClassVar[dict[str, Any]] = {}
    keeps_teacher = False  # the operator accepts tensors of inference mode

    def __init__(self, config: Config, shapes: tuple[Shape, ...] = ()) -> None:
        super().__init__(config, shapes)
        self.arguments = {**asdict(config.loss), **self.fixed}
        weight = config.target.weight
        self._weighs_soft_labels = weight == "wsl"
        if weight not in ("auto", "wsl"):
            self.arguments["uncertainty"] = weight

    def loss(self, answers: Answers) -> LossTerms:
        """The operator's loss on the shaped targets, plus the losses of the shapes."""
        if not self.uses_teacher:
            return self.compute_both(None, answers)
        targets, own = self.targets(answers)
        changes = self.changes(answers, targets)
        alike = targets["student_a"] is targets["student_b"] and not changes
        terms = (
            self.compute_both(targets["student_a"], answers) if alike else self.compute_each(targets, answers, changes)
        )
        return add_losses(terms, own)

    def changes(self, answers: Answers, targets: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
        """By role, the operator's options that depend on the batch and the student."""
        if not self._weighs_soft_labels:
            return {}
        return {
            role: {"uncertainty": weight} for role, weight in soft_label_weights(answers, self.options.backend).items()
        }

    def targets(self, answers: Answers) -> tuple[dict[str, Tensor], LossTerms]:
        """By role, the logits that the student imitates (one tensor for both unless a shape is per student), and the
        losses of the shapes by name."""
        assert answers.teacher is not None
        logits: dict[str, Tensor] = dict.fromkeys(STUDENTS, answers.teacher)
        own: LossTerms = {}
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

    def compute_both(self, teacher: Tensor | None, answers: Answers) -> LossTerms:
        """Both students in one pass over the logits."""
        out = training_loss(teacher, answers.student_a, answers.student_b, answers.target, **self.arguments)
        return to_terms(out) if teacher is not None else drop_teacher_terms(to_terms(out))

    def compute_each(
        self, teachers: Mapping[str, Tensor], answers: Answers, changes: Mapping[str, Mapping[str, Any]]
    ) -> LossTerms:
        """Each student with its own target and options, and the peer term in a call of its own."""
        outs = {}
        for role in STUDENTS:
            options = {**self.arguments, "peer_weight": 0.0, **changes.get(role, {})}
            outs[role] = training_loss(teachers[role], answers.student(role), None, answers.target, **options)
        peers = None
        if self.arguments["peer_weight"]:
            options = {**self.arguments, "uncertainty": "none", "ce_weight": 0.0, "kd_weight": 0.0}
            peers = training_loss(None, answers.student_a, answers.student_b, None, **options)
        return join_students(outs["student_a"], outs["student_b"], peers)


def join_students(a: DualStudentLossOutput, b: DualStudentLossOutput, peers: DualStudentLossOutput | None) -> LossTerms:
    """The terms of two calls with one student each and of the call for the peer term, in the form of one call with two
    students."""
    zero = torch.zeros_like(a.ce_a)
    return {
        "loss": a.loss + b.loss + (0.0 if peers is None else peers.loss),
        **{"ce_a": a.ce_a, "ce_b": b.ce_a, "kd_a": a.kd_a, "kd_b": b.kd_a},
        "peer_a": zero if peers is None else peers.peer_a,
        "peer_b": zero if peers is None else peers.peer_b,
        "weight": (a.weight + b.weight) / 2,
        "entropy": (a.entropy + b.entropy) / 2,
    }


def to_terms(out: DualStudentLossOutput) -> LossTerms:
    """The terms of a call with both students."""
    components = {name: getattr(out, name) for name in COMPONENTS}
    return {"loss": out.loss, **components, "weight": out.weight, "entropy": out.entropy}


def drop_teacher_terms(terms: LossTerms) -> LossTerms:
    """Without a teacher there is no weight and no entropy."""
    return {name: value for name, value in terms.items() if name not in ("weight", "entropy")}


def add_losses(terms: LossTerms, own: Mapping[str, Tensor]) -> LossTerms:
    """Adds further losses to the loss; each is also a term under its name."""
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
    """1 - exp(-CE(student) / CE(teacher)) for each image and student, larger for images that are harder for the student
    than for the teacher [paper: Zhou et al., "Rethinking Soft Labels for Knowledge Distillation", ICLR 2021, eq. 9-10]
    """
    assert answers.teacher is not None
    students = (answers.student_a, answers.student_b)
    teacher, a, b = cross_entropies(answers.target, answers.teacher, *students, backend=backend)
    # 1e-7: 0/0 would be NaN where both are certain of the label
    harder = {"student_a": a, "student_b": b}
    # rounding can take a cross-entropy, and with it the weight, below 0
    return {role: -torch.expm1(-ce / (teacher + 1e-7)).clamp(max=0) for role, ce in harder.items()}
