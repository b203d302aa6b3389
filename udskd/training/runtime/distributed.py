"""The processes that train one run: collectives, the failure of a process, and the consensus about stopping."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from udskd.errors import Interrupted, PeerFailed, UdskdError, explain_system_error
from udskd.training.runtime.signals import Stopped, StopRequest

T = TypeVar("T")
GRACE = 20.0
"""Seconds that a process waits for torchrun's SIGTERM after another one failed. torchrun checks every 0.1 s."""
TIMEOUT = datetime.timedelta(minutes=30)
"""The timeout of a collective, for the slowest process. The end of a process is noticed at once."""


@dataclass(frozen=True)
class World:
    """This process among the others. Objects are exchanged by gloo on the CPU, gradients by NCCL on GPUs."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    control: Any = None
    """The process group of gather() and StopConsensus; None in a single process."""
    store: Any = None
    """The key-value store that torchrun keeps for all processes."""

    @staticmethod
    def join() -> World:
        """Join the other processes if torchrun started this one (RANK and WORLD_SIZE are set)."""
        if not os.environ.get("RANK") or not os.environ.get("WORLD_SIZE"):
            return World()
        gradients = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store, rank, ranks = next(rendezvous("env://", timeout=TIMEOUT))
        if os.environ.get("LOCAL_WORLD_SIZE") == str(ranks):  # on several machines the counts of restarts may differ
            # torchrun keeps one store for all restarts: without a prefix, a restarted process finds the addresses of
            # processes that have ended
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(f"udskd/{attempt}", store)  # type: ignore[attr-defined]
        dist.init_process_group(gradients, store=store, rank=rank, world_size=ranks, timeout=TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        return World(rank, ranks, int(os.environ.get("LOCAL_RANK", "0")), control, store)

    def leave(self, failed: bool = False) -> None:
        """Destroy the process groups. Call it on every way out.

        A process that failed keeps its NCCL groups: NCCL would wait there for the other processes, which in turn wait
        for this one in a collective.
        """
        on_gpus = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
        if self.control is not None and dist.is_initialized() and not (failed and on_gpus):
            dist.destroy_process_group()

    @property
    def is_single(self) -> bool:
        return self.control is None

    @property
    def is_rank0(self) -> bool:
        """Whether this process writes the run's files and prints its lines."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The value of each rank (anything that can be pickled), in order. All ranks must call it."""
        if self.is_single:
            return [value]
        values: list[Any] = [None] * self.ranks
        dist.all_gather_object(values, value, group=self.control)
        return values

    def run_on_all_ranks(self, action: Callable[[], T]) -> T:
        """The result of the action. If it fails on one rank it fails on all: on the first failed rank with its own
        error, on the others with PeerFailed. All ranks must call it."""
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

    def report_once(self, error: Exception, stop: StopRequest) -> Exception:
        """The error with which this process ends, so that the processes print the cause of a failure once.

        PeerFailed, with an empty message, where another process prints it: the one that failed, or of several that
        found the same mistake the first. Bugs keep their traceback.
        """
        if self.is_peer_failure(error):
            error = PeerFailed(f"another process of the run has ended ({str(error).splitlines()[0]})")
        elif self._is_mistake(error) and self._is_reported():
            error = PeerFailed(str(error))
        if not isinstance(error, PeerFailed):
            return error
        # torchrun names the process that ends first as the root cause, so this one must not end first. Where no SIGTERM
        # arrives (another launcher, or a broken network without a failed process), the user sees only this message.
        stop.wait(GRACE)
        return PeerFailed("") if stop.requested else error

    def is_peer_failure(self, error: BaseException) -> bool:
        """Whether an exception of a collective only means that another process has ended."""
        return (
            not self.is_single
            and isinstance(error, RuntimeError)
            and not isinstance(error, UdskdError)
            and (isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "Connection closed" in str(error))
        )

    def _is_mistake(self, error: Exception) -> bool:
        """Whether the user can correct the error; all ranks may find the same one."""
        return not self.is_single and isinstance(error, UdskdError) and not isinstance(error, (Interrupted, PeerFailed))

    def _is_reported(self) -> bool:
        """Whether another process has reported a mistake. False with another launcher than torchrun: the store then
        ends with rank 0, and PyTorch prints a C++ trace in every process that reads it later."""
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return False
        return bool(self.store.add("failed", 1) > 1)

    def broadcast_from_rank0(self, tensors: Iterable[Tensor]) -> None:
        """Give all ranks the values of rank 0: batch-norm's running statistics differ between processes."""
        for tensor in () if self.is_single else tensors:
            dist.broadcast(tensor, 0)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all ranks, in one exchange. All ranks must call it, with the same
        shapes."""
        if self.is_single or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1).to(tensors[0].dtype) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.ranks
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


@contextmanager
def joined_processes() -> Iterator[tuple[World, StopRequest]]:
    """The processes that torchrun started, joined within the context; there, a signal is a request to stop.

    An error that all processes find leaves the context as itself in one process, and as PeerFailed in the others.
    """
    world = World.join()
    stop = StopRequest(ignore_repeats=not world.is_single)
    failed = True
    try:
        with stop:
            yield world, stop
        failed = False
    except Exception as error:
        reported = world.report_once(explain_system_error(error), stop)
        if reported is error:
            raise
        raise reported from None
    finally:
        world.leave(failed)


class StopConsensus:
    """Decides after each step, for all ranks alike, whether to stop and whether to save.

    A rank that receives a signal cannot stop alone: the others would block in the next collective. The result of
    one step's all-reduce is read after the next step, so that no step waits for it.
    """

    def __init__(self, world: World, stop: StopRequest) -> None:
        self._world, self._stop = world, stop
        self._pending: tuple[Any, Tensor] | None = None

    def poll_this_rank(self) -> None:
        """Raise Stopped if this process received a signal. For work outside of collectives."""
        self._stop.poll()

    def poll(self, save: bool = False) -> bool:
        """Whether a rank requested a save. Raises Stopped if one received a signal. All ranks must call it equally
        often."""
        if self._world.is_single:
            self._stop.poll()
            return save
        stop, save_now = self._read_pending()
        if stop:
            raise Stopped
        # save_now grants the request of the last call: the same rank must not request a second save
        requests = torch.tensor([self._stop.requested, save and not save_now], dtype=torch.int32)
        work = dist.all_reduce(requests, dist.ReduceOp.MAX, group=self._world.control, async_op=True)
        self._pending = work, requests
        return save_now

    def _read_pending(self) -> tuple[bool, bool]:
        if self._pending is None:
            return False, False
        work, requests = self._pending
        self._pending = None
        work.wait()
        stop, save = requests.tolist()
        return bool(stop), bool(save)
