"""The counts of scripts/gpu_control_flow.py on a small piece of machine code, by hand."""

import importlib.util
from pathlib import Path

PATH = Path(__file__).parents[2] / "scripts" / "gpu_control_flow.py"

# A loop over batches (0) with a loop over visits (1), whose second and third branch leave out what
# only hits need.
LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0020*/              @!P3 BRA `(.L_x_4) ;
.L_x_1:
        /*0030*/                   LDS.128 R4, [R3] ;
        /*0040*/                   FSETP.GE.AND P0, PT, R4, R5, PT ;
        /*0050*/              @!P0 BRA `(.L_x_3) ;
        /*0060*/                   MUFU.EX2 R4, R4 ;
        /*0070*/               @P5 BRA `(.L_x_5) ;
        /*0080*/               @P2 BRA `(.L_x_2) ;
        /*0090*/                   FFMA R6, R4, R4, R6 ;
        /*00a0*/                   FFMA R7, R4, R4, R7 ;
.L_x_2:
        /*00b0*/                   SHFL.BFLY PT, R6, R6, 0x10, 0x1f ;
.L_x_3:
        /*00c0*/               @P1 BRA `(.L_x_1) ;
.L_x_4:
        /*00d0*/                   VIADD R8, R8, 0x20 ;
        /*00e0*/               @P4 BRA `(.L_x_0) ;
        /*00f0*/                   EXIT ;
.L_x_5:
        /*0100*/                   MOV R16, 0x120 ;
        /*0110*/                   CALL.REL.NOINC `(slow) ;
        /*0120*/                   BRA `(.L_x_2) ;
"""


def test_the_ways_through_a_loop():
    spec = importlib.util.spec_from_file_location("gpu_control_flow", PATH)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    counts = script.count_kernel(LISTING.splitlines())
    assert counts["no_hit"] == 4  # LDS, FSETP, BRA, BRA
    assert counts["half"] == 8  # LDS, FSETP, BRA, MUFU, BRA, BRA, SHFL, BRA
    assert counts["hit"] == 10  # and two FFMA; never by the call
    assert [counts[name] for name in ("MUFU", "LDS", "SHFL")] == [1, 1, 1]
    assert counts["rest"] == 4  # BAR, BRA, VIADD, BRA
