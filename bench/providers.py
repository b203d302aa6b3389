"""Implementations of the measured loss: udskd's backends and forms, plain PyTorch, and other libraries' kernels.

FACTORIES makes each provider for a device and the loss's options; a factory raises Unavailable where it cannot run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

import udskd
from bench import cuda_graph
from bench.workload import CACHES, PASSES, Case, Loss, Workload
from tests.loss.helpers import eager, forms
from udskd.loss.functional import Backend

Options = dict[str, Any]


class Unavailable(Exception):
    """A provider cannot run on this machine; the message is the reason."""


@dataclass(frozen=True)
class Provider:
    name: str
    loss: Loss
    context: Callable[[], AbstractContextManager[None]] = nullcontext  # around the forward and the backward pass
    passes: Sequence[str] = PASSES
    overwrites_logits: bool = False  # a call changes the students' logits
    uses_cuda_graph: bool = False  # the graph has memory of its own, which the allocator's statistics do not show
    caches: Sequence[str] = CACHES
    graphed: cuda_graph.GraphedLoss | None = None  # if given, only its replay is timed, without the host's part

    def supports(self, case: Case) -> bool:
        return case.kind in self.passes and case.cache in self.caches

    def prepare(self, workload: Workload, gradients: bool) -> Callable[[], object]:
        """The call that is timed. It uses torch.autograd.grad, since backward() would also accumulate into .grad."""

        def call() -> object:
            value = self.loss(*workload)
            return torch.autograd.grad(value, workload.students) if gradients else value

        if self.graphed is None:
            return call
        with torch.set_grad_enabled(gradients):
            call()
        return self.graphed.replay()


def available(names: Sequence[str], device: str, options: Options) -> tuple[list[Provider], dict[str, str]]:
    """The named providers that can run, and why the others cannot."""
    found, skipped = [], {}
    for name in names:
        try:
            found.append(FACTORIES[name](name, device, options))
        except Unavailable as reason:
            skipped[name] = str(reason)
    return found, skipped


def reset(chosen: Sequence[Provider]) -> None:
    """Drops compiled functions and graphs before the next case: torch.compile no longer compiles a function after too
    many shapes, and a graph keeps the memory of its inputs."""
    for provider in chosen:
        if provider.graphed is not None:
            provider.graphed.release()
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


# --- this project ----------------------------------------------------------------------------------------------------


def _udskd(name: str, device: str, options: Options, form: forms.Form = "auto", backend: Backend = "auto") -> Provider:
    def loss(teacher: Tensor, a: Tensor, b: Tensor, target: Tensor) -> Tensor:
        return udskd.dual_student_loss(teacher, a, b, target, backend=backend, **options).loss

    if backend == "auto" and (reason := udskd.build_info()["backends"][device]):
        raise Unavailable(reason)
    if form == "auto":
        return Provider(name, loss)
    # The forms differ only in how they compute gradients.
    return Provider(name, loss, partial(forms.only, form), passes=("forward+backward",))


def _udskd_graph(name: str, device: str, options: Options) -> Provider:
    """The loss in a captured training step: without the host's part, and always on the same memory."""
    _only_cuda(device)
    loss = cuda_graph.GraphedLoss(_udskd("udskd", device, options).loss)
    return Provider(name, loss, uses_cuda_graph=True, caches=["warm"], graphed=loss)


# --- plain PyTorch, as written and compiled --------------------------------------------------------------------------


def _eager(name: str, device: str, options: Options) -> Provider:
    def loss(teacher: Tensor, a: Tensor, b: Tensor, target: Tensor) -> Tensor:
        return eager.dual_student_loss(teacher, a, b, target, **options).loss

    return Provider(name, loss)


def _compiled(options: Options, mode: str | None = None) -> Callable[..., Tensor]:
    """The eager function, compiled with the fastest settings: as one graph, for static shapes.

    The outputs that are only logged are detached, as udskd's are, so that torch.compile prepares no gradients for them.
    "reduce-overhead" copies the logits into its graph's memory at each call, since it does not own their memory.
    """

    def step(teacher: Tensor, a: Tensor, b: Tensor, target: Tensor | None) -> tuple[Tensor, ...]:
        loss, *logged = eager.dual_student_loss(teacher, a, b, target, **options)
        return loss, *(x.detach() for x in logged)

    compiled = torch.compile(step, mode=mode, dynamic=False, fullgraph=True)
    return lambda *inputs: compiled(*inputs)[0]


def _compile(name: str, device: str, options: Options, mode: str | None = None) -> Provider:
    if mode is not None:
        _only_cuda(device)
    return Provider(name, _compiled(options, mode), uses_cuda_graph=mode == "reduce-overhead")


# --- other libraries' kernels, on CUDA only --------------------------------------------------------------------------


def _liger(name: str, device: str, options: Options) -> Provider:
    """The loss composed of Liger-Kernel's cross-entropy and KL divergence; log-softmax and entropy, which it does not
    have, are PyTorch's."""
    _only_cuda(device)
    kernels = _imported("liger_kernel.transformers")
    temperature = options["temperature"]
    cross_entropy = kernels.LigerCrossEntropyLoss(reduction="mean")
    per_class = kernels.LigerKLDIVLoss(
        reduction="none", log_target=True
    )  # the teacher's term has a weight for each row
    per_batch = kernels.LigerKLDIVLoss(reduction="batchmean", log_target=True)

    def loss(teacher: Tensor, a: Tensor, b: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            weight, _ = eager.teacher_weight(teacher, options["uncertainty"], "confident", 1.0)
        log_t, log_a, log_b = (torch.log_softmax(x / temperature, -1) for x in (teacher, a, b))
        kd = (weight * (per_class(log_a, log_t).sum(-1) + per_class(log_b, log_t).sum(-1))).mean()
        peers = per_batch(log_a, log_b.detach()) + per_batch(log_b, log_a.detach())
        divergences = temperature**2 * (options["kd_weight"] * kd + options["peer_weight"] * peers)
        # The cross-entropy comes last because it overwrites the logits with their gradient.
        return options["ce_weight"] * (cross_entropy(a, target) + cross_entropy(b, target)) + divergences

    return Provider(name, loss, overwrites_logits=True)


def _quack(name: str, device: str, options: Options) -> Provider:
    """QuACK's cross-entropy, and torch.compile for the divergences, for which QuACK has no kernel."""
    _only_cuda(device)
    cross_entropy = _imported("quack.cross_entropy").cross_entropy
    divergences = _compiled(options)

    def loss(teacher: Tensor, a: Tensor, b: Tensor, target: Tensor) -> Tensor:
        ce = cross_entropy(a, target, reduction="mean") + cross_entropy(b, target, reduction="mean")
        return options["ce_weight"] * ce + divergences(teacher, a, b, None)

    return Provider(name, loss)


def _only_cuda(device: str) -> None:
    if device != "cuda":
        raise Unavailable("only for CUDA")


def _imported(module: str) -> Any:
    try:
        return import_module(module)
    except Exception as error:  # libraries raise various types without their hardware or dependencies
        raise Unavailable(f"cannot be imported ({error})") from None


FACTORIES: dict[str, Callable[[str, str, Options], Provider]] = {
    "eager": _eager,
    "compile": _compile,
    "compile-reduce-overhead": partial(_compile, mode="reduce-overhead"),
    "compile-max-autotune-no-cudagraphs": partial(_compile, mode="max-autotune-no-cudagraphs"),
    "liger": _liger,
    "quack": _quack,
    "udskd": _udskd,
    "udskd-fused": partial(_udskd, form="fused"),
    "udskd-recompute": partial(_udskd, form="recompute"),
    "udskd-graph": _udskd_graph,
    "reference": partial(_udskd, backend="reference"),
}
DEFAULT = [name for name in FACTORIES if name != "reference"]
