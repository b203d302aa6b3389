"""The context-aware module of Li: "Context-Aware Knowledge Distillation with Adaptive Weighting for Image
Classification", 2025 (arXiv:2509.05319)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from udskd.config.schema import Config
from udskd.loss.functional import training_loss
from udskd.methods.base import Answers, Setting, Shape, Shaped

EXCLUDED = -10.0
"""The module's input for a class at -inf: ten standard deviations below the mean of the row's other logits."""


class Context(Shape):
    """The teacher's distribution, whose classes are reweighted by the logits of teacher and student.

    An MLP with attention that reweights the teacher's outputs class by class is the paper's [paper]; its text was
    not available, so all that follows is [reconstructed]. The student imitates p̃ ∝ r·p_t, of the teacher's
    probabilities at temperature 1; p̃ is tempered afterwards. log r is the output of ClassWeights, 0 before the
    first step: then p̃ is p_t, bit for bit. Both students share one module; each has its own target.

    The module learns CE(p̃, label) + closeness·KL(p_t ‖ p̃), a mean over the images, once for each student. The
    student's own loss has no gradient for it: it would learn to repeat the student's output.
    """

    name = "context"
    per_student = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.lr = config.akd.lr
        self._weights: ClassWeights | None = None

    def modules(self, setting: Setting) -> dict[str, nn.Module]:
        """The module that reweights the classes, shared by both students."""
        self._weights = ClassWeights(setting.classes, self.config.akd.width)
        return {"context": self._weights}

    def __call__(self, logits: Tensor, role: str, answers: Answers) -> Shaped:
        """The reweighted logits [B, C] for one student, float32 (float64 if the logits are), and the module's loss."""
        assert self._weights is not None, "modules() comes first"
        logits = logits.detach()
        shaped = logits + self._weights(logits, answers.student(role).detach())
        own = training_loss(
            logits,
            shaped,
            None,
            answers.target,
            temperature=1.0,
            kd_weight=self.config.akd.closeness,
            peer_weight=0.0,
            uncertainty="none",
            backend=self.config.loss.backend,
        )
        return Shaped(shaped.detach(), own.loss)


class ClassWeights(nn.Module):
    """log r [B, C] of the teacher's and a student's logits [B, C].

    The classes are the tokens: Linear([z_t; z_s; embedding of the class]) of `width` features, the logits standardised
    in each row; one head of self-attention over them, added to them; then an MLP width - 2·width - 1 with ReLU, whose
    last layer starts at 0. r has geometric mean 1: log r = out - mean over classes of out, which is 0 exactly where out
    is; softmax ignores a factor common to all classes, so the last layer needs no bias.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = nn.Embedding(classes, width)
        self.token = nn.Linear(2 + width, width)
        self.attention = nn.Linear(width, 3 * width)
        self.hidden = nn.Linear(width, 2 * width)
        self.out = nn.Linear(2 * width, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """In the arithmetic of the module's own weights."""
        logits = torch.stack([standardised(teacher), standardised(student)], -1).to(self.out.weight.dtype)
        classes = self.classes.weight.expand(len(logits), -1, -1)
        tokens = self.token(torch.cat([logits, classes], -1))
        query, key, value = self.attention(tokens).unsqueeze(1).chunk(3, -1)
        tokens = tokens + F.scaled_dot_product_attention(query, key, value).squeeze(1)
        out: Tensor = self.out(F.relu(self.hidden(tokens))).squeeze(-1)
        return out - out.mean(-1, keepdim=True)


def standardised(logits: Tensor) -> Tensor:
    """Each row of logits [B, C] with mean 0 and standard deviation 1 over the classes that are not excluded, which are
    set to EXCLUDED; rows of equal logits are 0. The scale and an offset of the logits have no effect."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    below = logits - logits.amax(-1, keepdim=True)
    live = below.isfinite()
    smallest = torch.finfo(below.dtype).tiny
    below = torch.where(live, below, 0.0)
    below = below / (-below.amin(-1, keepdim=True)).clamp(min=smallest)  # in [-1, 0]: squares cannot overflow
    count = live.sum(-1, keepdim=True)
    centred = torch.where(live, below - below.sum(-1, keepdim=True) / count, 0.0)
    deviation = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    return torch.where(live, centred / deviation.clamp(min=smallest), EXCLUDED)
