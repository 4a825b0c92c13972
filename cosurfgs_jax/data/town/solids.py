"""Convex solids that the generated town is built of: houses, chimneys, trees, cars.

Lengths are metres in the local frame of the town. A solid's sides are vertical where they meet the
ground, so that its outline seen from above is exactly where the ground ends.
"""

import dataclasses

import numpy as np

_EMBANKMENT_M = 6.0  # height of an embankment above its foot, at most


@dataclasses.dataclass(frozen=True)
class Solid:
    """A convex polyhedron without its bottom face.

    | field         | shape    | unit, meaning                                                     |
    |---------------|----------|-------------------------------------------------------------------|
    | `kind`        | text     | "house", "flat", "church", "chimney", "tree", "car", "embankment" |
    | `vertices`    | f64[n,3] | m, local frame                                                    |
    | `faces`       | tuples   | vertex numbers, counter-clockwise seen from outside; the sides    |
    |               |          | come first                                                        |
    | `planes`      | f64[m,4] | outward unit normal and offset per face: outside where n.x + d >  |
    |               |          | 0                                                                 |
    | `footprint`   | f64[k,2] | outline at the ground, counter-clockwise seen from above          |
    | `floor`       | float    | height of the bottom, below the ground                            |
    | `ground`      | float    | height from which storeys are counted                             |
    | `axis`        | f64[2]   | unit direction of the ridge (or the front)                        |
    | `style`       | int      | seed of the surface's look                                        |
    | `is_grounded` | bool     | False for what stands on a roof                                   |
    | `partners`    | tuple    | numbers of the solids that it may run into                        |
    """

    kind: str
    vertices: np.ndarray
    faces: tuple[tuple[int, ...], ...]
    planes: np.ndarray
    footprint: np.ndarray
    floor: float
    ground: float
    axis: np.ndarray
    style: int
    is_grounded: bool = True
    partners: tuple[int, ...] = ()

    @property
    def num_sides(self) -> int:
        """Number of side faces, which are the first ones and follow the footprint's edges."""
        return len(self.footprint)


@dataclasses.dataclass(frozen=True)
class Stand:
    """Where and how a solid stands: the fields of `Solid` of the same names, and the centre f64[2]
    of its outline.
    """

    kind: str
    center: np.ndarray
    axis: np.ndarray
    floor: float
    ground: float
    style: int


def _finish(stand: Stand, vertices, faces, footprint) -> Solid:
    vertices = np.asarray(vertices, np.float64)
    first, second, third = (vertices[[face[k] for face in faces]] for k in range(3))
    normals = np.cross(second - first, third - second)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    planes = np.column_stack([normals, -np.sum(normals * first, axis=1)])
    return Solid(
        kind=stand.kind,
        vertices=vertices,
        faces=tuple(tuple(face) for face in faces),
        planes=planes,
        footprint=footprint,
        floor=float(stand.floor),
        ground=float(stand.ground),
        axis=np.asarray(stand.axis),
        style=int(stand.style),
    )


def rectangle(center, axis, length: float, width: float) -> np.ndarray:
    """Corners f64[4,2] of a rectangle, counter-clockwise from (-,-), its length along the unit
    vector `axis`.
    """
    along = np.asarray(axis) * length / 2
    across = np.array([-axis[1], axis[0]]) * width / 2
    center = np.asarray(center)
    return center + np.array([-along - across, along - across, along + across, -along + across])


def roofed_box(
    stand: Stand, length: float, width: float, eave: float, rise: float = 0.0, hip: float = 0.0
) -> Solid:
    """A rectangular house under a gabled, hipped or tent roof, or a flat one.

    Args:
        stand: its place; the ridge runs along the axis.
        length, width: of the outline, m.
        eave: height of the eaves, m, in the local frame.
        rise: height of the ridge above the eaves, m; 0 for a flat roof.
        hip: how far the ends of the ridge are drawn in, as a fraction of half the length: 0 gable,
            1 tent.
    """
    center = np.asarray(stand.center)
    axis = np.asarray(stand.axis)
    corners = rectangle(center, axis, length, width)
    vertices = [(*corner, stand.floor) for corner in corners] + [
        (*corner, eave) for corner in corners
    ]
    # Sides in the order of the outline's edges: front (along the axis), right end, back, left end.
    faces = [(0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7)]
    if rise <= 0:
        faces.append((4, 5, 6, 7))
    elif hip >= 1:
        vertices.append((*center, eave + rise))
        faces += [(4, 5, 8), (5, 6, 8), (6, 7, 8), (7, 4, 8)]
    else:
        half = axis * length / 2 * (1 - hip)
        vertices += [(*(center + half), eave + rise), (*(center - half), eave + rise)]
        if hip > 0:
            faces += [(4, 5, 8, 9), (6, 7, 9, 8), (5, 6, 8), (7, 4, 9)]
        else:
            faces[1] = (1, 2, 6, 8, 5)
            faces[3] = (3, 0, 4, 9, 7)
            faces += [(4, 5, 8, 9), (6, 7, 9, 8)]
    return _finish(stand, vertices, faces, corners)


def stacked_rings(stand: Stand, rings, num_sides: int, apex: float | None = None) -> Solid:
    """A round or boxy solid from similar outlines above each other (trees, cars); it is upright up
    to the first one.

    Args:
        stand: its place.
        rings: (height above ground, half length, half width) of each outline, never growing and
            bending inwards ever more, so that the solid is convex.
        num_sides: corners of a ring; 4 gives rectangles.
        apex: height above ground of a tip, or None for a flat top.
    """
    center = np.asarray(stand.center)
    axis = stand.axis
    turn = 0.25 * np.pi if num_sides == 4 else 0.0
    angles = turn + 2 * np.pi * np.arange(num_sides) / num_sides
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1) / (
        np.cos(turn) if num_sides == 4 else 1.0
    )
    basis = np.array([axis, [-axis[1], axis[0]]])
    levels = [(stand.floor, *rings[0][1:])] + [
        (stand.ground + height, a, b) for height, a, b in rings
    ]
    vertices = [(*(center + (corner * (a, b)) @ basis), z) for z, a, b in levels for corner in unit]
    faces = []
    for level in range(len(levels) - 1):
        low = level * num_sides
        high = (level + 1) * num_sides
        for i in range(num_sides):
            j = (i + 1) % num_sides
            faces.append((low + i, low + j, high + j, high + i))
    top = (len(levels) - 1) * num_sides
    if apex is None:
        faces.append(tuple(range(top, top + num_sides)))
    else:
        vertices.append((*center, stand.ground + apex))
        faces += [(top + i, top + (i + 1) % num_sides, len(vertices) - 1) for i in range(num_sides)]
    return _finish(
        stand, vertices, faces, np.array([vertex[:2] for vertex in vertices[:num_sides]])
    )


def embankment(
    stand: Stand, length: float, width: float, *, foot: float, slope_deg: float
) -> Solid:
    """Earth with a flat top, on an upright foot.

    Args:
        stand: its place.
        length, width: of the outline, m.
        foot: height of the foot's top, m, in the local frame; above all ground at the outline.
        slope_deg: of the sides above it, from the horizontal.
    """
    slope = np.tan(np.radians(slope_deg))
    height = min(_EMBANKMENT_M, 0.4 * width * slope)
    low, inset = foot - stand.ground, height / slope
    rings = [
        (low, length / 2, width / 2),
        (low + height, length / 2 - inset, width / 2 - inset),
    ]
    return stacked_rings(stand, rings, num_sides=4)


def post(stand: Stand, length: float, width: float, top: float) -> Solid:
    """A box that stands in another solid's roof, such as a chimney."""
    return dataclasses.replace(roofed_box(stand, length, width, top), is_grounded=False)


def chord_towards(planes: np.ndarray, positions, direction: np.ndarray) -> np.ndarray:
    """Length of the way through a convex solid of rays in one direction; 0 where it is missed.

    Args:
        planes: f64[m,4] of the solid.
        positions: x, y, z of the starting points, arrays that broadcast.
        direction: f64[3] unit.
    Returns:
        Metres inside the solid, in front of the starting points.
    """
    enter = 0.0
    leave = np.inf
    for normal_x, normal_y, normal_z, offset in planes.tolist():
        outside = (
            normal_x * positions[0] + normal_y * positions[1] + normal_z * positions[2] + offset
        )
        rate = normal_x * direction[0] + normal_y * direction[1] + normal_z * direction[2]
        if abs(rate) < 1e-9:
            leave = np.where(outside > 0, -np.inf, leave)
        elif rate < 0:
            enter = np.maximum(enter, outside / -rate)
        else:
            leave = np.minimum(leave, outside / -rate)
    return np.maximum(leave - enter, 0.0)
