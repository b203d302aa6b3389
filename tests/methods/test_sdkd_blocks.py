"""Student-driven distillation: fusion blocks, the distance of features, and refused options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.methods.helpers.proxies import MethodRun, Scaled
from udskd.config.schema import ROLES
from udskd.errors import ConfigError
from udskd.methods.base import Needs
from udskd.methods.sdkd import FusionBlock, ProxyTeacher, _resized, feature_distance


@settings(max_examples=25, deadline=None)
@given(
    own=st.integers(1, 7), teacher=st.integers(1, 9), channels=st.integers(1, 3), dtype=st.sampled_from(["32", "64"])
)
def test_a_block_begins_as_the_identity_whatever_the_teachers_size(
    own: int, teacher: int, channels: int, dtype: str
) -> None:
    kind = getattr(torch, f"float{dtype}")
    block = FusionBlock(channels, 5).to(kind)
    x = torch.randn(2, channels, own, own, dtype=kind)
    assert torch.equal(block(x, torch.randn(2, 5, teacher, teacher, dtype=kind)), x)


def test_a_block_whose_scale_has_moved_uses_the_teachers_features() -> None:
    block, (x, t, other) = FusionBlock(3, 5), (torch.randn(2, n, 4, 4) for n in (3, 5, 5))
    nn.init.ones_(block.scale)
    assert not torch.allclose(block(x, t), block(x, other))


def test_a_smaller_map_is_repeated_and_not_mixed() -> None:
    x = torch.randn(2, 3, 3, 3)
    assert torch.equal(_resized(x, torch.Size((4, 4))), x[:, :, [0, 0, 1, 2]][..., [0, 0, 1, 2]])


@pytest.mark.parametrize("zero", ["own", "fused", "both"])
def test_the_distance_is_finite_with_its_gradient_where_features_are_0(zero: str) -> None:
    own, fused = (torch.randn(2, 3, 4, 4) for _ in range(2))
    for name, x in (("own", own), ("fused", fused)):
        if zero in (name, "both"):
            x[:, :, 1] = 0
    own.requires_grad_()
    value = feature_distance([own], [fused])
    (gradient,) = torch.autograd.grad(value, own)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 2e4


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.01, 100), width=st.integers(1, 6), seed=st.integers(0, 1000))
def test_the_distance_does_not_see_the_length_of_a_vector_and_is_at_most_4(scale: float, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    own, fused = (torch.randn(2, width, 3, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    own = own + own.sign()  # none so short that it is not made a unit vector
    torch.testing.assert_close(feature_distance([own], [own * scale]), torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(feature_distance([own], [-own * scale]), torch.full((), 4.0, dtype=torch.float64))
    assert 0 <= feature_distance([own], [fused]) <= 4


# --- what is asked for and refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sdkd__teacher_layers": "features.7"}, ["sdkd.teacher_layers", '"features.7"', "features.6 (2 px)"]),
        ({"sdkd__student_b_layers": "features.4,features.2"}, ["sdkd.student_b_layers", "order"]),
        ({"sdkd__student_a_layers": "features.4"}, ["sdkd.teacher_layers and sdkd.student_a_layers", "2 and 1"]),
        ({"sdkd__stages": 4}, ["sdkd.stages", "1 to 3", "features.2 (8 px)"]),
        ({"sdkd__student_a_layers": "classifier"}, ["sdkd.student_a_layers", "[B, C, H, W]"]),
        ({"loss__detach_peer": False}, ["loss.detach_peer must be true", '"sdkd"']),
    ],
    ids=str,
)
def test_impossible_options_are_refused_in_one_sentence(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        MethodRun(**options)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


def test_a_proxy_wants_a_block_for_each_layer() -> None:
    with pytest.raises(ValueError, match=r"blocks .* 2 layers, got 1"):
        ProxyTeacher(nn.Identity(), ["x", "y"], [FusionBlock(1, 1)])


def test_the_needs_of_a_shape_are_asked_for_as_well() -> None:
    class Asking(Scaled):
        needs = Needs(responses=3, source="dropout")

    needs = MethodRun(shapes=lambda config: [Asking(config)]).needs
    assert (needs.responses, needs.source) == (3, "dropout")
    assert set(needs.layers) == set(ROLES)


def test_the_blocks_have_a_learning_rate_of_their_own() -> None:
    assert MethodRun(sdkd__lr=0.03).method.lr == 0.03
