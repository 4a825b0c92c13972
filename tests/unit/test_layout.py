"""Blocks on devices: each on exactly one, and what is put there comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax.distributed.layout import Layout, make_layout, sharded
from cosurfgs_jax.errors import InputError


def edges(num_blocks: int, num_edges: int) -> np.ndarray:
    """As `build_partition` deals blocks out: ascending, the first edges one larger."""
    return np.repeat(
        np.arange(num_edges),
        [len(part) for part in np.array_split(np.arange(num_blocks), num_edges)],
    )


CASES = [
    (blocks, num_edges, devices)
    for blocks in (1, 2, 3, 4, 5, 7, 8, 12)
    for num_edges in (1, 2, 3, 4)
    if num_edges <= blocks
    for devices in (0, 1, 2, 3, 4)
]
every_layout = pytest.mark.parametrize("num_blocks, num_edges, num_devices", CASES)
some_layouts = pytest.mark.parametrize(
    "num_blocks, num_edges, num_devices", [(1, 1, 0), (4, 2, 0), (4, 1, 1), (5, 2, 3), (7, 2, 2)]
)


def tree_of(block: int | None) -> dict:
    """Something that tells blocks apart; -1 where there is none."""
    number = -1 if block is None else block
    return {
        "a": np.arange(3, dtype=np.float32) + 10 * number,
        "b": (np.int32(number), np.full((2, 1), number % 2 == 0)),
    }


def rows_of(layout: Layout) -> list:
    return [layout.put_row(row, tree_of) for row in range(layout.blocks_per_device)]


@every_layout
def test_every_block_is_on_exactly_one_device(num_blocks, num_edges, num_devices):
    layout = make_layout(edges(num_blocks, num_edges), num_devices)
    wanted = num_devices or 4
    assert layout.num_devices == layout.mesh.devices.size <= min(wanted, num_blocks)
    assert layout.blocks_per_device == -(-num_blocks // wanted)
    assert len({device.id for device in layout.mesh.devices.flat}) == layout.num_devices
    carried = [layout.blocks_of(device) for device in range(layout.num_devices)]
    assert all(carried), "a device without work"
    assert (
        [block for blocks in carried for block in blocks]
        == list(range(num_blocks))
        == layout.local_blocks
    )
    places = {
        (device, row): layout.block_at(device, row)
        for device in range(layout.num_devices)
        for row in range(layout.blocks_per_device)
    }
    assert sorted(block for block in places.values() if block is not None) == list(
        range(num_blocks)
    )
    assert all(
        block in carried[device] for (device, _), block in places.items() if block is not None
    )
    assert {layout.process_of(block) for block in range(num_blocks)} == {0}


@every_layout
def test_rows_of_the_mesh_begin_where_edges_begin(num_blocks, num_edges, num_devices):
    edge_of_block = edges(num_blocks, num_edges)
    layout = make_layout(edge_of_block, num_devices)
    rows, width = layout.mesh.devices.shape
    assert layout.mesh.axis_names == ("edge", "device") and rows <= num_edges
    row_of_block = np.arange(num_blocks) // (width * layout.blocks_per_device)
    if rows > 1:
        assert all(len(set(row_of_block[edge_of_block == edge])) == 1 for edge in range(num_edges))


def test_edges_are_rows_where_they_are_equal():
    assert make_layout(edges(4, 2)).mesh.devices.shape == (2, 2)
    assert make_layout(edges(8, 4)).mesh.devices.shape == (4, 1)
    assert make_layout(edges(8, 2), num_devices=2).mesh.devices.shape == (2, 1)
    assert make_layout(np.array([0, 1, 1, 1])).mesh.devices.shape == (
        1,
        4,
    )  # 1 and 3 blocks: no border in the middle


@some_layouts
def test_what_is_put_comes_back(num_blocks, num_edges, num_devices):
    layout = make_layout(edges(num_blocks, num_edges), num_devices)
    rows = rows_of(layout)
    assert len(rows) == layout.blocks_per_device
    for row, tree in enumerate(rows):
        assert tree["a"].shape == (layout.num_devices, 3) and tree["b"][0].shape == (
            layout.num_devices,
        )
        for shard in tree[
            "a"
        ].addressable_shards:  # each device has its own, and nothing of the others
            device = list(layout.mesh.devices.flat).index(shard.device)
            np.testing.assert_array_equal(
                shard.data, tree_of(layout.block_at(device, row))["a"][None]
            )
    blocks = layout.get_blocks(rows)
    assert list(blocks) == list(range(num_blocks))
    for block, tree in blocks.items():
        jax.tree.map(np.testing.assert_array_equal, tree, tree_of(block))
        assert all(
            isinstance(leaf, np.ndarray) and leaf.flags.owndata for leaf in jax.tree.leaves(tree)
        )


def test_what_was_got_outlives_a_donation():
    layout = make_layout(edges(2, 1), num_devices=2)
    values = layout.put_row(0, lambda block: np.full(1 << 16, block, np.float32))
    got = layout.get(values, 1)
    for _ in range(3):
        values = sharded(lambda x: x + 1, layout, donate=(0,))(values)
    np.testing.assert_array_equal(got, 1)
    np.testing.assert_array_equal(layout.get(values, 1), 4)


@some_layouts
def test_joined_rows_are_in_the_order_of_blocks_and_split_again(num_blocks, num_edges, num_devices):
    layout = make_layout(edges(num_blocks, num_edges), num_devices)
    rows = rows_of(layout)
    joined = layout.join_rows(rows)
    numbers = np.asarray(joined["b"][0])
    assert (
        numbers[:num_blocks].tolist() == list(range(num_blocks))
        and (numbers[num_blocks:] == -1).all()
    )
    for got, wanted in zip(
        jax.tree.leaves(joined), jax.tree.leaves(layout.abstract_rows(tree_of(0))), strict=True
    ):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        assert got.sharding.is_equivalent_to(wanted.sharding, got.ndim)
    split = layout.split_rows(joined)
    assert len(split) == len(rows)
    for got, wanted in zip(jax.tree.leaves(split), jax.tree.leaves(rows), strict=True):
        np.testing.assert_array_equal(got, wanted)
        assert got.sharding.is_equivalent_to(wanted.sharding, got.ndim)
    # The order of blocks is that of any other number of devices, which is what lets a checkpoint
    # move.
    other = make_layout(edges(num_blocks, num_edges), 1)
    np.testing.assert_array_equal(other.join_rows(rows_of(other))["b"][0], np.arange(num_blocks))


def test_a_sharded_function_sees_one_device():
    layout = make_layout(edges(4, 2))
    seen = []

    def function(tree, other, power):
        seen.append((tree["a"].shape, other.shape))
        return tree["a"] ** power + other

    values = rows_of(layout)[0]
    result = sharded(function, layout, static=("power",))(
        values, layout.put(lambda device: np.float32(device)), power=2
    )
    assert seen == [((3,), ())]
    for block, got in layout.get_blocks([result]).items():
        np.testing.assert_array_equal(got, tree_of(block)["a"] ** 2 + block)
    summed = sharded(lambda x: jax.lax.psum(x, ("edge", "device")), layout)(values["b"][0])
    np.testing.assert_array_equal(summed, [6, 6, 6, 6])
    assert jnp.issubdtype(summed.dtype, jnp.int32)


def test_too_many_devices_are_refused():
    with pytest.raises(
        InputError,
        match=r"config\.mesh\.num_devices: expected at most the 4 cpu device.*got 5; "
        r"set JAX_NUM_CPU",
    ):
        make_layout(edges(8, 1), num_devices=5)
