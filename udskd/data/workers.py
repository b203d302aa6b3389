"""Who does the loaders' work: processes, threads, or the caller himself. The same requests, the same bits."""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Sampler

from udskd.data.batch import BatchRequest, BatchResult, PartialBatch, Unreadable, Views
from udskd.data.dataset import ImageSet
from udskd.errors import DataError

T = TypeVar("T")
Progress = Callable[[int, int], object]
"""Called with how many of how many images are done."""
Poll = Callable[[], object]
"""Called often; raises to stop."""

"""What data.loader = "auto" stands for with JPEGs and few workers, see `mode`."""
MOST_THREADS = 4
AHEAD = 4
"""Batches that are at work while the first of them is waited for."""
_ROWS = 8


def no_op(*_: object) -> None:
    """A Progress that is not shown, a Poll that never stops."""


class Workers(ABC):
    """Answers requests in their order, some ahead of the answer that is waited for."""

    def prepare(self, progress: Progress = no_op, poll: Poll = no_op) -> None:
        """Whatever takes long and is needed only once; else the first run does it."""
        return

    @abstractmethod
    def run(self, requests: Iterable[BatchRequest]) -> Iterator[BatchResult]:
        """The answers, one run at a time; who stops listening leaves nothing undone.

        Raises:
            DataError: a process died.
        """

    @abstractmethod
    def close(self) -> None:
        """End threads and processes; the next run starts new ones."""


def make_workers(views: Views, loader: str, count: int) -> Workers:
    """`count` processes or threads, as data.loader says; of zero workers, the caller does the work."""
    if count == 0:
        return SerialWorkers(views)
    return (
        ProcessWorkers(views, count)
        if choose_loader(loader, count, views.images) == "processes"
        else ThreadWorkers(views, count)
    )


def choose_loader(loader: str, count: int, images: ImageSet) -> str:
    """The loader that data.loader asks for; for "auto" the faster one of the two that need no room for the whole set.

    Threads save what it takes to hand batches from process to process, a third of the time of a JPEG at 224 pixels. But
    a tenth of that time they hold Python's lock, which the training loop needs as well, and much more for other files.
    """
    if loader != "auto":
        return loader
    return "threads" if count <= MOST_THREADS and images.releases_gil else "processes"


def translate_worker_death(error: Exception) -> Exception:
    """A DataError in the place of what PyTorch raises in the main thread, wherever that is, when a worker is killed;
    any other error as it is."""
    killed = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")
    return _death(error) if killed else error


def _death(error: Exception) -> DataError:
    return DataError(
        f"a process that decodes images died ({' '.join(str(error).split())}): too little memory or shared memory is "
        "the usual cause; use fewer of them (data.workers), threads (data.loader) or a smaller batch"
    )


def in_order(function: Callable[[int], T], numbers: Iterable[int], threads: int) -> Generator[T, None, None]:
    """function(number) of each number in order, by threads (or the caller, of zero) that are a few numbers ahead.

    Close it where the caller may leave early: the garbage collector may run in one of the threads, which cannot wait
    for itself to end.
    """
    if threads == 0:
        yield from map(function, numbers)
        return
    begun: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="udskd-decode")
    try:
        for number in numbers:
            begun.append(pool.submit(function, number))
            if len(begun) > AHEAD * threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class SerialWorkers(Workers):
    """The thread that asks, when it asks."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def run(self, requests: Iterable[BatchRequest]) -> Iterator[BatchResult]:
        return map(self._views.__getitem__, requests)

    def close(self) -> None:
        pass


class ThreadWorkers(Workers):
    """Threads that share the rows of each batch, so that the first is there soon. Decoding frees Python's lock."""

    def __init__(self, views: Views, count: int) -> None:
        self._views, self._count = views, count
        self._pool: ThreadPoolExecutor | None = None

    def run(self, requests: Iterable[BatchRequest]) -> Iterator[BatchResult]:
        begun: deque[tuple[PartialBatch, list[Future[Unreadable]]]] = deque()
        try:
            for request in requests:
                begun.append(self._begin(request))
                if len(begun) >= AHEAD:
                    yield self._finish(*begun.popleft())
            while begun:
                yield self._finish(*begun.popleft())
        finally:
            for _, futures in begun:
                for future in futures:
                    future.cancel()

    def _begin(self, request: BatchRequest) -> tuple[PartialBatch, list[Future[Unreadable]]]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="udskd-decode")
        batch, rows = self._views.begin(request), range(len(request.indices))
        pieces = [rows[k : k + _ROWS] for k in range(0, len(rows), _ROWS)]
        return batch, [self._pool.submit(self._views.fill, batch, piece) for piece in pieces]

    def _finish(self, batch: PartialBatch, futures: list[Future[Unreadable]]) -> BatchResult:
        unreadable: Unreadable = {}
        for future in futures:
            unreadable |= future.result()
        return self._views.finish(batch.request, batch.pixels, unreadable)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


class ProcessWorkers(Workers):
    """Processes that each make whole batches. They stay from run to run."""

    def __init__(self, views: Views, count: int) -> None:
        self._views, self._count = views, count
        self._requests = _RequestSampler()
        self._loader: DataLoader[BatchResult] | None = None

    def run(self, requests: Iterable[BatchRequest]) -> Iterator[BatchResult]:
        self._requests.items = requests
        if self._loader is None:
            self._loader = self._start()
        with self._one_may_die():  # processes start in the caller's thread, for that is told when one dies
            results = iter(self._loader)
        return self._listen(results)

    def _start(self) -> DataLoader[BatchResult]:
        return DataLoader(
            self._views,
            batch_size=None,  # a request is already a batch
            sampler=self._requests,
            num_workers=self._count,
            collate_fn=_identity,
            worker_init_fn=_init_worker,
            persistent_workers=True,
            prefetch_factor=AHEAD,
            generator=torch.Generator(),  # else every epoch would draw a seed from the global generator
        )

    def _listen(self, results: Iterator[BatchResult]) -> Iterator[BatchResult]:
        with self._one_may_die():
            yield from results

    @contextmanager
    def _one_may_die(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ConnectionError, EOFError) as error:
            # The last two are how the queue breaks when a worker dies while it hands over a tensor.
            if isinstance(error, RuntimeError) and (died := translate_worker_death(error)) is error:
                raise
            self.close()
            raise (died if isinstance(error, RuntimeError) else _death(error)) from error

    def close(self) -> None:
        loader, self._loader = self._loader, None
        if loader is None or loader._iterator is None:
            return
        try:
            # To drop it would end them as well, but only when nobody listens any more.
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined]
        except RuntimeError as error:  # PyTorch ends them also when the death of one becomes known meanwhile
            if translate_worker_death(error) is error:
                raise


class _RequestSampler(Sampler[BatchRequest]):
    """The requests of the run that is on."""

    items: Iterable[BatchRequest] = ()

    def __iter__(self) -> Iterator[BatchRequest]:
        return iter(self.items)


def _identity(result: Any) -> Any:
    return result


def _init_worker(_: int) -> None:
    # Ctrl-C reaches every process of the group; the main process decides when the workers stop. SIGTERM, by which
    # Python takes leave of them at exit, ends them without the complaint that a killed worker would cause.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    torch.set_num_threads(1)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(0)
