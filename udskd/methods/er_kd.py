"""Su, Tseng, Lee: "Knowledge From the Dark Side: Entropy-Reweighted Knowledge Distillation for Balanced Knowledge
Transfer", 2023 (arXiv:2311.13621v1)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from udskd.config.schema import Config
from udskd.methods.base import Answers, Shape
from udskd.methods.operator import LossTerms, OperatorMethod


class EntropyReweighted(OperatorMethod):
    """Distillation weighted by the teacher's uncertainty of each image, where UDSKD weights by its certainty:

        loss = mean over images of Σ_i ( ce_weight·CE_i + kd_weight·H(t)·T²·KL(t ‖ i) )

    with the entropy H in nats, of the teacher's distribution [paper] at temperature T [reconstructed: the authors'
    code always takes it at 4, the default T]; later versions of the paper also use the student's entropy, which this
    method does not. The two weights and T come from the options, so that the comparison
    with "udskd" differs in the weighting alone [reconstructed].

    One call of the operator: its weight for trust in the uncertain is H / log C, and kd_weight is multiplied by log C.
    The returned terms are in nats again: "weight" is H, "entropy" is the same H, and kd_a and kd_b are the means of
    H·T²·KL. With normalize_weights the weights are H over its batch mean, in which log C plays no part. The options
    uncertainty, trust and uncertainty_temperature are without effect, unless a target.weight replaces H: then they hold
    as they do for "udskd".
    """

    name = "er_kd"
    fixed: ClassVar[dict[str, Any]] = {"peer_weight": 0.0}

    def __init__(self, config: Config, shapes: tuple[Shape, ...] = ()) -> None:
        super().__init__(config, shapes)
        self._by_entropy = config.target.weight == "auto"
        if self._by_entropy:
            temperature = config.loss.temperature
            self.arguments |= {"uncertainty": "entropy", "trust": "uncertain", "uncertainty_temperature": temperature}

    def loss(self, answers: Answers) -> LossTerms:
        """The operator's loss, weighted in nats."""
        if not self._by_entropy or self.options.normalize_weights:
            return super().loss(answers)
        nats = math.log(answers.student_a.shape[-1])
        self.arguments["kd_weight"] = nats * self.options.kd_weight
        terms = super().loss(answers)
        return {**terms, **{name: nats * terms[name] for name in ("kd_a", "kd_b", "weight")}}
