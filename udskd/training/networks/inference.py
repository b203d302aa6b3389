"""A trained network for fast inference: batch-norms are folded, weights are cast once, the forward pass is compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from udskd.models.imported import take_logits
from udskd.training.runtime.device import Runtime

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class FrozenNetwork:
    """The forward pass of a network in eval mode, on a copy of its weights."""

    def __init__(
        self,
        module: nn.Module,
        runtime: Runtime,
        dtype: torch.dtype | None = None,
        compiled: bool = False,
        for_autograd: bool = False,
    ) -> None:
        """dtype: of weights, arithmetic and logits; the runtime's by default. for_autograd: computes without
        inference mode, since autograd cannot save the tensors of that mode for a backward pass; a little slower."""
        folded = fold(copy.deepcopy(module).eval().requires_grad_(False))
        self._dtype = runtime.dtype if dtype is None else dtype
        self._module = runtime.place(folded).to(self._dtype)
        self._mode = torch.no_grad if for_autograd else torch.inference_mode
        self._forward: Callable[[Tensor], Tensor] = torch.compile(self._module) if compiled else self._module

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, C] of images [B, 3, S, S], without a gradient."""
        with self._mode():
            return self._forward(images.to(self._dtype))


def fold(module: nn.Module) -> nn.Module:
    """Fold every batch-norm that follows a convolution into that convolution. The logits change by rounding only.

    A network that torch.fx cannot trace is returned unchanged.
    """
    try:
        traced = fx.symbolic_trace(module)
    except Exception:  # tracing raises errors of many types where control flow depends on values
        return module
    if take_logits in module._forward_hooks.values():  # a trace has no hooks
        traced.register_forward_hook(take_logits)
    layers = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(layers[node.target], _NORMS):
            continue
        before = node.args[0]
        if before.op != "call_module" or len(before.users) > 1:
            continue
        convolution = layers[before.target]
        if isinstance(convolution, nn.Conv2d) and _runs_once(traced, before.target, node.target):
            traced.set_submodule(before.target, fuse_conv_bn_eval(convolution, layers[node.target]))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _runs_once(traced: fx.GraphModule, *names: str) -> bool:
    """Whether each of these layers is called exactly once, so that folding one changes no other result."""
    targets = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    return all(targets.count(name) == 1 for name in names)
