"""Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang: "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance
Tradeoff Perspective", ICLR 2021 (arXiv:2102.00650)."""

from __future__ import annotations

from typing import Any, ClassVar

from udskd.config.schema import Config
from udskd.methods.base import Shape
from udskd.methods.operator import OperatorMethod


class WeightedSoftLabels(OperatorMethod):
    """Distillation weighted by the gap between each student and the teacher on each image:

        loss = mean over images of Σ_i ( ce_weight·CE_i + kd_weight·w_i·T²·KL(t ‖ i) ),  w_i = 1 - exp(-CE_i / CE_t)

    where the cross-entropies in w are those with the label at temperature 1, and no gradient flows through w [paper].
    On an image that is easier for the student than for the teacher, soft labels add more bias than they remove
    variance; its weight is small. The paper's soft loss is the cross-entropy with the soft labels, whose gradients are
    the KL's. Its weight there is 2.5 (ImageNet, T = 2) [paper]; here kd_weight and T come from the options
    (--kd_weight 2.5 --temperature 2), so that the comparison differs in the weighting alone [reconstructed].

    The weight is of the teacher's own logits, also where a target.shape changes what the student imitates; "weight" in
    the returned terms is the mean of both students'. With mixup the cross-entropies are those with the mixed target
    [reconstructed]. A target.weight replaces w.
    """

    name = "wsl"
    fixed: ClassVar[dict[str, Any]] = {"uncertainty": "none", "peer_weight": 0.0}

    def __init__(self, config: Config, shapes: tuple[Shape, ...] = ()) -> None:
        super().__init__(config, shapes)
        self._weighs_soft_labels = config.target.weight in ("auto", "wsl")
