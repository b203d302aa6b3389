"""The resources of kernels: parsing the compiler's output, the comparison with the committed table, and short names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from bench import cuda_toolkit, resources
from bench.commands import ROOT
from bench.resources import TABLE, KernelResources, compare, merged, parse

PTXAS = """\
ptxas info    : 28 bytes gmem
ptxas info    : Compiling entry function '_Z1ai' for 'sm_90'
ptxas info    : Function properties for _Z1ai
    464 bytes stack frame, 212 bytes spill stores, 1100 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 464 bytes cumulative stack size, 32 bytes smem
ptxas info    : Compile time = 2623.478 ms
ptxas info    : Compiling entry function '_Z1bi' for 'sm_90'
ptxas info    : Function properties for _Z1bi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
ptxas info    : Compile time = 2.485 ms
ptxas info    : Function properties for _Z6calledi
    0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
"""
A = KernelResources("a", 90, registers=64, stack=464, spill_stores=212, spill_loads=1100, shared=32)
B = KernelResources("b", 90, registers=8)


def test_every_number_goes_to_its_kernel() -> None:
    called = KernelResources("_Z6calledi", 90, spill_stores=4, spill_loads=8)
    kernels = parse(PTXAS, 90)
    assert kernels == [KernelResources("_Z1ai", 90, 64, 464, 212, 1100, 32), KernelResources("_Z1bi", 90, 8), called]
    assert parse("", 90) == []


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        ("plain(double*)", "plain"),
        ("udskd::cuda::scale(udskd::Problem, void (*)(int))", "scale"),
        ("void udskd::(anonymous namespace)::rows<float, udskd::cuda::Warp>(udskd::Problem)", "rows<float, Warp>"),
        (
            "void udskd::rows<float, udskd::ThreadGroup<(int)8>, (udskd::Kind)1>(float*)",
            "rows<float, ThreadGroup<int(8)>, Kind(1)>",
        ),
        ("void udskd::rows<__half, udskd::Block<256> >(int)", "rows<half, Block<256>>"),
        ("void udskd::rows<__nv_bfloat16, true, -1>(float*, int) [clone .x]", "rows<bfloat16, true, -1>"),
        ("_INTERNAL_54_a_cu__Z1gPd::udskd::_GLOBAL__N__54_a_cu_9::foo(float*, int)", "foo"),
        ("_Znothing_to_demangle", "_Znothing_to_demangle"),
    ],
)
def test_names_are_short(demangled: str, name: str) -> None:
    assert cuda_toolkit.short(demangled) == name


def test_numbers_that_have_not_grown_pass() -> None:
    assert compare([A, B], [B, A]) == []
    assert compare([A], [KernelResources("a", 90, registers=60, shared=9000)]) == []


@pytest.mark.parametrize(
    ("now", "line"),
    [
        (KernelResources("b", 90, 9), "b, sm_90: registers 8 -> 9"),
        (KernelResources("b", 90, 8, stack=16), "b, sm_90: bytes of stack 0 -> 16"),
        (KernelResources("b", 90, 8, 0, 4, 8), "b, sm_90: bytes of spill stores 0 -> 4, bytes of spill loads 0 -> 8"),
        (KernelResources("c", 90, 8), "c, sm_90: compiled, but not in the table"),
    ],
)
def test_a_kernel_that_has_grown_is_a_line(now: KernelResources, line: str) -> None:
    assert line in compare([A, B], [A, now])
    assert all(line.startswith(("b, ", "c, ")) for line in compare([A, B], [A, now]))


def test_a_kernel_that_is_gone_is_a_line() -> None:
    assert compare([A, B], [A]) == ["b, sm_90: in the table, but not compiled"]
    assert compare([B], [KernelResources("b", 80, 8)])[1] == "b, sm_90: in the table, but not compiled"


def test_of_two_kernels_of_one_name_the_larger_numbers_count() -> None:
    assert merged([KernelResources("b", 90, 8, stack=16), B, KernelResources("b", 90, 10), A]) == [
        A,
        KernelResources("b", 90, 10, stack=16),
    ]


def test_the_table_reads_as_it_was_written(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    table.write_text(resources.dumps("13.0.88", [A, B]))
    assert resources.read(table) == ("13.0.88", [A, B])
    assert len(table.read_text().splitlines()) == 4
    text = resources.markdown("13.0.88", [A, B])
    assert "| `a` | 64, 464 B stack, spills 212 / 1100 B | 32 B |\n| `b` | 8 | 0 B |\n" in text


def test_a_check_compares_the_given_architectures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.json"
    table.write_text(resources.dumps("13.0.88", [A, KernelResources("b", 80, 8)]))
    assert resources.check(table, "13.0.88", [A], [90]) == 0
    assert resources.check(table, "13.0.88", [], [90]) == 1
    assert resources.check(table, "13.1.2", [A], [90]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "a, sm_90: in the table, but not compiled",
        "The table was made by nvcc 13.0.88; this is 13.1.2, whose register allocation may differ.",
    ]


@pytest.mark.parametrize("words", [["--check", "--archs", "91"], ["--check", "--write"], []])
def test_a_mistake_ends_with_exit_code_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        resources.main(words)
    assert ended.value.code == 2


def test_the_flags_are_those_of_the_build() -> None:
    setup = list(ast.walk(ast.parse((ROOT / "setup.py").read_text())))
    values = {ast.unparse(node.targets[0]): node.value for node in setup if isinstance(node, ast.Assign)}
    given = {x.value for x in ast.walk(values["nvcc"]) if isinstance(x, ast.Constant) and isinstance(x.value, str)}
    # Of debug builds, of the host's compiler, and of what holds several architectures.
    elsewhere = {"-G", "--threads=0", "--compress-mode=size", "-Xcompiler=-fvisibility=hidden"}
    common = {*cpp_extension.COMMON_NVCC_FLAGS, ast.literal_eval(values["TARGET"])}
    assert set(cuda_toolkit.FLAGS) == (given - elsewhere) | common


# --- the committed table ---------------------------------------------------------------------------------------------

needs_table = pytest.mark.skipif(not TABLE.is_file(), reason="there is no table yet: python -m bench.resources --write")


@needs_table
def test_kernels_that_do_the_work_do_not_spill() -> None:
    _, kernels = resources.read(TABLE)
    hot = [kernel for kernel in kernels if kernel.kernel.startswith("rows<")]
    assert hot
    assert [str(kernel) for kernel in hot if kernel.spill_stores or kernel.spill_loads] == []


@needs_table
def test_the_table_has_all_architectures() -> None:
    _, kernels = resources.read(TABLE)
    assert {kernel.arch for kernel in kernels} == set(cuda_toolkit.ARCHS)
    assert kernels == merged(kernels)


@pytest.mark.slow
@needs_table
def test_the_compiler_agrees_with_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    home = cuda_toolkit.home()
    if home is None:
        pytest.skip("no nvcc")
    made_with, _ = resources.read(TABLE)
    if (here := cuda_toolkit.release(home)) != made_with:
        pytest.skip(f"the table was made by nvcc {made_with}, this is {here}")
    assert resources.main(["--check", "--archs", "90"]) == 0, capsys.readouterr().out
