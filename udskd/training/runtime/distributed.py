"""The processes that train one run together, under torchrun; or one process alone."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from udskd.errors import Interrupted, PeerFailed, UdskdError
from udskd.training.runtime.signals import Stopped, StopRequest

T = TypeVar("T")
GRACE = 20.0  # seconds
PARTING = 3.0  # seconds that the others have to come and find a failure told, where the first process keeps the store
PATIENCE = datetime.timedelta(minutes=30)  # for the slowest of the others; a process that dies is noticed at once


@dataclass(frozen=True)
class World:
    """Who takes part. Processes agree over gloo, on the CPU; gradients travel by what suits their device."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    control: Any = None
    """The process group of gather() and vote(); None alone."""
    store: Any = None
    """Where the processes met."""

    @staticmethod
    def join() -> World:
        """Meet the others if torchrun (or whoever set RANK and WORLD_SIZE) started us, else stay alone."""
        if not os.environ.get("RANK") or not os.environ.get("WORLD_SIZE"):
            return World()
        gradients = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store, rank, ranks = next(rendezvous("env://", timeout=PATIENCE))
        if os.environ.get("LOCAL_WORLD_SIZE") == str(ranks):  # across machines the counts of restarts may differ
            # torchrun keeps one store for all its attempts, with the addresses of processes that are dead by now
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(f"udskd/{attempt}", store)  # type: ignore[attr-defined]
        dist.init_process_group(gradients, store=store, rank=rank, world_size=ranks, timeout=PATIENCE)
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        return World(rank, ranks, int(os.environ.get("LOCAL_RANK", "0")), control, store)

    def leave(self, failed: bool = False) -> None:
        """Part from the others; call it on every way out.

        NCCL takes leave only of processes that do so too: one that failed alone would wait for them, and they for it.
        """
        on_gpus = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
        if self.control is not None and dist.is_initialized() and not (failed and on_gpus):
            dist.destroy_process_group()

    @property
    def is_single(self) -> bool:
        return self.control is None

    @property
    def is_rank0(self) -> bool:
        """Whether this process writes the run's files and speaks for all."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Everybody's value (anything that can be pickled), by rank. All must call it."""
        if self.is_single:
            return [value]
        values: list[Any] = [None] * self.ranks
        dist.all_gather_object(values, value, group=self.control)
        return values

    def run_on_all_ranks(self, action: Callable[[], T]) -> T:
        """Do it everywhere. If it fails anywhere it fails everywhere: with its own error in one process, by PeerFailed
        in the others, so that a mistake is told once."""
        error: Exception | None = None
        try:
            result = action()
        except Exception as caught:
            if self.is_single:
                raise
            error = caught
        failed = [rank for rank, bad in enumerate(self.gather(error is not None)) if bad]
        if failed and failed[0] == self.rank and error is not None:
            raise error
        if failed:
            raise PeerFailed(f"process {failed[0]} of the run failed")
        return result

    def told(self, error: Exception, stop: StopRequest) -> Exception:
        """The error as this process tells it: what all processes find is told by the first, and PeerFailed in others.

        These wait a little, for as soon as one process has ended torchrun ends all, also the one that is to speak.
        """
        if self.failed_elsewhere(error):
            error = PeerFailed(f"another process of the run has ended ({str(error).splitlines()[0]})")
        elif not self.is_single and isinstance(error, UdskdError) and not isinstance(error, (Interrupted, PeerFailed)):
            with contextlib.suppress(RuntimeError):  # if the store is gone, its process has failed before us
                if self.store.add("failed", 1) == 1:
                    self._wait_to_be_heard(stop)
                    return error
            error = PeerFailed(str(error))
        if isinstance(error, PeerFailed):
            stop.wait(GRACE)
            error = PeerFailed("") if stop.requested else error  # in the first case there is nothing more to say
        return error

    def _wait_to_be_heard(self, stop: StopRequest) -> None:
        """Without torchrun the store ends with the first process, of which the others would complain at length."""
        if not self.is_rank0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return
        end = time.monotonic() + PARTING
        with contextlib.suppress(RuntimeError):
            while self.store.add("failed", 0) < self.ranks and time.monotonic() < end and not stop.requested:
                stop.wait(0.05)

    def broadcast_from_rank0(self, tensors: Iterable[Tensor]) -> None:
        """Everybody gets rank 0's values: batch-norm's running statistics differ between processes."""
        for tensor in () if self.is_single else tensors:
            dist.broadcast(tensor, 0)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Everybody gets the mean of all processes' values, in one exchange. All must call it, with the same shapes."""
        if self.is_single or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1).to(tensors[0].dtype) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.ranks
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def failed_elsewhere(self, error: BaseException) -> bool:
        """Whether an exception only says that another process of the run has gone."""
        return (
            not self.is_single
            and isinstance(error, RuntimeError)
            and not isinstance(error, UdskdError)
            and (isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "Connection closed" in str(error))
        )


class StopConsensus:
    """Asks after each step, in all processes, whether to stop, and whether to save.

    Who is told to stop cannot just do so: the others would wait for it. The answer to one step's question is looked at
    after the next step, so that nobody waits for that either.
    """

    def __init__(self, world: World, stop: StopRequest) -> None:
        self._world, self._stop = world, stop
        self._pending: tuple[Any, Tensor] | None = None

    def poll_here(self) -> None:
        """Raise Stopped if this process is told to stop: where the others need not agree, since they do not wait."""
        self._stop.poll()

    def poll(self, save: bool = False) -> bool:
        """Whether somebody wants to save. Raises Stopped if somebody wants to stop. All must call it equally often."""
        if self._world.is_single:
            self._stop.poll()
            return save
        stop, save_now = self._answer()
        if stop:
            raise Stopped
        wishes = torch.tensor([self._stop.requested, save and not save_now], dtype=torch.int32)
        work = dist.all_reduce(wishes, dist.ReduceOp.MAX, group=self._world.control, async_op=True)
        self._pending = work, wishes
        return save_now

    def _answer(self) -> tuple[bool, bool]:
        if self._pending is None:
            return False, False
        work, wishes = self._pending
        self._pending = None
        work.wait()
        stop, save = wishes.tolist()
        return bool(stop), bool(save)
