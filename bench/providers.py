"""Who computes the measured loss: udskd, and what a user would take instead.

Each provider of the table FACTORIES is made for a device and the loss's options, or says why it cannot be.
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
from bench import graph
from bench.problem import CACHES, PASSES, Case, Loss, Problem
from tests.loss.helpers import eager
from udskd.loss import forms
from udskd.loss.functional import Backend

Options = dict[str, Any]


class Unavailable(Exception):
    """Why a provider cannot run here."""


@dataclass(frozen=True)
class Provider:
    name: str
    loss: Loss
    around: Callable[[], AbstractContextManager[None]] = nullcontext  # holds during the forward and the backward pass
    passes: Sequence[str] = PASSES
    overwrites: bool = False  # the students' logits are not the same after a call
    graphs: bool = False  # its memory is a CUDA graph's own, which the allocator's statistics do not show
    caches: Sequence[str] = CACHES
    captured: graph.Replayed | None = None  # of which only the replay is timed, without the host's part

    def runs(self, case: Case) -> bool:
        return case.kind in self.passes and case.cache in self.caches

    def ready(self, problem: Problem, gradients: bool) -> Callable[[], object]:
        """A call whose time counts. torch.autograd.grad adds nothing to the gradients of an earlier one."""

        def call() -> object:
            value = self.loss(*problem)
            return torch.autograd.grad(value, problem.students) if gradients else value

        if self.captured is None:
            return call
        with torch.set_grad_enabled(gradients):
            call()
        return self.captured.replay()


def available(names: Sequence[str], device: str, options: Options) -> tuple[list[Provider], dict[str, str]]:
    """The named providers that can run, and the reasons of the others."""
    found, skipped = [], {}
    for name in names:
        try:
            found.append(FACTORIES[name](name, device, options))
        except Unavailable as reason:
            skipped[name] = str(reason)
    return found, skipped


def forget(chosen: Sequence[Provider]) -> None:
    """Every case starts afresh: torch.compile gives up on a function that it has compiled for too many shapes, and a
    graph keeps the memory of its inputs."""
    for provider in chosen:
        if provider.captured is not None:
            provider.captured.forget()
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
    # Without gradients there is nothing to choose a form for.
    return Provider(name, loss, partial(forms.only, form), passes=("forward+backward",))


def _udskd_graph(name: str, device: str, options: Options) -> Provider:
    """The same as a captured training step has it: without the host's part, and always on the same memory."""
    _only_cuda(device)
    loss = graph.Replayed(_udskd("udskd", device, options).loss)
    return Provider(name, loss, graphs=True, caches=["warm"], captured=loss)


# --- plain PyTorch, as written and compiled --------------------------------------------------------------------------


def _eager(name: str, device: str, options: Options) -> Provider:
    def loss(teacher: Tensor, a: Tensor, b: Tensor, target: Tensor) -> Tensor:
        return eager.dual_student_loss(teacher, a, b, target, **options).loss

    return Provider(name, loss)


def _compiled(options: Options, mode: str | None = None) -> Callable[..., Tensor]:
    """The eager function, compiled as well as a user can: whole, for exactly these shapes. What is only for logs is
    detached, as udskd's is, so that no gradient of it is prepared. "reduce-overhead" copies the logits into its graph's
    memory at each call, as it does wherever they are not its own."""

    def step(teacher: Tensor, a: Tensor, b: Tensor, target: Tensor | None) -> tuple[Tensor, ...]:
        loss, *logged = eager.dual_student_loss(teacher, a, b, target, **options)
        return loss, *(x.detach() for x in logged)

    compiled = torch.compile(step, mode=mode, dynamic=False, fullgraph=True)
    return lambda *inputs: compiled(*inputs)[0]


def _compile(name: str, device: str, options: Options, mode: str | None = None) -> Provider:
    if mode is not None:
        _only_cuda(device)
    return Provider(name, _compiled(options, mode), graphs=mode == "reduce-overhead")


# --- other libraries' kernels: run on CUDA only ----------------------------------------------------------------------


def _liger(name: str, device: str, options: Options) -> Provider:
    """Liger-Kernel's nearest composition: its cross-entropy and its KL divergence of log-probabilities. It has no
    log-softmax and no entropy; those are PyTorch's."""
    _only_cuda(device)
    kernels = _imported("liger_kernel.transformers")
    temperature = options["temperature"]
    cross_entropy = kernels.LigerCrossEntropyLoss(reduction="mean")
    per_class = kernels.LigerKLDIVLoss(reduction="none", log_target=True)  # the teacher's term has a weight in each row
    per_batch = kernels.LigerKLDIVLoss(reduction="batchmean", log_target=True)

    def loss(teacher: Tensor, a: Tensor, b: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            weight, _ = eager.teacher_weight(teacher, options["uncertainty"], "confident", 1.0)
        log_t, log_a, log_b = (torch.log_softmax(x / temperature, -1) for x in (teacher, a, b))
        kd = (weight * (per_class(log_a, log_t).sum(-1) + per_class(log_b, log_t).sum(-1))).mean()
        peers = per_batch(log_a, log_b.detach()) + per_batch(log_b, log_a.detach())
        divergences = temperature**2 * (options["kd_weight"] * kd + options["peer_weight"] * peers)
        # Last, because it overwrites the logits with their gradient.
        return options["ce_weight"] * (cross_entropy(a, target) + cross_entropy(b, target)) + divergences

    return Provider(name, loss, overwrites=True)


def _quack(name: str, device: str, options: Options) -> Provider:
    """QuACK's cross-entropy, and the divergences, for which it has no kernel, compiled."""
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
    except Exception as error:  # whatever a library without its hardware or dependencies raises
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
