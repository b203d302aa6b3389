"""Workers that make batches: processes, threads, or the calling thread itself. All of them give the same bits."""

from __future__ import annotations

import os
import re
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
"""Called with the number of images that are done and the number of all."""
Poll = Callable[[], object]
"""Called often; raises an exception to stop the work."""

MOST_THREADS = 4
"""Up to this number of workers, data.loader = "auto" means threads for JPEGs, see `choose_loader`."""
AHEAD = 4
"""Batches that are made at the same time, including the one that the caller waits for."""
_EXHAUSTED = re.compile(
    "shared memory|No space left|allocate memory|not enough memory|MemoryError|Too many open files", re.IGNORECASE
)
_ROWS = 8
"""Images that a thread decodes before it takes the next ones."""


def no_op(*_: object) -> None:
    """A Progress that shows nothing, a Poll that never stops."""


class Workers(ABC):
    """Makes the batches of requests in order, some of them ahead of the one that the caller waits for."""

    def prepare(self, progress: Progress = no_op, poll: Poll = no_op) -> None:
        """Do slow work that is needed once; otherwise the first run does it."""
        return

    @abstractmethod
    def run(self, requests: Iterable[BatchRequest]) -> Iterator[BatchResult]:
        """The results of the requests. Only one run can be active; it can be left before its end.

        Raises:
            DataError: a worker process died.
        """

    @abstractmethod
    def close(self) -> None:
        """End threads and processes; the next run starts them again."""


def make_workers(views: Views, loader: str, count: int) -> Workers:
    """`count` processes or threads, according to data.loader; with 0 workers, the calling thread does the work."""
    if count == 0:
        return SerialWorkers(views)
    is_processes = choose_loader(loader, count, views.images) == "processes"
    return ProcessWorkers(views, count) if is_processes else ThreadWorkers(views, count)


def choose_loader(loader: str, count: int, images: ImageSet) -> str:
    """data.loader itself; for "auto" the faster one of threads and processes, which need no memory for the whole set.

    Threads do not pass batches from process to process, which takes a third of the time of a JPEG at 224 pixels. But
    they hold the GIL, which the training loop needs too, for a tenth of that time, and much longer for other formats.
    """
    if loader != "auto":
        return loader
    return "threads" if count <= MOST_THREADS and images.releases_gil else "processes"


def translate_worker_death(error: Exception) -> Exception:
    """A DataError in place of the error that PyTorch's signal handler raises in the main thread, at any point of its
    code, when a worker is killed; any other error unchanged."""
    killed = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")
    return _worker_died(error) if killed else error


def _is_exhausted(error: Exception) -> bool:
    """Whether an error that a worker passed on, with its traceback as the text, is about memory, files or disks."""
    return "in DataLoader worker process" in str(error) and _EXHAUSTED.search(_last_line(error)) is not None


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]


def _worker_died(error: Exception) -> DataError:
    reason = " ".join(_last_line(error).split())
    return DataError(
        f"a process that decodes images died ({reason}): too little memory or shared memory is the usual cause; "
        "use fewer of them (data.workers), threads (data.loader) or a smaller batch"
    )


def in_order(function: Callable[[int], T], numbers: Iterable[int], threads: int) -> Generator[T, None, None]:
    """function(number) of each number in order, by threads that work ahead; with 0 threads, by the calling thread.

    Close the generator if it may be left early: the garbage collector may close it in one of its own threads, which
    cannot wait for itself to end.
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
    """The calling thread makes each batch when it is requested."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def run(self, requests: Iterable[BatchRequest]) -> Iterator[BatchResult]:
        return map(self._views.__getitem__, requests)

    def close(self) -> None:
        pass


class ThreadWorkers(Workers):
    """Threads that divide the rows of each batch among them, so that the first batch is soon complete."""

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
    """Processes that each make whole batches. They persist from run to run."""

    def __init__(self, views: Views, count: int) -> None:
        self._views, self._count = views, count
        self._requests = _RequestSampler()
        self._loader: DataLoader[BatchResult] | None = None

    def run(self, requests: Iterable[BatchRequest]) -> Iterator[BatchResult]:
        self._requests.items = requests
        if self._loader is None:
            self._loader = self._start()
        with self._worker_errors():
            # Not in the generator: the processes must start in the caller's thread, to which PyTorch reports a death.
            results = iter(self._loader)
        return self._receive(results)

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

    def _receive(self, results: Iterator[BatchResult]) -> Iterator[BatchResult]:
        with self._worker_errors():
            yield from results

    @contextmanager
    def _worker_errors(self) -> Iterator[None]:
        """Closes the workers and raises DataError if one of them dies."""
        try:
            yield
        except (RuntimeError, OSError, MemoryError, EOFError) as error:
            # The queue raises ConnectionError or EOFError if a worker dies while it passes on a tensor.
            died = translate_worker_death(error)
            if isinstance(error, (ConnectionError, EOFError)) or _is_exhausted(error):
                died = _worker_died(error)
            if died is error:
                raise
            self.close()
            raise died from error

    def close(self) -> None:
        loader, self._loader = self._loader, None
        if loader is None or loader._iterator is None:
            return
        try:
            # Deleting the iterator would end them too, but only once nothing else refers to it.
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined]
        except RuntimeError as error:  # of a worker that died; PyTorch ends the others all the same
            if translate_worker_death(error) is error:
                raise


class _RequestSampler(Sampler[BatchRequest]):
    """The requests of the active run."""

    items: Iterable[BatchRequest] = ()

    def __iter__(self) -> Iterator[BatchRequest]:
        return iter(self.items)


def _identity(result: Any) -> Any:
    return result


def _init_worker(_: int) -> None:
    # Ctrl-C and the end of a terminal reach every process of the group, but the main process decides when the workers
    # stop. Python sends SIGTERM to the workers when it exits: os._exit avoids PyTorch's error about a killed worker.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_at_once)
    torch.set_num_threads(1)


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    os._exit(0)
