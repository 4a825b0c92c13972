"""Where everything stands in the generated town: streets, houses on their lots, trees, cars."""

import dataclasses

import numpy as np

from cosurfgs_jax.data.town.solids import (
    Solid,
    Stand,
    embankment,
    post,
    rectangle,
    roofed_box,
    stacked_rings,
)
from cosurfgs_jax.data.town.streets import Streets, make_streets
from cosurfgs_jax.data.town.terrain import Terrain

# Towards it: 51 degrees high, south-east.
SUN = np.array([0.42, -0.47, 0.7762]) / np.linalg.norm([0.42, -0.47, 0.7762])
SIDEWALK_M = 1.6
_TREE_RADII = {False: (1.2, 3.2), True: (1.1, 1.9)}  # m, of broad and of pointed trees


@dataclasses.dataclass(frozen=True)
class Town:
    """Everything that stands in the town; lengths in metres, local frame.

    | field     | shape      | meaning                                     |
    |-----------|------------|---------------------------------------------|
    | `size`    | float      | side of the square that is built on         |
    | `seed`    | int        | of everything random                        |
    | `terrain` | Terrain    |                                             |
    | `streets` | Streets    |                                             |
    | `solids`  | tuple      | all solids                                  |
    | `lots`    | f64[n,2]   | centres of houses (gardens lie around them) |
    | `paved`   | f64[n,4,2] | rectangles of driveways                     |
    """

    size: float
    seed: int
    terrain: Terrain
    streets: Streets
    solids: tuple[Solid, ...]
    lots: np.ndarray
    paved: np.ndarray


def make_town_plan(
    size: float, reach: float, terrain: Terrain, seed: int, *, embankment_deg: float = 0.0
) -> Town:
    """Lay out a town.

    Args:
        size: side of the square, m.
        reach: half side of the square that photographs may show, m; trees and fields go on up to
            there.
        terrain: the ground to build on.
        seed: of everything random.
        embankment_deg: slope of embankments in the place of houses and all else; 0 = a town.
    Returns:
        The town. Solids stay apart except for partners.
    """
    rng = np.random.default_rng([seed, 1])
    streets = make_streets(size, rng)
    builder = _Builder(size, terrain, streets, rng)
    if embankment_deg:
        builder.embankment_deg = embankment_deg
        builder.add_houses()
    else:
        builder.add_landmarks()
        builder.add_houses()
        builder.add_cars()
        builder.add_trees(reach)
    lots = np.array(builder.lots).reshape(-1, 2)
    return Town(
        size,
        seed,
        terrain,
        streets,
        tuple(builder.solids),
        lots,
        np.array(builder.paved).reshape(-1, 4, 2),
    )


class _Builder:
    """Collects solids one after another and keeps them apart."""

    def __init__(self, size, terrain, streets, rng):
        self.size = size
        self.terrain = terrain
        self.streets = streets
        self.rng = rng
        self.solids: list[Solid] = []
        self.lots: list[np.ndarray] = []
        self.paved: list[np.ndarray] = []
        self.circles = np.zeros(
            (0, 3)
        )  # centre and radius around each outline, for quick rejection
        self.outlines: list[np.ndarray] = []
        self.embankment_deg = 0.0  # slope of what stands in the place of houses; 0 = houses

    def _heights(self, outline) -> tuple[float, float]:
        steps = np.roll(outline, -1, 0) - outline
        edges = np.concatenate([outline + part * steps for part in np.linspace(0, 1, 5)])
        heights = self.terrain.heights(edges[:, 0], edges[:, 1])
        return float(heights.min()) - 0.8, float(heights.mean())

    def _is_free(self, outline, gap: float, street_gap: float) -> bool:
        """Whether an outline lies in the town, off the streets and at least `gap` from everything
        so far.
        """
        if np.abs(outline).max() > self.size / 2 - 3:
            return False
        inside = np.concatenate(
            [outline + 0.5 * (np.roll(outline, -1, 0) - outline), outline, outline.mean(0)[None]]
        )
        if (
            min(part.min() for part in self.streets.distances(inside[:, 0], inside[:, 1]))
            < street_gap
        ):
            return False
        return self._is_clear(outline, gap)

    def _is_clear(self, outline, gap: float) -> bool:
        """Whether an outline is at least `gap` from everything so far."""
        center = outline.mean(0)
        radius = np.linalg.norm(outline - center, axis=1).max()
        between = np.hypot(*(self.circles[:, :2] - center).T) - self.circles[:, 2] - radius
        return all(
            _are_apart(outline, self.outlines[number], gap)
            for number in np.flatnonzero(between < gap)
        )

    def _add(self, solids: list[Solid], outline) -> None:
        """Take solids that may run into each other, inside a common outline."""
        first = len(self.solids)
        numbers = tuple(range(first, first + len(solids)))
        for number, solid in zip(numbers, solids, strict=True):
            partners = tuple(other for other in numbers if other != number)
            self.solids.append(dataclasses.replace(solid, partners=partners))
        self.outlines.append(outline)
        center = outline.mean(0)
        radius = np.linalg.norm(outline - center, axis=1).max()
        self.circles = np.concatenate([self.circles, [[*center, radius]]])

    def _style(self) -> int:
        return int(self.rng.integers(1 << 30))

    def add_landmarks(self) -> None:
        """A church and two flat-roofed halls near the centre of towns that are large enough."""
        if self.size < 120:
            return
        for make, length, width, tower in (
            (self._make_church, 24.0, 10.0, 7.0),
            (self._make_hall, 27.0, 16.0, 0.0),
            (self._make_hall, 19.0, 14.0, 0.0),
        ):
            for _ in range(200):
                center = self.rng.uniform(-0.3, 0.3, 2) * self.size
                axis = self._street_axis(center, self.rng.integers(2))
                outline = rectangle(center, axis, length + tower, width)
                if not self._is_free(outline, 5.0, 3.5):
                    continue
                self._add(make(center, axis, length, width), outline)
                self.lots.append(center)
                break

    def _make_church(self, center, axis, length, width) -> list[Solid]:
        floor, ground = self._heights(rectangle(center, axis, length + 7, width))
        style = self._style()
        nave = Stand("church", center + 3 * axis, axis, floor, ground, style)
        tower = Stand("church", center - axis * (length / 2 - 1.5), axis, floor, ground, style + 1)
        return [
            roofed_box(nave, length, width, ground + 8.5, rise=6.5),
            roofed_box(tower, 6.2, 6.4, ground + 17.0, rise=9.0, hip=1.0),
        ]

    def _make_hall(self, center, axis, length, width) -> list[Solid]:
        floor, ground = self._heights(rectangle(center, axis, length, width))
        top = ground + self.rng.uniform(5.5, 9.5)
        solids = [
            roofed_box(
                Stand("flat", center, axis, floor, ground, self._style()), length, width, top
            )
        ]
        across = np.array([-axis[1], axis[0]])
        positions = (-0.3, 0.02, 0.31)
        if length <= 20:
            positions = positions[:2]
        for position in positions:
            at = center + axis * position * length + across * self.rng.uniform(-0.25, 0.25) * width
            size = self.rng.uniform(1.6, 3.4, 2)
            stand = Stand("chimney", at, axis, top - 0.5, top - 0.5, self._style())
            solids.append(post(stand, *size, top + self.rng.uniform(0.8, 1.8)))
        return solids

    def _street_axis(self, center, family) -> np.ndarray:
        """Unit direction along the streets of a family (0: lines of equal a) near a position."""
        a, b = (float(part) for part in self.streets.coordinates(center[0], center[1]))
        step = _in_family(family, 0.0, 0.5)
        along = self.streets.positions(a + step[0], b + step[1]) - self.streets.positions(
            a - step[0], b - step[1]
        )
        return along / np.linalg.norm(along)

    def add_houses(self) -> None:
        """Houses along both sides of the streets, or embankments."""
        streets = self.streets
        for family, lines, half_widths in (
            (0, streets.lines_a, streets.half_widths_a),
            (1, streets.lines_b, streets.half_widths_b),
        ):
            for line, half_width in zip(lines, half_widths, strict=True):
                for side in (-1, 1):
                    along = -0.8 * self.size + self.rng.uniform(0, 12)
                    while along < 0.8 * self.size:
                        if self._try_house(family, line, half_width, side=side, along=along):
                            along += self.rng.uniform(10.0, 14.0)
                        else:
                            along += 2.0

    def _try_house(self, family, line, half_width, *, side, along) -> bool:
        length = self.rng.uniform(8.5, 13.5)
        width = self.rng.uniform(7.0, 9.0)
        is_turned = self.rng.random() < 0.4
        depth = width
        if is_turned:
            depth = length
        off = side * (half_width + SIDEWALK_M + self.rng.uniform(1.5, 4.0) + depth / 2)
        center = self.streets.positions(*_in_family(family, line + off, along))
        if np.abs(center).max() > self.size / 2 - 4:
            return False
        turn = self.rng.normal(0, 0.04) + np.pi / 2 * is_turned
        axis = self._street_axis(center, family)
        axis = np.cos(turn) * axis + np.sin(turn) * np.array([-axis[1], axis[0]])
        if self.embankment_deg:
            solids, outline = self._make_embankment(center, axis, length, width)
        else:
            solids, outline = self._make_house(center, axis, length, width)
        if not self._is_free(outline, 2.6, SIDEWALK_M + 0.6):
            return False
        self._add(solids, outline)
        if self.embankment_deg:
            return True
        self.lots.append(center)
        kerb = line + side * half_width
        end = self.streets.positions(*_in_family(family, kerb, along))
        out = center - end
        reach = float(np.linalg.norm(out))
        self.paved.append(
            rectangle((center + end) / 2, out / reach, reach, self.rng.uniform(1.4, 3.0))
        )
        return True

    def _make_embankment(self, center, axis, length, width) -> tuple[list[Solid], np.ndarray]:
        outline = rectangle(center, axis, length, width)
        stand = Stand("embankment", center, axis, *self._heights(outline), self._style())
        foot = float(self.terrain.heights(*outline.T).max()) + 0.3
        solid = embankment(stand, length, width, foot=foot, slope_deg=self.embankment_deg)
        return [solid], outline

    def _make_house(self, center, axis, length, width) -> tuple[list[Solid], np.ndarray]:
        rng = self.rng
        style = self._style()
        across = np.array([-axis[1], axis[0]])
        form = rng.choice(
            ["gable", "wing", "hip", "tent", "flat"], p=[0.32, 0.38, 0.17, 0.05, 0.08]
        )
        outline = rectangle(center, axis, length, width)
        wing_length = rng.uniform(4.0, 5.5) + width / 2
        wing_width = rng.uniform(0.42, 0.5) * length
        if form == "wing":
            outline = rectangle(
                center + across * (wing_length - width / 2) / 2,
                axis,
                length,
                wing_length + width / 2,
            )
        floor, ground = self._heights(outline)
        eave = ground + _eave_height(rng)
        if form == "flat":
            eave = ground + rng.choice([3.2, 6.1, 8.8]) + rng.uniform(0, 0.4)
            solids = [
                roofed_box(Stand("flat", center, axis, floor, ground, style), length, width, eave)
            ]
        else:
            rise = width / 2 * np.tan(np.radians(rng.uniform(32, 47)))
            hip = {"hip": rng.uniform(0.35, 0.6), "tent": 1.0}.get(form, 0.0)
            solids = [
                roofed_box(
                    Stand("house", center, axis, floor, ground, style),
                    length,
                    width,
                    eave,
                    rise,
                    hip,
                )
            ]
        if form == "wing":
            # The ridge stays below the main one and the inner end on the main centre line: it ends
            # under the main roof.
            at = (
                center
                + across * wing_length / 2
                + axis * rng.choice([-1, 1]) * (length / 2 - wing_width / 2 - 0.8)
            )
            lower = rng.uniform(0.5, 0.8)
            wing_rise = min(wing_width / 2 * np.tan(np.radians(40)), rise + lower - 0.4)
            stand = Stand("house", at, across, floor, ground, style)
            solids.append(roofed_box(stand, wing_length, wing_width, eave - lower, wing_rise))
        if form in ("gable", "wing", "hip") and rng.random() < 0.75:
            side = rng.uniform(0.12, 0.3) * rng.choice([-1, 1])
            top = eave + rise * (1 - 2 * abs(side)) + rng.uniform(1.0, 1.6)
            at = center + axis * rng.uniform(-0.3, 0.3) * length + across * side * width
            if hip or form == "wing":
                at = center + across * -abs(side) * width
            stand = Stand("chimney", at, axis, eave - 0.3, eave - 0.3, style + 7)
            solids.append(post(stand, *rng.uniform(0.6, 1.0, 2), top))
        return solids, outline

    def add_cars(self) -> None:
        """Cars that stand at the kerb."""
        for _ in range(max(4, int(60 * (self.size / 200) ** 2))):
            line = self.rng.integers(len(self.streets.lines_a))
            side = self.rng.choice([-1, 1])
            a = self.streets.lines_a[line] + side * (self.streets.half_widths_a[line] - 1.1)
            center = self.streets.positions(a, self.rng.uniform(-0.6, 0.6) * self.size)
            axis = self._street_axis(center, 0)
            outline = rectangle(center, axis, 4.4, 1.85)
            if np.abs(outline).max() > self.size / 2 or not self._is_clear(outline, 0.6):
                continue
            floor, ground = self._heights(outline)
            rings = [(0.85, 2.2, 0.92), (1.42, 1.3, 0.72)]
            stand = Stand("car", center, axis, floor, ground, self._style())
            self._add([stacked_rings(stand, rings, num_sides=4)], outline)

    def add_trees(self, reach: float) -> None:
        """Broad trees and pointed ones, in gardens and, in loose groups, in the fields."""
        groups = self.rng.uniform(-reach, reach, (40, 2))
        for i in range(int(0.006 * (2 * reach) ** 2)):
            if i % 3 == 0:
                center = groups[self.rng.integers(len(groups))] + self.rng.normal(0, 7, 2)
            else:
                center = self.rng.uniform(-self.size / 2, self.size / 2, 2)
            is_pointed = self.rng.random() < 0.3
            radius = self.rng.uniform(*_TREE_RADII[is_pointed])
            to_street = min(float(part) for part in self.streets.distances(center[0], center[1]))
            outline = rectangle(center, (1.0, 0.0), 2 * radius, 2 * radius)
            is_outside = to_street < radius + 0.5 or np.abs(center).max() > reach
            if is_outside or not self._is_clear(outline, 0.8):
                continue
            floor, ground = self._heights(outline)
            self._add([self._make_tree(center, radius, is_pointed, floor, ground)], outline)

    def _make_tree(self, center, radius, is_pointed, floor, ground) -> Solid:
        turn = self.rng.uniform(0, np.pi)
        axis = np.array([np.cos(turn), np.sin(turn)])
        stand = Stand("tree", center, axis, floor, ground, self._style())
        if is_pointed:
            return stacked_rings(
                stand, [(0.9, radius, radius)], 8, apex=self.rng.uniform(3.2, 4.5) * radius
            )
        height = self.rng.uniform(1.5, 2.2) * radius
        shape = ((0.42, 1.0), (0.72, 0.8), (0.92, 0.45))
        rings = [(part * height, wide * radius, wide * radius) for part, wide in shape]
        return stacked_rings(stand, rings, 8, apex=height)


def _in_family(family: int | np.integer, across: float, along: float) -> tuple[float, float]:
    """Street coordinates (a, b) of a position across and along the streets of a family."""
    if family == 0:
        return across, along
    return along, across


def _eave_height(rng) -> float:
    """Height of the eaves of a house with one or two storeys, m."""
    if rng.random() < 0.45:
        return rng.uniform(2.9, 3.6)
    return rng.uniform(5.3, 6.2)


def _are_apart(first, second, gap: float) -> bool:
    """Whether two convex outlines are at least `gap` metres apart (separating axis over their
    edges).
    """
    for outline in (first, second):
        edges = np.roll(outline, -1, 0) - outline
        normals = (
            np.stack([edges[:, 1], -edges[:, 0]], axis=1) / np.linalg.norm(edges, axis=1)[:, None]
        )
        ranges = [(normals @ corners.T) for corners in (first, second)]
        lower = ranges[1].min(1) - ranges[0].max(1)
        upper = ranges[0].min(1) - ranges[1].max(1)
        if max(lower.max(), upper.max()) >= gap:
            return True
    return False
