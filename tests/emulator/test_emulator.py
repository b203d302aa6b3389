"""The emulator on which the tests of the CUDA kernels rely: it computes the same as a GPU in any order of threads, and
reports mistakes that have no visible effect on a GPU."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.loss.helpers.emulated_build import alone, cuda_headers

HERE = Path(__file__).parent
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{HERE}")
SANITIZERS = ("-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
ORDERS = (0, 1, 2, 3)
DEVICE = {"sms": 4, "capability": 90, "shared": 232448, "l2": 50 << 20}


def reason() -> str:
    """Why the emulator cannot run here, or an empty string."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "the emulator is for Linux on x86-64"
    if not shutil.which("g++"):
        return "no g++"
    return "" if cuda_headers() else "no CUDA headers"


pytestmark = [pytest.mark.emulated, pytest.mark.skipif(bool(reason()), reason=reason())]


def compiler(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["g++", *FLAGS, "-isystem", str(cuda_headers()), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def build(folder: Path, kernels: str, *flags: str) -> Path:
    """The path of a library of the emulator and the kernels that match `kernels`."""

    def compile_one(source: Path) -> Path:
        to = folder / f"{source.name}.o"
        done = compiler(*flags, "-x", "c++", "-c", source, "-o", to)
        assert done.returncode == 0, done.stderr
        return to

    with ThreadPoolExecutor(2) as pool:
        objects = list(
            pool.map(compile_one, [*sorted(HERE.glob("*.cpp")), *sorted(HERE.glob(f"kernels/{kernels}.cu"))])
        )
    library = folder / "kernels.so"
    done = compiler(*flags, "-shared", *objects, "-o", library)
    assert done.returncode == 0, done.stderr
    return library


def build_once(factory: pytest.TempPathFactory, name: str, kernels: str, *flags: str) -> Path:
    """The library of a session, which one of pytest-xdist's workers builds for all."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with alone(folder / "lock"):
        library = folder / "kernels.so"
        return library if library.exists() else build(folder, kernels, *flags)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_once(tmp_path_factory, "emulator", "*")


def runtime(name: str) -> str:
    """The path of a library that comes with the compiler, or only its name if there is none."""
    return subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not Path(runtime("libasan.so")).is_absolute():
        pytest.skip("no AddressSanitizer")
    return build_once(tmp_path_factory, "sanitized", "[mr]*", *SANITIZERS)  # mistakes, reductions


class Library:
    """Calls functions of a library with arrays as pointers."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))

    def __call__(self, name: str, *arguments: Any) -> int:
        return int(self._function(name)(*map(self._converted, arguments)))

    def text(self, name: str, *arguments: Any) -> str:
        function = self._function(name)
        function.restype = ctypes.c_char_p
        return str(function(*map(self._converted, arguments)).decode())

    def log(self) -> list[str]:
        text = ctypes.create_string_buffer(self("emulator_log", None, 0))
        self("emulator_log", text, len(text))
        return text.value.decode().splitlines()

    def _function(self, name: str) -> Any:
        return self.library[name]

    @staticmethod
    def _converted(x: Any) -> Any:
        return x.ctypes.data_as(ctypes.c_void_p) if isinstance(x, np.ndarray) else x


@pytest.fixture
def gpu(built: Path) -> Iterator[Library]:
    library = Library(built)
    yield library
    library("emulator_order", 0)
    for name, value in DEVICE.items():
        library("emulator_device", name.encode(), value)
    library.text("get_error")


def numbers(*shape: int) -> np.ndarray:
    """Integers as float32, whose sums are exact in any order."""
    return np.random.default_rng(0).integers(-100, 100, shape).astype(np.float32)


in_every_order = pytest.mark.parametrize("order", ORDERS)


# --- results ----------------------------------------------------------------------------------------------------------


@in_every_order
def test_a_block_adds_up_through_shuffles_and_shared_memory(gpu: Library, order: int) -> None:
    x, sums = numbers(10, 1000), np.zeros(10, np.float32)
    gpu("emulator_order", order)
    gpu("run_row_sums", x, sums, 10, 1000, 3, 1)
    np.testing.assert_array_equal(sums, x.sum(1))


@in_every_order
@pytest.mark.parametrize("cluster", [1, 2, 8])
def test_a_cluster_adds_up_through_mapped_shared_memory(gpu: Library, order: int, cluster: int) -> None:
    x, sums = numbers(5, 1000), np.zeros(5 * cluster, np.float32)
    gpu("emulator_order", order)
    gpu("run_cluster_sums", x, sums, 5, 1000, cluster)
    np.testing.assert_array_equal(sums, x.sum(1).repeat(cluster))


@in_every_order
def test_the_last_block_finds_what_the_others_left(gpu: Library, order: int) -> None:
    x, partial, tickets, total = numbers(5000), np.zeros(30, np.float32), np.zeros(1, np.uint32), numbers(1)
    gpu("emulator_order", order)
    for _ in range(2):  # tickets start again by themselves
        gpu("run_ticket_sum", x, partial, tickets, total, x.size, partial.size)
        assert total[0] == x.sum()
        total[0] = 0


@in_every_order
def test_blocks_of_a_cooperative_group_wait_for_each_other(gpu: Library, order: int) -> None:
    x, sums = np.arange(12, dtype=np.int32), np.zeros(12, np.int32)
    gpu("emulator_order", order)
    gpu("run_group_sums", x, np.zeros(12, np.int32), np.zeros(12, np.uint32), sums, 12, 4)
    np.testing.assert_array_equal(sums, x.reshape(3, 4).sum(1).repeat(4))


@in_every_order
def test_each_part_of_a_warp_goes_its_own_way(gpu: Library, order: int) -> None:
    out = np.zeros(32)
    gpu("emulator_order", order)
    gpu("run_halves", out)
    np.testing.assert_array_equal(out, np.repeat([sum(range(16)), 31.0], 16))


@pytest.mark.parametrize("width", [1, 4, 32])
@pytest.mark.parametrize("by", [0, 1, 3, 5, 31])
def test_shuffles_take_from_the_lane_that_cuda_says(gpu: Library, by: int, width: int) -> None:
    out = np.zeros((4, 32), np.float32)
    gpu("run_shuffles", out, by, width)
    lane = np.arange(32)
    first, last = lane - lane % width, lane - lane % width + width - 1
    np.testing.assert_array_equal(out[0], first + by % width)
    np.testing.assert_array_equal(out[1], np.where(lane - by >= first, lane - by, lane))
    np.testing.assert_array_equal(out[2], np.where(lane + by <= last, lane + by, lane))
    np.testing.assert_array_equal(out[3], np.where(lane ^ by <= last, lane ^ by, lane))


@pytest.mark.parametrize("kind", ["some", "none", "all"])
def test_votes_and_reductions_take_in_every_lane(gpu: Library, kind: str) -> None:
    x = np.random.default_rng(1).integers(-9, 9, 32).astype(np.int32)
    x = {"some": x, "none": -abs(x), "all": abs(x) + 1}[kind]
    out = np.zeros((10, 32), np.uint32)
    gpu("run_votes", x, out)
    ballot = sum(1 << lane for lane in range(32) if x[lane] > 0)
    expected = [ballot, (x > 0).any(), (x > 0).all(), x.sum(), x.max(), x.min(), x.view(np.uint32).max()]
    expected += [(x > 0).sum(), (x > 0).any(), (x > 0).all()]
    for row, value in zip(out, expected, strict=True):
        assert set(row) == {int(value) % 2**32}


def test_atomics_lose_nothing(gpu: Library) -> None:
    totals = np.zeros(1, np.dtype("i4, i4, i4, u4, u4, f4, f8, u8"))  # in the order of Totals
    gpu("run_atomics", totals)
    assert totals[0].tolist() == (800, 799, -799, 0, 1600, 800, 400, 800 << 32)


def test_threads_and_blocks_are_numbered_in_three_dimensions(gpu: Library) -> None:
    out = np.zeros((24, 30), np.int32)
    gpu("run_indices", out)
    np.testing.assert_array_equal(out, np.arange(24)[:, None] * 1000 + np.arange(30))


# --- 2^x as accurate as the hardware's --------------------------------------------------------------------------------


def powers(gpu: Library, x: np.ndarray) -> np.ndarray:
    y = np.zeros_like(x)
    gpu("run_powers", x, y, x.size)
    return y


def test_powers_of_two_are_as_far_off_as_the_hardware_s(gpu: Library) -> None:
    x = np.random.default_rng(0).uniform(-126, 128, 100000).astype(np.float32)
    exact = np.exp2(x.astype(np.float64))
    units = abs(powers(gpu, x) - exact) / np.exp2(np.floor(x) - 23)
    assert 1.3 < units.max() <= 1.41
    assert 0.65 < (units <= 0.5).mean() < 0.85
    np.testing.assert_array_equal(powers(gpu, x), powers(gpu, x))


def test_powers_of_two_are_exact_at_integers_and_flushed_below_the_normal_numbers(gpu: Library) -> None:
    whole = np.arange(-126, 128, dtype=np.float32)
    np.testing.assert_array_equal(powers(gpu, whole), np.ldexp(1.0, whole.astype(int)))
    special = np.array([-126.001, -1000, -np.inf, 128, np.inf, np.nan, 1e-40, -1e-30], np.float32)
    np.testing.assert_array_equal(powers(gpu, special), [0, 0, 0, np.inf, np.inf, np.nan, 1, 1])


# --- the order in which threads run -----------------------------------------------------------------------------------


def test_threads_run_in_order_in_reverse_or_shuffled(gpu: Library) -> None:
    seen = []
    for order in (0, 1, 2, 2, 3):
        out = np.zeros(256, np.uint32)
        gpu("emulator_order", order)
        gpu("run_arrivals", out, 1, 256)
        seen.append(out.tolist())
    assert seen[0] == list(range(256))
    assert seen[1] == seen[0][::-1]
    assert seen[2] == seen[3] != seen[4]
    assert all(sorted(shuffled) == seen[0] and shuffled not in seen[:2] for shuffled in seen[2:])


def test_blocks_run_in_order_in_reverse_or_shuffled(gpu: Library) -> None:
    slopes = []
    for order in (0, 1, 2):
        out = np.zeros(1000, np.uint32)
        gpu("emulator_order", order)
        gpu("run_arrivals", out, 1000, 1)
        slopes.append(np.corrcoef(out, np.arange(1000))[0, 1])
    assert slopes[0] > 0.9  # not 1: two cores share them
    assert slopes[1] < -0.9
    assert abs(slopes[2]) < 0.5


# --- launches ---------------------------------------------------------------------------------------------------------


def test_a_launch_copies_its_arguments(gpu: Library) -> None:
    to = np.zeros(1, np.int32)
    for x in (1, 20):
        assert gpu.text("run_add", to, x, 3, 32, ctypes.c_longlong(0)) == "cudaSuccess"
    assert to[0] == 63


REFUSED = [
    ((0, 32, 0), "cudaErrorInvalidConfiguration"),
    ((1, 0, 0), "cudaErrorInvalidConfiguration"),
    ((1, 1025, 0), "cudaErrorInvalidConfiguration"),
    ((1, 32, 300 << 10), "cudaErrorInvalidValue"),
]


@pytest.mark.parametrize(("shape", "error"), REFUSED)
def test_a_launch_beyond_the_limits_does_not_run(gpu: Library, shape: tuple[int, int, int], error: str) -> None:
    to = np.zeros(1, np.int32)
    assert gpu.text("run_add", to, 1, *shape[:2], ctypes.c_longlong(shape[2])) == error
    assert to[0] == 0


def test_shared_memory_beyond_48_kib_is_asked_for_first(gpu: Library) -> None:
    to, bytes_ = np.zeros(1, np.int32), 100 << 10
    assert gpu.text("allow_shared", 48 << 10) == "cudaSuccess"
    assert gpu.text("run_add", to, 1, 1, 32, ctypes.c_longlong(bytes_)) == "cudaErrorInvalidValue"
    assert gpu.text("allow_shared", bytes_) == "cudaSuccess"
    assert gpu.text("run_add", to, 1, 1, 32, ctypes.c_longlong(bytes_)) == "cudaSuccess"
    assert gpu.text("run_other", to, bytes_) == "cudaErrorInvalidValue"  # each kernel for itself
    assert gpu.text("allow_shared", DEVICE["shared"] + 1) == "cudaErrorInvalidValue"
    assert to[0] == 1


@pytest.mark.parametrize(("grid", "cluster", "capability", "error"), [
    (8, 8, 90, "cudaSuccess"),
    (8, 8, 80, "cudaErrorNotSupported"),
    (8, 3, 90, "cudaErrorInvalidClusterSize"),
    (16, 16, 90, "cudaErrorInvalidClusterSize"),
])  # fmt: skip
def test_clusters_have_limits(gpu: Library, grid: int, cluster: int, capability: int, error: str) -> None:
    to = np.zeros(1, np.int32)
    gpu("emulator_device", b"capability", capability)
    assert gpu.text("run_add_in_clusters", to, grid, cluster) == error
    assert to[0] == (2 * grid if error == "cudaSuccess" else 0)


def test_sixteen_blocks_make_a_cluster_where_that_was_allowed(gpu: Library) -> None:
    to = np.zeros(1, np.int32)
    gpu.text("allow_large_clusters", 1)
    assert gpu.text("run_add_in_clusters", to, 16, 16) == "cudaSuccess"
    gpu.text("allow_large_clusters", 0)
    assert gpu.text("run_add_in_clusters", to, 16, 16) == "cudaErrorInvalidClusterSize"
    assert to[0] == 32


def test_a_cooperative_launch_fits_on_the_device_at_once(gpu: Library) -> None:
    to = np.zeros(1, np.int32)
    assert gpu.text("run_cooperatively", to, 8) == "cudaSuccess"  # 4 multiprocessors with 2048 threads
    assert gpu.text("run_cooperatively", to, 9) == "cudaErrorCooperativeLaunchTooLarge"
    assert to[0] == 8 * 1024


def test_an_error_stays_until_it_is_taken(gpu: Library) -> None:
    with_error = np.zeros(1, np.int32)
    assert gpu.text("peek_error") == "cudaSuccess"
    gpu.text("allow_shared", 1 << 30)
    assert gpu.text("peek_error") == gpu.text("get_error") == "cudaErrorInvalidValue"
    assert gpu.text("get_error") == gpu.text("run_other", with_error, 0) == "cudaSuccess"


def test_the_device_is_what_the_tests_want_it_to_be(gpu: Library) -> None:
    wanted = {"sms": (16, 7), "capability": (75, 86), "shared": (97, 99 << 10), "l2": (38, 6 << 20)}
    for name, (_, value) in wanted.items():
        gpu("emulator_device", name.encode(), value)
    assert [gpu("attribute", which) for which, _ in wanted.values()] == [7, 8, 99 << 10, 6 << 20]
    assert gpu("attribute", 76) == 6  # the minor capability


def test_occupancy_follows_threads_and_shared_memory(gpu: Library) -> None:
    gpu.text("allow_shared", DEVICE["shared"])
    assert [gpu("occupancy", threads, 0) for threads in (32, 256, 1024, 1025)] == [32, 8, 2, 0]
    assert [gpu("occupancy", 32, kib << 10) for kib in (10, 100, 227, 228)] == [20, 2, 1, 0]


# --- the stream -------------------------------------------------------------------------------------------------------


def test_what_is_captured_runs_when_it_is_replayed(gpu: Library) -> None:
    to = np.array([7], np.int32)
    gpu("emulator_capture_begin")
    gpu("clear", to, 4)
    gpu.text("run_add", to, 5, 2, 32, ctypes.c_longlong(0))
    assert gpu("emulator_capture_end") == 2
    assert to[0] == 7
    for _ in range(2):
        gpu("emulator_replay")
        assert to[0] == 10
    gpu.text("run_other", to, 0)
    assert to[0] == 11


def test_the_log_names_what_ran(gpu: Library) -> None:
    to = np.zeros(1, np.int32)
    gpu.log()
    gpu.text("run_add", to, 1, 2, 64, ctypes.c_longlong(16))
    gpu.text("run_add", to, 1, 0, 64, ctypes.c_longlong(16))  # refused
    gpu("emulator_capture_begin")
    gpu.text("run_add_in_clusters", to, 8, 4)
    gpu("emulator_capture_end")
    gpu("clear", to, 4)
    gpu("emulator_replay")
    assert gpu.log() == [
        "add<int, 1> grid=2 block=64 shared=16 cluster=1",
        "memset 4",
        "add<int, 2> grid=8 block=32 shared=0 cluster=4",
    ]
    assert gpu.log() == []


# --- mistakes that give wrong results ---------------------------------------------------------------------------------


def test_a_missing_barrier_of_a_block_is_missed_in_some_order(gpu: Library) -> None:
    x, wrong = numbers(10, 1000), []
    for order in ORDERS:
        sums = np.zeros(10, np.float32)
        gpu("emulator_order", order)
        gpu("run_row_sums", x, sums, 10, 1000, 2, 0)
        wrong.append((sums != x.sum(1)).any())
    assert any(wrong)


@in_every_order
def test_a_missing_barrier_of_a_cluster_is_missed(gpu: Library, order: int) -> None:
    x, sums = numbers(5, 1000), np.zeros(20, np.float32)
    gpu("emulator_order", order)
    gpu("run_cluster_sums_without_first_barrier", x, sums, 5, 1000, 4)
    assert np.isnan(sums).any()  # of a block that had not written yet


@pytest.mark.parametrize(("first_barrier", "received"), [(1, [3, 0, 1, 2]), (0, [3, -1, -1, -1])])
def test_what_is_written_to_a_block_before_it_runs_is_lost(
    gpu: Library, first_barrier: int, received: list[int]
) -> None:
    out = np.zeros(4, np.int32)
    gpu("run_pass_on", out, 4, first_barrier)
    assert out.tolist() == received


def test_shared_memory_is_nan_before_it_is_written(gpu: Library) -> None:
    for _ in range(2):
        out = np.zeros(1, np.float32)
        gpu("run_unwritten", out)
        assert np.isnan(out[0])


def test_a_lane_that_takes_no_part_gives_nan(gpu: Library) -> None:
    out = np.zeros(16, np.float32)
    gpu("run_absent_lane", out)
    assert np.isnan(out).all()


# --- mistakes that end the process ------------------------------------------------------------------------------------


START = """
import ctypes
library = ctypes.CDLL({library!r})
def gpu(name, *arguments):
    library[name](*(x.ctypes.data_as(ctypes.c_void_p) if hasattr(x, "ctypes") else x for x in arguments))
"""


def python(library: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in another Python process, in which gpu() calls the library."""
    command = [sys.executable, "-c", START.format(library=str(library)) + code]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


MISTAKES = {
    "barrier_of_some": r"__syncthreads\(\) at .*mistakes.cu:\d+ is reached by only some threads of the block: thread",
    "two_barriers": r"threads of one block wait at different barriers: thread .* in __syncthreads\(\) at .*mistakes.cu",
    "barrier_against_shuffle": r"deadlock: thread \(.*\) of block \(0, 0, 0\) waits in __shfl_sync\(\) at .*mistakes",
    "mask_without_caller": r"the mask 7fffffff leaves out the caller, lane 31",
    "mask_of_the_exited": r"the mask ffffffff names lane 5, which has exited",
    "mask_of_the_absent": r"the mask ffffffff names lane 4, which has exited or does not exist",
    "two_shuffles": r"deadlock: .* waits in __shfl_xor_sync\(\) .* for lanes that do not arrive",
    "width_of_three": r"a shuffle's width is 3",
    "misaligned_load": r"__ldcs\(\) of 16 bytes at the misaligned 0x",
    "misaligned_atomic": r"atomicAdd\(\) of 4 bytes at the misaligned 0x",
    "cluster_of_some": r"cluster_sync\(\) .* is reached by only some threads of the cluster: thread .* has exited",
    "block_against_cluster": r"wait at different barriers: .* __syncthreads\(\) .* cluster_sync\(\)",
    "map_of_another_memory": r"cluster_map\(\) of 0x.*, which is not in the calling block's shared memory",
    "map_beyond_the_cluster": r"cluster_map\(\) to block 2 of a cluster of 2",
    "wait_for_the_next": r"deadlock: .* waits, in yield_to_others\(\) at .*, for something that no block .* will do",
    "deep": r"a thread needs more than the 65536 bytes of stack",
}


@pytest.mark.parametrize("order", [0, 2])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(built: Path, mistake: str, order: int) -> None:
    done = python(built, f"gpu('emulator_order', {order}); gpu('run_{mistake}'); print('went on')")
    assert done.returncode == -signal.SIGABRT, done.stdout
    kernel = {"mask_of_the_absent": "mask_of_the_exited", "misaligned_load": "load", "misaligned_atomic": "add"}
    assert re.match(f"cuda emulator: {kernel.get(mistake, mistake)}: .*{MISTAKES[mistake]}", done.stderr), done.stderr


@in_every_order
def test_a_block_does_not_exit_while_another_may_use_its_shared_memory(built: Path, order: int) -> None:
    done = python(built, f"gpu('emulator_order', {order}); gpu('run_cluster_sums_without_last_barrier')")
    assert done.returncode == -signal.SIGABRT
    assert re.match(
        r"cuda emulator: cluster_sums<true, false>: (block . of a cluster exits while block . may still use the shared"
        r" memory that it mapped|cluster_map\(\) to block . of the cluster, which has exited)",
        done.stderr,
    ), done.stderr


def test_static_shared_variables_do_not_compile(tmp_path: Path) -> None:
    (tmp_path / "kernel.cu").write_text(
        '#include "emulator.h"\n__global__ void f() { __shared__ float x[2]; x[0] = 1; }'
    )
    done = compiler("-fsyntax-only", "-x", "c++", tmp_path / "kernel.cu")
    assert done.returncode != 0
    assert "no __shared__ variables: use UDSKD_SHARED" in done.stderr


# --- under AddressSanitizer and UndefinedBehaviorSanitizer ------------------------------------------------------------


def under_sanitizers(library: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Runs code with the runtimes of the sanitizers and libstdc++ preloaded, as in the Makefile."""
    runtimes = f"{runtime('libasan.so')} {runtime('libstdc++.so')}"
    options = "detect_leaks=0:abort_on_error=1"
    return python(library, code, LD_PRELOAD=runtimes, ASAN_OPTIONS=options)


@pytest.mark.slow
@in_every_order
def test_correct_kernels_run_under_the_sanitizers(sanitized: Path, order: int) -> None:
    code = f"""
import numpy as np
gpu("emulator_order", {order})
x = np.arange(5000, dtype=np.float32).reshape(5, 1000)
sums, of_clusters = np.zeros(5, np.float32), np.zeros(20, np.float32)
for _ in range(2):
    gpu("run_row_sums", x, sums, 5, 1000, 3, 1)
    gpu("run_cluster_sums", x, of_clusters, 5, 1000, 4)
assert (sums == x.sum(1)).all() and (of_clusters == x.sum(1).repeat(4)).all()
"""
    done = under_sanitizers(sanitized, code)
    assert (done.returncode, done.stderr) == (0, "")


OVERRUNS = {
    "beyond_shared": r"heap-buffer-overflow[\s\S]*WRITE of size 4[\s\S]* in beyond_shared",
    "beyond_global": r"heap-buffer-overflow[\s\S]*WRITE of size 4[\s\S]* in beyond_global",
    "read_late": r"use-after-poison[\s\S]*READ of size 4[\s\S]* in read_late",
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", OVERRUNS)
def test_the_sanitizers_see_what_leaves_its_memory(sanitized: Path, mistake: str) -> None:
    done = under_sanitizers(sanitized, f"gpu('run_{mistake}')")
    assert done.returncode == -signal.SIGABRT
    assert re.search(OVERRUNS[mistake].replace(" in ", r" in (\(anonymous namespace\)::)?"), done.stderr), done.stderr
