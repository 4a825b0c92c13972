"""Who draws for whom: partners, rounds, and that images and gradients reach whom they are meant
for.
"""

import jax
import numpy as np
import pytest

from cosurfgs_jax.collab.exchange import Exchange, choose_partners, color_rounds, plan_exchange
from cosurfgs_jax.distributed.layout import Layout, make_layout, sharded

# (mesh, within rows, largest group with an all_to_all, partners): one collective, rounds, and
# rounds that rows share.
PLANS = {
    "all_to_all": ((1, 4), False, 8, 8),
    "all_to_all_of_rows_together": ((2, 2), False, 4, 8),
    "all_to_all_in_rows": ((2, 2), True, 2, 8),
    "rounds": ((1, 4), False, 0, 3),
    "rounds_of_few": ((2, 2), False, 0, 1),
    "rounds_of_a_column": ((4, 1), False, 0, 2),
    "rounds_in_rows": ((2, 2), True, 0, 2),
}
LARGE_PLANS = [
    ((1, 12), False, 8, 4),
    ((4, 3), False, 8, 2),
    ((4, 9), True, 8, 3),
    ((3, 5), True, 0, 2),
    ((3, 4), True, 8, 8),
    ((2, 4), False, 8, 2),
    ((2, 6), False, 8, 8),
]


def random_needs(num: int, seed: int, fraction: float = 0.6) -> np.ndarray:
    """Also on the diagonal, which must not matter; whole numbers, so that some needs tie."""
    random = np.random.default_rng(seed)
    return random.integers(1, 9, (num, num)) * (random.random((num, num)) < fraction).astype(
        np.float64
    )


def random_plan(mesh_shape, is_within_rows, largest, most, seed=0) -> Exchange:
    return plan_exchange(
        mesh_shape, random_needs(mesh_shape[0] * mesh_shape[1], seed), is_within_rows, most, largest
    )


@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("seed", range(8))
def test_nobody_has_or_serves_more_than_the_most_and_the_weakest_are_dropped(seed, most):
    needs = random_needs(5 + 2 * seed, seed)
    partners = choose_partners(needs, most)
    askers = [[i for i, own in enumerate(partners) if j in own] for j in range(len(needs))]
    dropped = 0
    for i, own in enumerate(partners):
        assert own == sorted(set(own)) and i not in own and all(needs[i, j] > 0 for j in own)
        assert len(own) <= most and len(askers[i]) <= most
        for j in set(np.flatnonzero(needs[i]).tolist()) - {i} - set(own):
            dropped += 1
            is_full = len(own) == most and all(needs[i, other] >= needs[i, j] for other in own)
            is_busy = len(askers[j]) == most and all(
                needs[other, j] >= needs[i, j] for other in askers[j]
            )
            assert is_full or is_busy, f"{i} could have had {j}"
    assert dropped or most == 5


def test_partners_of_an_example():
    needs = np.array([[9, 3, 2, 1], [5, 0, 0, 0], [6, 4, 0, 0], [7, 0, 0, 0]], np.float64)
    assert choose_partners(needs, 3) == [[1, 2, 3], [0], [0, 1], [0]]
    assert choose_partners(needs, 2) == [
        [1, 2],
        [],
        [0, 1],
        [0],
    ]  # 0 is asked by 3 and 2; the need of 1 is the weakest
    assert choose_partners(needs, 1) == [[2], [], [1], [0]]
    assert choose_partners(np.ones((3, 3)), 1) == [[1], [0], []]  # ties by number


def assert_is_coloring(partners: list[list[int]], num_rounds: int) -> None:
    """Every pair in one round, and nobody sends or receives twice in a round."""
    rounds = color_rounds(partners)
    pairs = [(j, i) for i, own in enumerate(partners) for j in own]
    assert sorted(pair for pairs in rounds for pair in pairs) == sorted(pairs)
    for own in rounds:
        senders, receivers = zip(*own, strict=True)
        assert len(set(senders)) == len(set(receivers)) == len(own)
    assert len(rounds) == num_rounds


def test_rounds_are_as_few_as_the_busiest_device_has_pairs():
    for seed in range(150):
        random = np.random.default_rng(seed)
        num = int(random.integers(2, 24))
        partners = [
            np.flatnonzero(row).tolist()
            for row in random.random((num, num)) < random.uniform(0.05, 0.9)
        ]
        degrees = [len(own) for own in partners] + [
            sum(j in own for own in partners) for j in range(num)
        ]
        assert_is_coloring(partners, max(degrees))
    assert color_rounds([[], []]) == []


def test_cells_in_a_large_grid_talk_to_their_neighbours_in_eight_rounds():
    side = 32
    x, y = np.divmod(np.arange(side * side), side)
    is_near = np.maximum(np.abs(x[:, None] - x[None]), np.abs(y[:, None] - y[None])) == 1
    partners = choose_partners(is_near.astype(np.float64), 8)
    assert (
        sorted({len(own) for own in partners}) == [3, 5, 8]
        and sum(map(len, partners)) == is_near.sum()
    )
    assert_is_coloring(partners, 8)


def delivered(exchange: Exchange, mesh_shape: tuple[int, int], device: int) -> list:
    """(sender, its slot) of what a device gets in each slot, by the definition of the collectives;
    None = nothing.
    """
    width = mesh_shape[1] if exchange.axes == ("device",) else mesh_shape[0] * mesh_shape[1]
    first = device // width * width
    position = device % width
    if not exchange.rounds:  # all_to_all: what all have in the slot of my position
        return (
            [(first + slot, position) for slot in range(exchange.num_slots)]
            if exchange.num_slots > 1
            else [(device, 0)]
        )
    senders = [
        dict((to, sender) for sender, to in pairs).get(position) for pairs in exchange.rounds
    ]
    return [(device, 0)] + [
        None if sender is None else (first + sender, 1 + i) for i, sender in enumerate(senders)
    ]


@pytest.mark.parametrize(
    "mesh_shape, is_within_rows, largest, most", [*PLANS.values(), *LARGE_PLANS]
)
def test_a_plan_says_the_same_to_those_who_draw_and_those_who_ask(
    mesh_shape, is_within_rows, largest, most
):
    num_devices = mesh_shape[0] * mesh_shape[1]
    size = mesh_shape[1] if is_within_rows else mesh_shape[0] * mesh_shape[1]
    for seed in range(5):
        exchange = random_plan(mesh_shape, is_within_rows, largest, most, seed)
        assert exchange.axes == (("device",) if is_within_rows else ("edge", "device"))
        assert len(exchange.draws_for) == len(exchange.receives_of) == num_devices
        assert {len(slots) for slots in exchange.draws_for + exchange.receives_of} == {
            exchange.num_slots
        }
        for pairs in exchange.rounds:  # what ppermute demands
            assert (
                len({sender for sender, _ in pairs}) == len({to for _, to in pairs}) == len(pairs)
            )
        num_drawn = 0
        for device in range(num_devices):
            assert device in exchange.draws_for[device] and device in exchange.receives_of[device]
            for slot, sender in enumerate(exchange.receives_of[device]):
                got = delivered(exchange, mesh_shape, device)[slot]
                if sender >= 0:
                    assert got[0] == sender and exchange.draws_for[sender][got[1]] == device
                    assert sender // size == device // size
                    num_drawn += 1
                elif got is not None:  # a round of another row: nobody's cameras are drawn then
                    assert exchange.draws_for[got[0]][got[1]] == -1
        assert num_drawn == sum(other >= 0 for slots in exchange.draws_for for other in slots)


@pytest.mark.parametrize("mesh_shape, is_within_rows, largest, most", LARGE_PLANS)
def test_a_plan_holds_the_partners_that_were_chosen(mesh_shape, is_within_rows, largest, most):
    num_devices = mesh_shape[0] * mesh_shape[1]
    size = mesh_shape[1] if is_within_rows else mesh_shape[0] * mesh_shape[1]
    needs = random_needs(num_devices, 3)
    exchange = plan_exchange(mesh_shape, needs, is_within_rows, most, largest)
    drawn = [
        {other for other in slots if other >= 0} - {device}
        for device, slots in enumerate(exchange.receives_of)
    ]
    if size <= largest:
        assert not exchange.rounds and exchange.num_slots == size and exchange.num_sent == size - 1
        assert all(len(own) == size - 1 for own in drawn)
        return
    for first in range(0, num_devices, size):
        group = range(first, first + size)
        chosen = choose_partners(needs[np.ix_(group, group)], most)
        assert [sorted(other - first for other in drawn[device]) for device in group] == chosen
    sent = [sum(other >= 0 for other in slots[1:]) for slots in exchange.draws_for]
    assert all(slots[0] == device for device, slots in enumerate(exchange.draws_for))
    assert all(slots[0] == device for device, slots in enumerate(exchange.receives_of))
    assert exchange.num_sent == max(sent) <= most
    if size == num_devices:
        assert exchange.num_slots - 1 == len(exchange.rounds) == max(*sent, *map(len, drawn))


def test_a_large_mesh_sends_no_more_than_a_small_one():
    for side in (4, 8, 16):
        x, y = np.divmod(np.arange(side * side), side)
        needs = np.exp(-np.hypot(x[:, None] - x[None], y[:, None] - y[None]))
        assert plan_exchange((side, side), needs, False, 6).num_sent == 6


def layout_of(mesh_shape: tuple[int, int]) -> Layout:
    layout = make_layout(np.repeat(np.arange(mesh_shape[0]), mesh_shape[1]))
    assert layout.mesh.devices.shape == mesh_shape
    return layout


def parts_of(exchange: Exchange, seed: int) -> dict:
    """Random images of all devices and slots, in several shapes.

    Where rows share their rounds, nothing is drawn for nobody: a round of another row carries it.
    Else nobody hears of it."""
    random = np.random.default_rng(seed)
    is_drawn = (np.array(exchange.draws_for) >= 0) | (exchange.axes != ("device",))
    shapes = {"color": (3, 5, 3), "alpha": (3, 5), "sum": ()}
    values = {
        name: random.uniform(1, 2, (*is_drawn.shape, *shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    return {
        name: value * is_drawn.reshape(*is_drawn.shape, *(1,) * (value.ndim - 2))
        for name, value in values.items()
    }


def swapped_by_definition(exchange: Exchange, parts: np.ndarray) -> np.ndarray:
    result = np.zeros_like(parts)
    for device, senders in enumerate(exchange.receives_of):
        for slot, sender in enumerate(senders):
            if sender >= 0:
                result[device, slot] = parts[sender, exchange.draws_for[sender].index(device)]
    return result


@pytest.mark.parametrize("name", PLANS)
def test_swap_delivers_images_and_brings_gradients_back(name):
    mesh_shape, *options = PLANS[name]
    layout = layout_of(mesh_shape)
    exchange = random_plan(mesh_shape, *options, seed=4)
    parts = parts_of(exchange, 0)
    weights = parts_of(exchange, 1)
    swap = sharded(exchange.swap, layout)

    def loss(parts):
        got = swap(parts)
        return sum((weights[name] * got[name]).sum() for name in parts), got

    given = layout.put(lambda device: jax.tree.map(lambda leaf: leaf[device], parts))
    gradient, got = jax.jit(jax.grad(loss, has_aux=True))(given)
    for key, value in parts.items():
        np.testing.assert_array_equal(got[key], swapped_by_definition(exchange, value))
        expected = np.zeros_like(value)  # the weight that stands where a part arrives
        for device, senders in enumerate(exchange.receives_of):
            for slot, sender in enumerate(senders):
                if sender >= 0:
                    expected[sender, exchange.draws_for[sender].index(device)] = weights[key][
                        device, slot
                    ]
        is_drawn = np.array(exchange.draws_for) >= 0
        np.testing.assert_array_equal(np.asarray(gradient[key])[is_drawn], expected[is_drawn])
    is_nothing = np.array(exchange.receives_of) < 0
    assert (np.asarray(got["alpha"])[is_nothing] == 0).all()
    num_crossing = sum(
        sender not in (-1, device)
        for device, own in enumerate(exchange.receives_of)
        for sender in own
    )
    assert num_crossing >= 2 and is_nothing.any() == bool(exchange.rounds)


def test_edges_within_rows_do_not_mix():
    for largest in (2, 0):
        exchange = plan_exchange((2, 2), np.ones((4, 4)), True, 8, largest)
        assert bool(exchange.rounds) == (largest == 0)
        given = layout_of((2, 2)).put(lambda device: np.full((2, 3), 10.0**device, np.float32))
        sums = np.asarray(
            sharded(
                lambda parts, exchange=exchange: exchange.swap(parts).sum(axis=0), layout_of((2, 2))
            )(given)
        )
        np.testing.assert_array_equal(sums[:, 0], [11, 11, 1100, 1100])
    together = plan_exchange((2, 2), np.ones((4, 4)), False, 8)
    given = layout_of((2, 2)).put(lambda device: np.full((4, 3), 10.0**device, np.float32))
    sums = sharded(lambda parts: together.swap(parts).sum(axis=0), layout_of((2, 2)))(given)
    np.testing.assert_array_equal(sums, np.full((4, 3), 1111))


def test_a_device_alone_keeps_what_it_drew():
    alone = plan_exchange((1, 1), np.ones((1, 1)), False, 8)
    layout = make_layout(np.zeros(1, np.int64), num_devices=1)
    given = layout.put(lambda _: np.arange(6, dtype=np.float32).reshape(1, 6))
    np.testing.assert_array_equal(sharded(alone.swap, layout)(given), given)
    assert alone.num_slots == 1 and alone.num_sent == 0
