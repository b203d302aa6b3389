"""A trained network for inference only, as fast as it gets: batch-norm folded, weights cast once, compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from udskd.training.runtime.device import Runtime

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class Frozen:
    """logits(images) of a network in eval mode; its weights are copies, the network itself stays as it is."""

    def __init__(
        self,
        module: nn.Module,
        runtime: Runtime,
        dtype: torch.dtype | None = None,
        compiled: bool = False,
        ordinary: bool = False,
    ) -> None:
        """dtype: of weights, arithmetic and answers; the runtime's by default. ordinary: answers that another network
        can learn from, which costs a little (those of inference mode cannot be saved for its backward pass)."""
        folded = fold(copy.deepcopy(module).eval().requires_grad_(False))
        self._dtype = runtime.dtype if dtype is None else dtype
        self._module = runtime.place(folded).to(self._dtype)
        self._mode = torch.no_grad if ordinary else torch.inference_mode
        self._forward: Callable[[Tensor], Tensor] = torch.compile(self._module) if compiled else self._module

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, C] of images [B, 3, S, S], without a gradient."""
        with self._mode():
            return self._forward(images.to(self._dtype))


def fold(module: nn.Module) -> nn.Module:
    """The network with every batch-norm that follows a convolution folded into it; unchanged where it cannot be traced.

    Its answers differ from the unfolded network's by rounding.
    """
    try:
        traced = fx.symbolic_trace(module)
    except Exception:  # control flow that depends on values, in whatever way the network does it
        return module
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
    """Whether layers are used in a single place each, so that changing them changes nothing else."""
    targets = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    return all(targets.count(name) == 1 for name in names)
