"""Who draws for whom: the exchange of cameras and partial images between the devices of a mesh.

Each device holds cells of the model and has cameras of its own. What a camera sees lies in the
cells of several devices, its
partners: each of them draws its own cells for that camera, and the partial images come back. The
    plan is a function of cells
and poses, which all know, so cameras need not be sent; only images move.

Two ways, chosen by the size of a group of devices that share a model:
    - all_to_all: every device draws for every other one. One collective; traffic grows with the
        group.
    - rounds: each device has a fixed set of at most m partners, and the pairs are put into rounds
      in which everyone sends to at most one device and receives from at most one: one `ppermute` a
      round. As many rounds as the busiest device has partners (Koenig's theorem), so traffic per
      device is pixels times partners, however large the mesh is.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

LARGEST_ALL_TO_ALL = 8  # devices; beyond, the fixed partners cost less


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A static plan for one group layout. S slots: in slot s a device draws for device
    `draws_for[device][s]`.

    | field         | what                                                                         |
    |---------------|------------------------------------------------------------------------------|
    | `axes`        | mesh axes that a group spans                                                 |
    | `rounds`      | pairs (from, to) of every `ppermute`, positions along `axes`; () = one       |
    |               | all_to_all                                                                   |
    | `draws_for`   | per device of the mesh and slot: the device whose cameras it draws then, -1  |
    |               | = nobody's                                                                   |
    | `receives_of` | per device of the mesh and slot: the device whose cells come back in it, -1  |
    |               | = nobody's                                                                   |
    """

    axes: tuple[str, ...]
    rounds: tuple[tuple[tuple[int, int], ...], ...]
    draws_for: tuple[tuple[int, ...], ...]
    receives_of: tuple[tuple[int, ...], ...]

    @property
    def num_slots(self) -> int:
        """S."""
        return len(self.draws_for[0])

    @property
    def num_sent(self) -> int:
        """Slots whose images leave the busiest device in one swap."""
        if not self.rounds:
            return self.num_slots - 1
        return max(sum(other >= 0 for other in slots[1:]) for slots in self.draws_for)

    def swap(self, parts: Any) -> Any:
        """Sends what was drawn in each slot to whom it was drawn for. Inside shard_map;
        differentiable.

        Args:
            parts: pytree of [S, ...] arrays of this device. A slot that receives nothing is zero
                afterwards.
        Returns:
            The same pytree: slot s holds what `receives_of` this device drew for it.
        """
        if self.num_slots == 1:
            return parts
        leaves, tree = jax.tree.flatten(parts)
        # One collective instead of one for each map; flat per slot, so that joining and cutting are
        # plain copies.
        joined = jnp.concatenate([leaf.reshape(self.num_slots, -1) for leaf in leaves], axis=1)
        if self.rounds:
            received = [joined[0]] + [
                jax.lax.ppermute(joined[1 + i], self.axes, pairs)
                for i, pairs in enumerate(self.rounds)
            ]
            joined = jnp.stack(received)
        else:
            joined = jax.lax.all_to_all(joined, self.axes, split_axis=0, concat_axis=0, tiled=True)
        ends = np.cumsum([leaf[0].size for leaf in leaves])[:-1].tolist()
        pieces = jnp.split(joined, ends, axis=1)
        return jax.tree.unflatten(
            tree, [piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)]
        )


class Grouping(NamedTuple):
    """Which blocks form one model, and how the devices that hold it exchange."""

    exchange: Exchange
    group_of_block: Int[np.ndarray, " b"]


def choose_partners(needs: np.ndarray, most: int) -> list[list[int]]:
    """For each device the devices that draw for it, at most `most`; and none draws for more than
    `most` others.

    Args:
        needs: f64[n,n], how much of device i's views lies in the cells of device j; the diagonal is
            not used.
        most: m.
    Returns:
        n lists of devices. The weakest needs are dropped first, ties by number.
    """
    num = len(needs)
    pairs = [
        (-needs[i, j], i, j) for i in range(num) for j in range(num) if i != j and needs[i, j] > 0
    ]
    partners: list[list[int]] = [[] for _ in range(num)]
    num_asked = [0] * num
    for _, i, j in sorted(pairs):
        if len(partners[i]) < most and num_asked[j] < most:
            partners[i].append(j)
            num_asked[j] += 1
    return [sorted(own) for own in partners]


def color_rounds(partners: list[list[int]]) -> list[list[tuple[int, int]]]:
    """Puts the pairs (j draws for i) into the fewest rounds in which no device sends or receives
    twice.

    Args:
        partners: for each device i the devices j that draw for it.
    Returns:
        Rounds of (j, i), as many as the most partners or askers that any device has.
    Source: Koenig 1916: a bipartite graph of greatest degree d has an edge colouring with d
        colours; by alternating paths.
    """
    num = len(partners)
    pairs = [(j, i) for i in range(num) for j in partners[i]]
    num_colors = max(
        [len(own) for own in partners] + [sum(j == s for s, _ in pairs) for j in range(num)] + [0]
    )
    # sends[j][color] = i and gets[i][color] = j of the pair of that colour, -1 = free.
    sends, gets = (np.full((num, max(num_colors, 1)), -1) for _ in range(2))
    for j, i in pairs:
        free_j, free_i = (
            int(np.flatnonzero(table[device] < 0)[0]) for table, device in ((sends, j), (gets, i))
        )
        if free_j != free_i:
            _swap_path(sends, gets, i, free_j, free_i)
        sends[j, free_j] = i
        gets[i, free_j] = j
    return [
        [(j, int(sends[j, color])) for j in range(num) if sends[j, color] >= 0]
        for color in range(num_colors)
    ]


def _swap_path(sends, gets, start: int, first: int, second: int) -> None:
    """Frees colour `first` at receiver `start`: swaps the two colours along the path of them that
    begins there.
    """
    path = []
    at = start
    is_receiver = True
    color = first
    while True:
        other = gets[at, color] if is_receiver else sends[at, color]
        if other < 0:
            break
        path.append((other, at, color) if is_receiver else (at, other, color))
        at = int(other)
        is_receiver = not is_receiver
        color = second if color == first else first
    for j, i, color in path:
        sends[j, color] = -1
        gets[i, color] = -1
    for j, i, color in path:
        color = second if color == first else first
        sends[j, color] = i
        gets[i, color] = j


def plan_exchange(
    mesh_shape: tuple[int, int],
    needs: np.ndarray,
    is_within_rows: bool,
    most: int,
    largest_all_to_all: int = LARGEST_ALL_TO_ALL,
) -> Exchange:
    """The plan for a mesh.

    Args:
        mesh_shape: (rows, devices a row) of the axes ("edge", "device").
        needs: f64[D,D], see `choose_partners`; D devices in the mesh's order.
        is_within_rows: each row is a group of its own (an edge); else all devices are one group.
        most: partners of a device in groups that are too large for an all_to_all.
        largest_all_to_all: devices of a group up to which everyone draws for everyone.
    """
    rows, width = mesh_shape
    axes = ("device",) if is_within_rows else ("edge", "device")
    size = width if is_within_rows else rows * width
    if size <= largest_all_to_all:
        groups = [
            tuple(range(device // size * size, device // size * size + size))
            for device in range(rows * width)
        ]
        return Exchange(axes, (), tuple(groups), tuple(groups))
    rounds: list[set] = []
    draws, receives = ([[device] for device in range(rows * width)] for _ in range(2))
    groups = [range(first, first + size) for first in range(0, rows * width, size)]
    colored = [color_rounds(choose_partners(needs[np.ix_(group, group)], most)) for group in groups]
    for number in range(max(map(len, colored))):
        # Rows share their permutations: the union of what each needs, with nothing to draw where
        # only another row has the pair.
        pairs = [colored[g][number] if number < len(colored[g]) else [] for g in range(len(groups))]
        for parts in _compatible(pairs):
            rounds.append(set().union(*parts))
            for group, part in zip(groups, parts, strict=True):
                sends = dict(part)
                gets = {i: j for j, i in part}
                for position, device in enumerate(group):
                    draws[device].append(group[sends[position]] if position in sends else -1)
                    receives[device].append(group[gets[position]] if position in gets else -1)
    return Exchange(
        axes,
        tuple(tuple(sorted(pairs)) for pairs in rounds),
        tuple(map(tuple, draws)),
        tuple(map(tuple, receives)),
    )


def _compatible(pairs: list[list[tuple[int, int]]]) -> list[list[list[tuple[int, int]]]]:
    """Rounds of all groups together: one round where no two groups disagree on who sends to whom,
    else one for each group.
    """
    union = set().union(*map(set, pairs))
    if len({j for j, _ in union}) == len(union) == len({i for _, i in union}):
        return [pairs]
    return [
        [own if g == number else [] for g, own in enumerate(pairs)]
        for number in range(len(pairs))
        if pairs[number]
    ]
