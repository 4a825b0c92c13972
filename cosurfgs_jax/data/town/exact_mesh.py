"""The visible surface of the generated town as triangles, and points sampled on it.

What lies inside solids or below the ground is cut away exactly: solids are convex, so that a
triangle minus a solid is a few triangles.
"""

import dataclasses

import numpy as np

from cosurfgs_jax.data.town.flight import Flight
from cosurfgs_jax.data.town.layout import Town
from cosurfgs_jax.data.town.solids import Solid

GROUND = -1  # face number of triangles of the ground
_MAX_ERROR = 4e-5  # of the town's side: how far the triangles of the ground may be from its height


@dataclasses.dataclass(frozen=True)
class TownMesh:
    """Triangles and where they come from.

    | field       | shape    | unit, meaning                                                       |
    |-------------|----------|---------------------------------------------------------------------|
    | `vertices`  | f64[n,3] | m, local frame                                                      |
    | `triangles` | i64[m,3] | counter-clockwise from outside                                      |
    | `faces`     | i64[m]   | number of the solids' face, in the order of `town.solids`, or       |
    |             |          | GROUND                                                              |
    """

    vertices: np.ndarray
    triangles: np.ndarray
    faces: np.ndarray


def build_mesh(town: Town, flight: Flight, reach: float) -> TownMesh:
    """The surface of the town, as far as the ground lies in any photograph's frame.

    Args:
        town: what is there.
        flight: cuts away ground that no photograph can show.
        reach: half side of the square of ground, m.
    """
    spacing = np.sqrt(4 * _MAX_ERROR * town.size / town.terrain.max_curvature)
    vertices, triangles = _ground_grid(town, flight, reach, spacing)
    is_cut = _near_solids(town, vertices, triangles)
    pieces = [_cut_ground(town, vertices[triangles[is_cut]])]
    faces = [np.full(len(pieces[0]), GROUND)]
    first = 0
    for solid in town.solids:
        soup, sides = _solid_triangles(solid, town, spacing)
        for number in solid.partners:
            soup, sides = subtract_convex(soup, sides, town.solids[number].planes)
        pieces.append(soup)
        faces.append(first + sides)
        first += len(solid.faces)
    kept = triangles[~is_cut]
    used, kept = np.unique(kept, return_inverse=True)
    kept = kept.reshape(-1, 3)
    soup_vertices, soup_triangles, is_solid = _weld(np.concatenate(pieces))
    return TownMesh(
        vertices=np.concatenate([vertices[used], soup_vertices]),
        triangles=np.concatenate([kept, soup_triangles + len(used)]),
        faces=np.concatenate([np.full(len(kept), GROUND), np.concatenate(faces)[is_solid]]),
    )


def _ground_grid(town, flight, reach, spacing):
    """Triangles of the ground that lie in some photograph's frame."""
    count = int(np.ceil(2 * reach / spacing)) + 1
    at = np.linspace(-reach, reach, count)
    x, y = np.meshgrid(at, at)
    vertices = np.stack([x, y, town.terrain.heights(x, y)], axis=-1).reshape(-1, 3)
    is_seen = np.zeros(len(vertices), bool)
    limits = np.array([flight.width, flight.height])
    for pose in flight.camera_from_local:
        rows = flight.intrinsics @ pose[:3]
        pixels = vertices @ rows[:, :3].T + rows[:, 3]
        depth = pixels[:, 2:]
        inside = (pixels[:, :2] > 0) & (pixels[:, :2] < limits * depth)
        is_seen |= (depth[:, 0] > 1) & inside[:, 0] & inside[:, 1]
    corner = (np.arange(count - 1)[:, None] * count + np.arange(count - 1)).reshape(-1, 1)
    triangles = (corner + np.array([0, 1, count + 1, 0, count + 1, count])).reshape(-1, 3)
    a, b, c = triangles.T
    return vertices, triangles[is_seen[a] | is_seen[b] | is_seen[c]]


def _near_solids(town, vertices, triangles) -> np.ndarray:
    """Whether each triangle's box meets the box of a footprint."""
    low, high = _boxes(vertices[triangles])
    order = np.argsort(low[:, 1], kind="stable")
    sorted_y = low[order, 1]
    height = (high - low)[:, 1].max()
    is_near = np.zeros(len(triangles), bool)
    for solid in town.solids:
        if not solid.is_grounded:
            continue
        box_low = solid.footprint.min(0)
        box_high = solid.footprint.max(0)
        band = order[
            np.searchsorted(sorted_y, box_low[1] - height) : np.searchsorted(
                sorted_y, box_high[1], "right"
            )
        ]
        is_near[band[np.all((high[band] >= box_low) & (low[band] <= box_high), axis=1)]] = True
    return is_near


def _cut_ground(town: Town, soup: np.ndarray) -> np.ndarray:
    """Triangles of the ground minus all footprints."""
    done = []
    soup = soup[np.argsort(_boxes(soup)[0][:, 0], kind="stable")]
    box_low, box_high = _boxes(soup)
    for solid in sorted(
        (s for s in town.solids if s.is_grounded), key=lambda s: s.footprint[:, 0].min()
    ):
        low = solid.footprint.min(0)
        high = solid.footprint.max(0)
        # Solids come from west to east: what lies west of this one is met by none of the later
        # ones.
        is_done = box_high[:, 0] < low[0]
        is_near = (box_high[:, 0] >= low[0]) & (box_high[:, 1] >= low[1])
        is_near &= (box_low[:, 0] <= high[0]) & (box_low[:, 1] <= high[1])
        done.append(soup[is_done])
        sides = solid.planes[: solid.num_sides]
        cut, _ = subtract_convex(soup[is_near], np.zeros(is_near.sum(), np.int64), sides)
        is_kept = ~(is_done | is_near)
        soup = np.concatenate([soup[is_kept], cut])
        cut_low, cut_high = _boxes(cut)
        box_low = np.concatenate([box_low[is_kept], cut_low])
        box_high = np.concatenate([box_high[is_kept], cut_high])
    return np.concatenate([*done, soup])


def _boxes(soup) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest x, y of triangles f64[n,3,3]; ten times as fast as reductions over an axis
    of three.
    """
    a = soup[:, 0, :2]
    b = soup[:, 1, :2]
    c = soup[:, 2, :2]
    return np.minimum(np.minimum(a, b), c), np.maximum(np.maximum(a, b), c)


def _solid_triangles(solid: Solid, town: Town, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Triangles f64[n,3,3] of a solid above the ground, and the face i64[n] of each."""
    soup = []
    sides = []
    for side, face in enumerate(solid.faces):
        points = solid.vertices[list(face)]
        if solid.is_grounded and side < solid.num_sides:
            part = _wall_triangles(points, town, spacing)
        else:
            part = np.array(
                [[points[0], points[k], points[k + 1]] for k in range(1, len(points) - 1)]
            )
        soup.append(part)
        sides.append(np.full(len(part), side))
    return np.concatenate(soup), np.concatenate(sides)


def _wall_triangles(points, town: Town, spacing: float) -> np.ndarray:
    """A wall from the ground to its upper edge, in upright strips; `points` starts with the two
    lower corners.
    """
    start = points[0, :2]
    end = points[1, :2]
    length = np.linalg.norm(end - start)
    # The upper edge runs back from the second lower corner to the first.
    top = points[2:][::-1]
    fraction_top = (top[:, :2] - start) @ (end - start) / length**2
    fractions = np.union1d(
        np.linspace(0, 1, int(np.ceil(length / spacing)) + 1), np.clip(fraction_top, 0, 1)
    )
    fractions = fractions[np.concatenate([[True], np.diff(fractions) > 1e-9])]
    fractions[-1] = 1.0
    along = start + fractions[:, None] * (end - start)
    bottom = np.column_stack([along, town.terrain.heights(along[:, 0], along[:, 1])])
    upper = np.column_stack([along, np.interp(fractions, fraction_top, top[:, 2])])
    first = np.stack([bottom[:-1], bottom[1:], upper[1:]], axis=1)
    return np.concatenate([first, np.stack([bottom[:-1], upper[1:], upper[:-1]], axis=1)])


def subtract_convex(
    soup: np.ndarray, labels: np.ndarray, planes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Triangles minus a convex solid.

    Args:
        soup: f64[n,3,3] corners.
        labels: i64[n], kept by the pieces.
        planes: f64[m,4] of the solid, outside where n.x + d > 0.
    Returns:
        Pieces outside of the solid and their labels.
    """
    kept = []
    kept_labels = []
    for plane in planes:
        if not len(soup):
            break
        outside, inside = _split(soup, plane)
        kept.append(outside[0])
        kept_labels.append(labels[outside[1]])
        soup = inside[0]
        labels = labels[inside[1]]
    if not kept:
        return soup, labels
    return np.concatenate(kept), np.concatenate(kept_labels)


def _split(soup, plane):
    """Parts of triangles outside and inside of a plane: ((corners, source), (corners, source))."""
    distance = soup @ plane[:3] + plane[3]
    distance[np.abs(distance) < 1e-9] = 0.0
    is_out = distance > 0
    is_in = distance < 0
    any_out, any_in = (part[:, 0] | part[:, 1] | part[:, 2] for part in (is_out, is_in))
    whole_out = np.flatnonzero(~any_in)  # in the plane counts as outside: it is surface
    whole_in = np.flatnonzero(any_in & ~any_out)
    crossed = np.flatnonzero(any_in & any_out)
    # Turn each crossed triangle so that its first corner is alone on its side (a corner in the
    # plane goes with the others).
    alone_out = is_out[crossed].sum(axis=1) == 1
    lone = np.where(alone_out, is_out[crossed].argmax(axis=1), is_in[crossed].argmax(axis=1))
    turned = (lone[:, None] + np.arange(3)) % 3
    corners = np.take_along_axis(soup[crossed], turned[:, :, None], axis=1)
    signed = np.take_along_axis(distance[crossed], turned, axis=1)
    apex = corners[:, 0]
    second = corners[:, 1]
    third = corners[:, 2]
    fraction_2 = (signed[:, 0] / (signed[:, 0] - signed[:, 1]))[:, None]
    fraction_3 = (signed[:, 0] / (signed[:, 0] - signed[:, 2]))[:, None]
    cut_2 = apex + fraction_2 * (second - apex)
    cut_3 = apex + fraction_3 * (third - apex)
    tip = np.stack([apex, cut_2, cut_3], axis=1)
    rest = np.concatenate(
        [np.stack([cut_2, second, third], axis=1), np.stack([cut_2, third, cut_3], axis=1)]
    )
    rest_source = np.concatenate([crossed, crossed])
    rest_out = np.concatenate([~alone_out, ~alone_out])
    parts = []
    for whole, is_tip, is_rest in (
        (whole_out, alone_out, rest_out),
        (whole_in, ~alone_out, ~rest_out),
    ):
        parts.append(
            (
                np.concatenate([soup[whole], tip[is_tip], rest[is_rest]]),
                np.concatenate([whole, crossed[is_tip], rest_source[is_rest]]),
            )
        )
    return parts


def _weld(soup: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners that agree to a hundredth of a millimetre become one vertex; slivers of no area go.

    Returns:
        vertices, triangles, and which of the given triangles are kept.
    """
    keys = np.round(soup.reshape(-1, 3) * 1e5).astype(np.int64)
    order = np.lexsort(keys.T)
    is_new = np.concatenate([[True], np.any(np.diff(keys[order], axis=0) != 0, axis=1)])
    number = np.empty(len(keys), np.int64)
    number[order] = np.cumsum(is_new) - 1
    triangles = number.reshape(-1, 3)
    vertices = soup.reshape(-1, 3)[order[is_new]]
    normal = np.cross(
        vertices[triangles[:, 1]] - vertices[triangles[:, 0]],
        vertices[triangles[:, 2]] - vertices[triangles[:, 0]],
    )
    is_kept = np.linalg.norm(normal, axis=1) > 1e-8
    return vertices, triangles[is_kept], is_kept


def sample_surface(
    mesh: TownMesh,
    town: Town,
    planes: np.ndarray,
    spacing: float,
    limits: tuple[int, int],
    seed: int,
):
    """Points spread evenly by area on the exact surface.

    Args:
        mesh: of the town.
        town: gives the exact height of points on the ground.
        planes: f64[F,4] of all faces.
        spacing: wanted distance between points, m.
        limits: fewest and most points.
        seed: of the positions.
    Returns:
        points f64[n,3] and unit normals f64[n,3], in no order.
    """
    rng = np.random.default_rng([seed, 6])
    a, b, c = (mesh.vertices[mesh.triangles[:, k]] for k in range(3))
    ends = np.cumsum(0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1))
    count = int(np.clip(ends[-1] / spacing**2, *limits))
    # One point in each of `count` equal parts of the area is more even than independent points.
    which = np.searchsorted(ends, (rng.permutation(count) + rng.random(count)) / count * ends[-1])
    which = np.minimum(which, len(ends) - 1)
    u, v = rng.random((2, count, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    points = a[which] + u * (b - a)[which] + v * (c - a)[which]
    face = mesh.faces[which]
    normals = planes[face, :3]
    is_ground = face == GROUND
    x = points[is_ground, 0]
    y = points[is_ground, 1]
    points[is_ground, 2] = town.terrain.heights(x, y)
    normals[is_ground] = town.terrain.normals(x, y)
    return points, normals
