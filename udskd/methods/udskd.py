"""Uncertainty-aware dual-student knowledge distillation (arXiv:2511.18826)."""

from __future__ import annotations

from udskd.methods.operator import OperatorMethod


class UncertaintyAwareDualStudent(OperatorMethod):
    """Two students and one teacher, whose certainty is the weight of each image:

        loss = mean over images of Σ_i ( ce_weight·CE_i + kd_weight·w·T²·KL(t ‖ i) + peer_weight·τ²·KL(sg j ‖ i) )

    The three terms and w = 1 - H(t)/log C for every image, from the frozen teacher's predictive entropy, are the
    paper's [paper]. The weights of the terms, T, the temperature 1 of the entropy, and the peer's KL with the peer
    held fixed are not published and are options with the defaults of LossConfig [reconstructed]. uncertainty="none"
    and peer_weight=0 give the ablations.
    """

    name = "udskd"
    uses_teacher = True
