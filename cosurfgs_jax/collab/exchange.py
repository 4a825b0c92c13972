"""Who draws for whom: the exchange of cameras and partial images between the devices of a mesh.

Each device holds cells of the model and has cameras of its own. A camera sees cells of several
devices, its partners: each of them draws its own cells for that camera, and sends back a partial
image. The plan is a function of cells and poses, which all devices know, so only images move.

Two ways, chosen by the number of devices in a group that shares a model:
    - all_to_all: every device draws for every other device. One collective; traffic grows with the
      group.
    - rounds: each device has at most m fixed partners, and the pairs are put into rounds in which
      every device sends to at most one device and receives from at most one: one `ppermute` a
      round. There are as many rounds as the busiest device has partners (Koenig's theorem), so
      traffic per device is pixels times partners, however large the mesh is.
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
    | `draws_for`   | per device of the mesh and slot: the device whose cameras it draws; -1 =     |
    |               | none                                                                         |
    | `receives_of` | per device of the mesh and slot: the device whose cells come back; -1 = none |
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
        """Sends the drawing of each slot to the device that it was drawn for. Inside shard_map;
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
        # One collective for all maps; flat per slot, so that joining and cutting are plain copies.
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


def choose_partners(needs: np.ndarray, max_partners: int) -> list[list[int]]:
    """For each device the devices that draw for it, at most `max_partners`; and none draws for more
    than `max_partners` others.

    Args:
        needs: f64[n,n], how much of device i's views lies in the cells of device j; the diagonal is
            not used.
        max_partners: m.
    Returns:
        n lists of devices. The weakest needs are dropped first, ties by number.
    """
    num = len(needs)
    pairs = [(-needs[i, j], i, j) for i, j in np.argwhere(needs > 0).tolist() if i != j]
    partners: list[list[int]] = [[] for _ in range(num)]
    num_asked = [0] * num
    for _, i, j in sorted(pairs):
        if max(len(partners[i]), num_asked[j]) < max_partners:
            partners[i].append(j)
            num_asked[j] += 1
    return [sorted(own) for own in partners]


def color_rounds(partners: list[list[int]]) -> list[list[tuple[int, int]]]:
    """Puts the pairs (j draws for i) into the fewest rounds in which no device sends or receives
    twice.

    Args:
        partners: for each device i the devices j that draw for it.
    Returns:
        Rounds of (j, i), as many as the largest number of partners or askers of any device.
    Source: Koenig 1916: a bipartite graph of maximum degree d has an edge colouring with d colours;
        by alternating paths.
    """
    num = len(partners)
    pairs = [(j, i) for i in range(num) for j in partners[i]]
    num_colors = max(
        [len(own) for own in partners] + [sum(j == s for s, _ in pairs) for j in range(num)] + [0]
    )
    # sends[j][color] = i and gets[i][color] = j of the pair of that colour, -1 = free.
    sends = np.full((num, max(num_colors, 1)), -1)
    gets = np.full_like(sends, -1)
    for j, i in pairs:
        free_j = _first_free(sends[j])
        free_i = _first_free(gets[i])
        if free_j != free_i:
            _swap_path(sends, gets, i, free_j, free_i)
        sends[j, free_j] = i
        gets[i, free_j] = j
    return [
        [(j, int(sends[j, color])) for j in range(num) if sends[j, color] >= 0]
        for color in range(num_colors)
    ]


def _first_free(colors: np.ndarray) -> int:
    return int(np.flatnonzero(colors < 0)[0])


def _swap_path(sends: np.ndarray, gets: np.ndarray, start: int, first: int, second: int) -> None:
    """Frees colour `first` at receiver `start`: swaps the two colours along their alternating path
    that begins there.
    """
    swapped = {first: second, second: first}
    path = []
    receiver = start
    color = first
    # From a receiver to its sender in one colour, and on to that sender's receiver in the other.
    while (sender := int(gets[receiver, color])) >= 0:
        path.append((sender, receiver, color))
        other = swapped[color]
        receiver = int(sends[sender, other])
        if receiver < 0:
            break
        path.append((sender, receiver, other))
    for j, i, color in path:
        sends[j, color] = -1
        gets[i, color] = -1
    for j, i, color in path:
        sends[j, swapped[color]] = i
        gets[i, swapped[color]] = j


def plan_exchange(
    mesh_shape: tuple[int, int],
    needs: np.ndarray,
    is_within_rows: bool,
    max_partners: int,
    largest_all_to_all: int = LARGEST_ALL_TO_ALL,
) -> Exchange:
    """The plan for a mesh.

    Args:
        mesh_shape: (rows, devices a row) of the axes ("edge", "device").
        needs: f64[D,D], see `choose_partners`; D devices in the mesh's order.
        is_within_rows: each row is a group of its own (an edge); else all devices are one group.
        max_partners: of a device, in groups that are too large for an all_to_all.
        largest_all_to_all: devices of a group up to which every device draws for every other one.
    """
    rows, width = mesh_shape
    axes = ("edge", "device")
    size = rows * width
    if is_within_rows:
        axes = ("device",)
        size = width
    if size <= largest_all_to_all:
        groups = [
            tuple(range(device // size * size, device // size * size + size))
            for device in range(rows * width)
        ]
        return Exchange(axes, (), tuple(groups), tuple(groups))
    rounds: list[set] = []
    draws = [[device] for device in range(rows * width)]
    receives = [[device] for device in range(rows * width)]
    groups = [range(first, first + size) for first in range(0, rows * width, size)]
    colored = [
        color_rounds(choose_partners(needs[np.ix_(group, group)], max_partners)) for group in groups
    ]
    for number in range(max(map(len, colored))):
        # Groups share their permutations: the union of their pairs, with nothing to draw where only
        # another group has the pair.
        pairs = [own[number] if number < len(own) else [] for own in colored]
        for parts in _compatible(pairs):
            rounds.append(set().union(*parts))
            for group, part in zip(groups, parts, strict=True):
                sends = {group[j]: group[i] for j, i in part}
                gets = {group[i]: group[j] for j, i in part}
                for device in group:
                    draws[device].append(sends.get(device, -1))
                    receives[device].append(gets.get(device, -1))
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
