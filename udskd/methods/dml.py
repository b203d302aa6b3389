"""Zhang, Xiang, Hospedales, Lu: "Deep Mutual Learning", CVPR 2018 (arXiv:1706.00384)."""

from __future__ import annotations

from typing import Any, ClassVar

from udskd.methods.operator import OperatorMethod


class MutualLearning(OperatorMethod):
    """Two students that teach each other, without a teacher: ce_weight·CE + peer_weight·τ²·KL(sg peer ‖ student) (eq.
    5-6).

    The KL from the peer, held fixed, is the paper's [paper]. The paper updates the students in turn; here both learn
    from the same forward pass [reconstructed]. The paper has weight 1 and temperature 1; here both come from the
    options (--peer_weight 1 --peer_temperature 1 gives the paper's), so that two methods of the comparison differ in
    one thing at a time [reconstructed].
    """

    name = "dml"
    uses_teacher = False
    fixed: ClassVar[dict[str, Any]] = {"kd_weight": 0.0}
