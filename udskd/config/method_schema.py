"""The options that belong to single papers, a section each; schema.py has those that every run shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Weight = Literal["auto", "none", "entropy", "max_prob", "margin", "wsl"]


@dataclass(frozen=True)
class TargetConfig:
    shape: str = "auto"
    """What becomes of the teacher's logits before a student learns from them: none, wrong_mass_clip, mass_bounds,
    average, variance, context, or several joined by "+", applied from left to right; auto is the method's own."""
    weight: Weight = "auto"
    """What weights each image's distillation, in place of the method's own: "wsl" is that of weighted soft labels, the
    others are those of loss.uncertainty."""


@dataclass(frozen=True)
class CudConfig:
    stage_epochs: int = 3
    """Epochs in which the trained teacher is taught to be uncertain where it should be."""
    stage_lr: float = 0.005
    """Peak learning rate of that stage."""
    gamma: float = 2.0
    """Exponent of its focal loss."""
    entropy_bonus: float = 0.1
    """Weight of its bonus for entropy on hard images."""
    max_weight: float = 3.0
    """Largest weight that it gives to an image; 1 gives all the same."""
    eta: float = 0.5
    """Wrong-mass clipping: the largest share of the wrong class's probability that moves to the label."""
    margin: float = 0.7
    """Wrong-mass clipping: the largest share of the gap between the wrong class and the label that moves."""
    clip: Literal["before", "after"] = "before"
    """Whether probabilities are clipped before they are tempered, or after."""
    label_mass: float = 0.5
    """shape mass_bounds: the least probability of the label."""
    wrong_mass: float = 0.3
    """shape mass_bounds: the most probability of all classes together that the teacher ranks above the label."""


@dataclass(frozen=True)
class VarianceConfig:
    responses: int = 4
    """Answers k that the teacher gives to each image."""
    source: Literal["draws", "dropout", "views"] = "draws"
    """Where they differ: labels drawn from the teacher's distribution, dropout before its last layer, or other views
    of the image."""
    dropout: float = 0.2
    """Probability of dropout, for source "dropout"."""
    student: Literal["auto", "peers", "draws"] = "auto"
    """What the student's variance is taken from: how far the two students differ, or a label drawn from its own
    distribution; auto is "draws" where the teacher's answers are drawn labels, else "peers"."""
    oracle: bool = False
    """As the published code does: the teacher's noise-free answer in place of the student's estimate."""


@dataclass(frozen=True)
class SdkdConfig:
    stages: int = 3
    """How many stages are fused, counted from the last."""
    teacher_layers: str = "auto"
    """The teacher's layers to fuse from, joined by commas; found by looking where the resolution changes."""
    student_a_layers: str = "auto"
    """The same of student a, where they are fused into."""
    student_b_layers: str = "auto"
    """The same of student b."""
    feature_weight: float = 1.0
    """Weight of the distance between a student's features and its proxy's."""
    ramp_epochs: float = 5.0
    """Epochs in which the proxy's weight grows from 0: at first it only knows what the student knows."""
    lr: float | None = None
    """Peak learning rate of the fusion blocks; training.lr by default."""


@dataclass(frozen=True)
class AkdConfig:
    alpha: Literal["batch", "sample", "learned"] = "batch"
    """Share of the cross-entropy: from the gap between student and teacher, for a batch or each image; or learned."""
    gap: Literal["ce", "js", "ratio"] = "ce"
    """What the gap is: the difference of their cross-entropies, their Jensen-Shannon divergence, or the student's share
    of both cross-entropies, CE_s / (CE_t + CE_s)."""
    kappa: float = 1.0
    """How steeply alpha follows the difference of the cross-entropies."""
    decay: float = 0.9
    """Decay of the moving average of a batch's gap."""
    alpha_min: float = 0.1
    """Smallest alpha."""
    alpha_max: float = 0.9
    """Largest alpha."""
    guard: Literal["range", "kendall"] = "range"
    """What keeps a learned alpha from choosing the smaller loss: its range, or weights learned as noise levels."""
    width: int = 32
    """Features of each class in the context-aware module."""
    closeness: float = 0.1
    """Weight of the divergence from the teacher in the module's own loss."""
    lr: float | None = None
    """Peak learning rate of alpha and the module; training.lr by default."""


@dataclass(frozen=True)
class DkdConfig:
    alpha: float = 1.0
    """Weight of the label's part of the divergence."""
    beta: float = 8.0
    """Weight of the other classes' part."""
    ramp_epochs: float = 20.0
    """Epochs in which distillation's weight grows from 0; at most half of the run."""
