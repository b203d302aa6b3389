"""Counting machine instructions in the listing of a disassembler."""

from __future__ import annotations

from bench import sass

LISTING = """
	code for sm_90
		Function : _Z4rowsPf
	.headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                     /* 0x00000a00ff017b82 */
                                                                              /* 0x000fe20000000800 */
        /*0010*/                   BSSY B0, 0x830 ;                           /* 0x000007e000007945 */
        /*0020*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;  /* 0x0000000000000000 */
        /*0030*/                   MUFU.EX2 R9, R9 ;                          /* 0x0000000000000000 */
        /*0040*/              @!P0 MUFU.RCP R9, R9 ;                          /* 0x0000000000000000 */
        /*0050*/              @UP0 UIADD3 UR4, UR4, 0x1, URZ ;                /* 0x0000000000000000 */
        /*0060*/               @P1 BRA 0x20 ;                                 /* 0x0000000000000000 */
        /*0070*/                   SHFL.BFLY PT, R5, R4, 0x10, 0x1f ;         /* 0x0000000000000000 */
        /*0080*/               @P2 BRA P3, 0x70 ;                             /* 0x0000000000000000 */
        /*0090*/                   STG.E.128 desc[UR4][R2.64], R4 ;           /* 0x0000000000000000 */
        /*00a0*/                   STL [R1], R4 ;                             /* 0x0000000000000000 */
        /*00b0*/                   CALL.REL.NOINC 0x100 ;                     /* 0x0000000000000000 */
        /*00c0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;              /* 0x0000000000000000 */
        /*00d0*/               @P1 BRA 0x10 ;                                 /* 0x0000000000000000 */
        /*00e0*/                   EXIT ;                                     /* 0x0000000000000000 */
        /*0100*/                   MUFU.EX2 R9, R9 ;                          /* 0x0000000000000000 */
        /*0110*/                   LDL R4, [R1] ;                             /* 0x0000000000000000 */
        /*0120*/                   RET.REL.NODEC R2 0x0 ;                     /* 0x0000000000000000 */
        /*0130*/                   BRA 0x130;                                 /* 0x0000000000000000 */
        /*0140*/                   NOP;                                       /* 0x0000000000000000 */
		Function : _Z5emptyv
        /*0000*/                   EXIT ;                                     /* 0x0000000000000000 */
"""


def test_instructions_are_counted_without_those_of_called_functions() -> None:
    rows, empty = sass.parse(LISTING)
    assert (rows.name, empty.name) == ("_Z4rowsPf", "_Z5emptyv")
    assert (rows.size, len(rows.opcodes)) == (15, 18)
    assert (empty.size, empty.loops()) == (1, [])
    counted = {title: rows.count(title) for title in sass.COUNTED}
    assert counted == dict.fromkeys(sass.COUNTED, 1)


def test_loops_are_the_innermost_and_those_over_classes_are_listed() -> None:
    rows, _ = sass.parse(LISTING)
    assert rows.loops() == [(2, 7), (7, 9)]
    assert sass.over_classes(rows) == ["5 (1 EX2)"]


def test_a_position_costs_its_share_of_an_unrolled_kernel() -> None:
    rows, empty = sass.parse(LISTING)
    rows.name = "rows<float, ThreadGroup<8>, InRegisters<2>, 4>"
    assert sass.positions(rows.name, sass.POSITIONS) == 8
    assert sass.positions("rows<half, Block<256>, InRegisters<2>, 2>", sass.POSITIONS) == 16
    assert sass.positions("rows<float, Block<256>, InShared, 2>", sass.POSITIONS) is None
    text = sass.markdown([rows, empty], 90, "13.0", sass.POSITIONS)
    assert f"| `{rows.name}` | 15 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 5 (1 EX2) | 3 | 1.9, 0.12 EX2 |\n" in text
    assert text.splitlines()[2].count("|") == text.splitlines()[-1].count("|")
