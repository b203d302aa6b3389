"""Cui, Pei: "How Is Uncertainty Propagated in Knowledge Distillation?" (arXiv:2601.18909): targets from
several responses of the teacher."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from udskd.config.schema import Config
from udskd.errors import ConfigError
from udskd.methods.base import Answers, Needs, Shape, Shaped
from udskd.methods.operator import OperatorMethod


def average(responses: Tensor) -> Tensor:
    """[k, ...] -> [...]: the mean of k responses. Of independent ones it has 1/k of a single one's variance [paper].

    Raises ValueError without a response.
    """
    return _at_least(1, responses).mean(0)


def response_variance(responses: Tensor) -> Tensor:
    """[k, ...] -> [...]: each entry's variance over k responses, with the divisor k - 1 that makes it unbiased
    [reconstructed: the published code divides by k, which is too small by the factor (k - 1) / k].

    It is the variance of one response; that of their average is 1/k of it. Raises ValueError for k < 2.
    """
    # measured from the first response, so that the variance of identical ones is exactly zero
    deviations = responses - _at_least(2, responses)[0]
    return (deviations - deviations.mean(0)).square().sum(0) / (len(responses) - 1)


def inverse_variance(mean_t: Tensor, var_t: Tensor, mean_s: Tensor, var_s: Tensor) -> tuple[Tensor, Tensor]:
    """a_T mean_t + a_S mean_s with a_T = (1 / var_t) / (1 / var_t + 1 / var_s) and a_S = 1 - a_T [paper]; and a_T.

    Of all weights that add up to 1 these give the least variance to a sum of two independent unbiased estimates:
    1 / (1 / var_t + 1 / var_s), which is never more than the smaller of the two. Where both variances are zero (or
    both infinite) the shares are equal; where one is zero that estimate has the share 1 [reconstructed: the published
    code adds 1e-8 to each variance, which for probabilities of many classes is not small].

    Args:
        mean_t, mean_s: two estimates of the same [...].
        var_t, var_s: their variances, not negative, of any shapes that broadcast to [...]; a_T has their common shape.
    """
    # through the ratio, which neither overflows for great variances nor divides two zeros unless both are
    share_t = (1 / (1 + var_t / var_s)).masked_fill(var_t == var_s, 0.5)
    return share_t * mean_t + (1 - share_t) * mean_s, share_t


def draws(probabilities: Tensor, k: int) -> Tensor:
    """[B, C] -> [k, B, C]: k independent labels for each row, one-hot; a row of NaN stays NaN.

    They are unbiased for the probabilities p, and their average has the covariance (diag p - p p') / k. The random
    numbers come from the default generator of the tensor's device, which the training loop seeds for each step. They
    are the winners of exponential races, since torch.multinomial fails altogether for a single row of NaN.
    """
    times = torch.empty((k, *probabilities.shape), dtype=probabilities.dtype, device=probabilities.device)
    # exponential_ never draws 0 (so PyTorch's documentation), thus a class without mass gives 0 here and never wins
    winners = (probabilities / times.exponential_()).argmax(-1, keepdim=True)
    classes = torch.arange(probabilities.shape[-1], device=probabilities.device)
    return torch.where(probabilities.isnan(), probabilities, (winners == classes).to(probabilities.dtype))


class Responses(Shape):
    """The base of the two shapes: k = variance.responses responses of the teacher, as probabilities at the distillation
    temperature [reconstructed: the paper's responses are numbers or texts].

    With variance.source "draws" they are labels drawn from the shape's input logits, anew at each call. With "dropout"
    and "views" they are Answers.responses, k passes of the frozen teacher, and a previous shape has no effect.

    Raises ConfigError for too few responses.
    """

    fewest: ClassVar[int]

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.options, self.temperature = config.variance, config.loss.temperature
        k, source = self.options.responses, self.options.source
        if k < self.fewest:
            raise ConfigError(
                f'variance.responses must be at least {self.fewest} for the target shape "{self.name}", got {k}'
            )
        if source != "draws":
            self.needs = Needs(responses=k, source=source)

    def responses(self, logits: Tensor, answers: Answers) -> Tensor:
        """[k, B, C]: probabilities."""
        if self.options.source == "draws":
            return draws(self.probabilities(logits), self.options.responses)
        assert answers.responses is not None
        return self.probabilities(answers.responses)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of logits [..., C] at the distillation temperature; float32, or float64 if they are."""
        return ((logits if logits.dtype == torch.float64 else logits.float()) / self.temperature).softmax(-1)

    def shaped(self, target: Tensor) -> Shaped:
        """The logits whose probabilities at the distillation temperature are the target [B, C]: -inf, a class that the
        operator excludes, where the target has no mass."""
        return Shaped(self.temperature * target.log())


class Average(Responses):
    """The average of the teacher's responses [paper], taken at the distillation temperature, so that the target itself
    is unbiased [reconstructed].

    Both students have the same target. One response is allowed: the paper's noisy teacher.
    """

    name = "average"
    fewest = 1

    @torch.no_grad()
    def __call__(self, logits: Tensor, role: str, answers: Answers) -> Shaped:
        return self.shaped(average(self.responses(logits, answers)))


class InverseVariance(Responses):
    """The teacher's average p_T and the student's own output p_S, weighted by the inverse of their variances [paper]:

        q = a_T p_T + a_S p_S,   a_T = (1 / v_T) / (1 / v_T + 1 / v_S),   a_S = 1 - a_T

    The variances are one number for each image, the mean over the classes, as in the authors' code for language models
    [reconstructed]. v_T is the unbiased variance of the responses, divided by k for their average. v_S is taken from
    variance.student [reconstructed]: "peers", mean_c (p_a - p_b)^2 / 2, the unbiased variance of the two students as
    independent estimates; or "draws", mean_c p_S (1 - p_S), that of one label drawn from the student, so that draws of
    a teacher like it have the share k / (k + 1). Neither v_S contains a systematic error.

    Since q contains the student, the gradient of T^2 KL(q || p_S) is a_T times that of T^2 KL(p_T || p_S): the smaller
    v_S, the less the student learns from the teacher. Students that are identical on an image have v_S = 0 and learn
    nothing from the teacher there, as the formula has it for estimates without bias. Two networks are never identical,
    but untrained ones are nearly uniform: with "peers" the cross-entropy dominates first, and the teacher's share grows
    as the students begin to differ. It stays near zero against the variance of drawn labels, which is far greater than
    that of probabilities: "auto" is "peers" for the sources "dropout" and "views", and "draws" for draws. Draws that
    all agree have v_T = 0, so that the target is their average; more responses make that rarer.

    variance.oracle is the published regression code instead [paper]: the "student's estimate" is the teacher's output
    without noise, softmax(logits / T), and v_S is the variance of one response, which is known for draws, mean_c
    p (1 - p), and else is that of the responses, with the divisor k. v_T is that of the responses in either case, not
    divided by k for their average. It is an oracle: the noisy responses estimate the noise-free output, which leaks
    into the target, so that its variance is smaller than that of any estimate without this leak.

    The students' targets differ; with variance.source "draws" each student has its own labels.
    """

    name = "variance"
    per_student = True
    fewest = 2

    @torch.no_grad()
    def __call__(self, logits: Tensor, role: str, answers: Answers) -> Shaped:
        responses = self.responses(logits, answers)
        estimates = (
            self.estimate_by_oracle(responses, logits)
            if self.options.oracle
            else self.estimate(responses, role, answers)
        )
        return self.shaped(inverse_variance(average(responses), *estimates)[0])

    def estimate(self, responses: Tensor, role: str, answers: Answers) -> tuple[Tensor, Tensor, Tensor]:
        """v_T [B, 1], p_S [B, C], v_S [B, 1]."""
        own = self.probabilities(answers.student(role))
        kind = self.options.student
        if kind == "auto":
            kind = "draws" if self.options.source == "draws" else "peers"
        if kind == "peers":
            each = response_variance(torch.stack((own, self.probabilities(answers.peer(role)))))
        else:
            each = own * (1 - own)
        return _over_classes(response_variance(responses)) / len(responses), own, _over_classes(each)

    def estimate_by_oracle(self, responses: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As estimate(), with the teacher's noise-free output in place of the student's (variance.oracle)."""
        k = len(responses)
        noiseless = self.probabilities(logits)
        sampled = _over_classes(response_variance(responses)) * ((k - 1) / k)
        known = self.options.source == "draws"
        return sampled, noiseless, _over_classes(noiseless * (1 - noiseless)) if known else sampled


class VarianceAware(OperatorMethod):
    """Two single-student distillations side by side, ce_weight CE + kd_weight T^2 KL(target || student), towards
    targets with less noise than a single response of the teacher.

    The paper distinguishes the uncertainty of the teacher's output, of the student's initialisation and of the
    student's own output; averaging several responses reduces the first, and inverse-variance weighting combines their
    average with the student's own estimate [paper: for regression and language models]. What a classifier's responses
    are, the average of probabilities, the estimate of the student's variance, and the weights of the loss are not
    published [reconstructed: see InverseVariance, the method's own shape]. target.shape "average" is the paper's
    averaging alone. Every image weighs the same, and mixup only changes the cross-entropy.
    """

    name = "variance"
    shape = "variance"
    fixed: ClassVar[dict[str, Any]] = {"uncertainty": "none", "peer_weight": 0.0}


def _at_least(k: int, responses: Tensor) -> Tensor:
    if responses.dim() < 1 or len(responses) < k:
        expected = f"at least {k} response{'s' if k > 1 else ''} in its first dimension"
        raise ValueError(f"responses must have {expected}, got shape {list(responses.shape)}")
    return responses


def _over_classes(variances: Tensor) -> Tensor:
    """[B, C] -> [B, 1]: one variance for each image."""
    return variances.mean(-1, keepdim=True)
