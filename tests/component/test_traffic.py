"""What a compiled program moves: every kind of collective is found, with its bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax.collab.traffic import Collective, collectives
from cosurfgs_jax.distributed.layout import make_layout, sharded

pytestmark = pytest.mark.optimized

ALL = ("edge", "device")
# Of f32[8, 5] = 160 bytes on each of two by two devices: the function, and how much of the 160 a
# device gets.
COMMUNICATING = {
    "all-reduce": (lambda x: jax.lax.psum(x, "device"), 1),
    "all-gather": (lambda x: jax.lax.all_gather(x, ALL), 4),
    "all-to-all": (lambda x: jax.lax.all_to_all(x, ALL, 0, 0, tiled=True), 1),
    "collective-permute": (lambda x: jax.lax.ppermute(x, ALL, [(0, 1), (1, 0)]), 1),
    "reduce-scatter": (lambda x: jax.lax.psum_scatter(x, ALL, tiled=True), 0.25),
}
# As XLA writes them; a CPU has no program with them.
LINES = {
    "  %b = f32[2,3]{1,0} collective-broadcast(%p), channel_id=1, replica_groups={{0,1}}": (
        "collective-broadcast",
        ["f32"],
        24,
    ),
    "  ROOT %r.1 = bf16[7]{0} ragged-all-to-all(%p, %o, %a, %b, %c, %d), channel_id=1": (
        "ragged-all-to-all",
        ["bf16"],
        14,
    ),
    "  %t = (u8[3]{0}, s32[2,2]{1,0}, pred[]) all-reduce(%a, %b, %c), channel_id=3": (
        "all-reduce",
        ["u8", "s32", "pred"],
        20,
    ),
    "  %t = (f32[1]{0}, f32[1]{0}, f32[1]{0}, f32[1]{0}, f32[1]{0}, /*index=5*/f32[1]{0}) "
    "all-to-all(%a, %b, %c, %d, %e, %f)": (
        "all-to-all",
        ["f32"] * 6,
        24,
    ),
}
SILENT = """
  %get-tuple-element.1 = f32[2,5]{1,0} get-tuple-element(%all-to-all), index=0
  %fusion = f32[8]{0} fusion(%all-reduce.1), kind=kLoop, calls=%c, \
metadata={op_name="jit(run)/shard_map/all_to_all"}
"""
ASYNCHRONOUS = """
  %all-gather-start = (f32[8,5]{1,0}, f32[32,5]{1,0}) all-gather-start(%p), channel_id=1, \
dimensions={0}
  %all-gather-done = f32[32,5]{1,0} all-gather-done(%all-gather-start)
  %collective-permute-start = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(%p), \
channel_id=2
  %collective-permute-done = f32[6]{0} collective-permute-done(%collective-permute-start)
"""


def compiled_text(function, *values) -> str:
    """On two by two devices, each with its own of the values."""
    layout = make_layout(np.array([0, 0, 1, 1]))
    given = [
        layout.put(lambda device, value=value: value + value.dtype.type(device)) for value in values
    ]
    return sharded(function, layout).lower(*given).compile().as_text()


@pytest.mark.parametrize("dtype, size", [(np.float32, 4), (np.uint8, 1), (np.int32, 4)])
@pytest.mark.parametrize("kind", COMMUNICATING)
def test_a_collective_is_found_with_its_bytes(kind, dtype, size):
    function, share = COMMUNICATING[kind]
    (found,) = collectives(compiled_text(function, np.ones((8, 5), dtype)))
    name = {np.float32: "f32", np.uint8: "u8", np.int32: "s32"}[dtype]
    assert found.kind == kind and set(found.dtypes) == {name}
    assert found.num_bytes == 40 * size * share


def test_all_collectives_of_a_program_are_found():
    def function(x, y):
        x = jax.lax.ppermute(x, ALL, [(0, 3)])
        return jax.lax.all_to_all(x, ALL, 0, 0, tiled=True), jax.lax.psum(y, ALL)

    found = collectives(compiled_text(function, np.ones((4, 6), np.float32), np.ones(3, np.uint8)))
    assert sorted((one.kind, set(one.dtypes), one.num_bytes) for one in found) == [
        ("all-reduce", {"u8"}, 3),
        ("all-to-all", {"f32"}, 96),
        ("collective-permute", {"f32"}, 96),
    ]


def test_a_program_that_does_not_communicate_has_none():
    assert (
        collectives(compiled_text(lambda x: jnp.sort(x @ x.T), np.ones((8, 5), np.float32))) == []
    )
    assert collectives(SILENT) == []


@pytest.mark.parametrize("line", LINES)
def test_a_collective_is_read_from_its_line(line):
    kind, dtypes, num_bytes = LINES[line]
    assert collectives(f"HloModule m\n{line}\n{SILENT}") == [
        Collective(kind, tuple(dtypes), num_bytes)
    ]


def test_an_asynchronous_collective_counts_once_and_without_its_operands():
    assert collectives(ASYNCHRONOUS) == [
        Collective("all-gather", ("f32",), 640),
        Collective("collective-permute", ("f32",), 24),
    ]
