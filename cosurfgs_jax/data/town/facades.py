"""The pictures on walls, roofs, trees and cars of the generated town, and the table of faces that
refers to them.
"""

import dataclasses

import numpy as np

from cosurfgs_jax.data.town import texture as paint
from cosurfgs_jax.data.town.layout import SUN, Town
from cosurfgs_jax.data.town.solids import Solid, chord_towards

NUM_LEVELS = 3
_PAD = 8  # texels around a picture, painted as well, so that coarser levels do not mix neighbours
_SHARED_M = 24.0  # side of the pictures that many small faces share
_MAX_CORNERS = 5

_PLASTER = (
    (0.78, 0.72, 0.58),
    (0.74, 0.74, 0.71),
    (0.70, 0.58, 0.45),
    (0.62, 0.44, 0.36),
    (0.66, 0.68, 0.60),
)
_TILES = (
    (0.60, 0.31, 0.22),
    (0.52, 0.27, 0.20),
    (0.44, 0.31, 0.26),
    (0.36, 0.36, 0.38),
    (0.64, 0.40, 0.28),
)
_GLASS = np.array([0.22, 0.25, 0.28])
_PAINTWORK = (
    (0.62, 0.14, 0.12),
    (0.16, 0.25, 0.47),
    (0.72, 0.72, 0.74),
    (0.20, 0.21, 0.22),
    (0.45, 0.48, 0.46),
)


@dataclasses.dataclass(frozen=True)
class Faces:
    """All faces of all solids.

    | field     | shape      | unit, meaning                                                       |
    |-----------|------------|---------------------------------------------------------------------|
    | `corners` | f64[F,5,3] | m, local frame, counter-clockwise from outside; the last corner     |
    |           |            | repeats                                                             |
    | `planes`  | f64[F,4]   | outward unit normal and offset                                      |
    | `mapping` | f32[F,2,4] | texel coordinates (column, row) = mapping (x, y, z, 1)              |
    | `gain`    | f32[F,3]   | factor on the picture's colours                                     |
    | `texture` | Texture    | all pictures side by side                                           |
    """

    corners: np.ndarray
    planes: np.ndarray
    mapping: np.ndarray
    gain: np.ndarray
    texture: paint.Texture


@dataclasses.dataclass
class _Patch:
    """One picture before it has a place: `frame` is origin, u and v directions, `low` the (u, v) of
    its first corner.
    """

    frame: np.ndarray
    low: np.ndarray
    picture: np.ndarray


def paint_faces(town: Town, texel: float) -> Faces:
    """Paint all faces.

    Args:
        town: what is there.
        texel: size of a texel, m.
    """
    painter = _FacePainter(town, texel)
    patches: list[_Patch] = list(painter.shared())
    gains = []
    links = []  # per face: colour factor; number of the picture, frame, shift in the picture
    for number, solid in enumerate(town.solids):
        if solid.kind in ("tree", "car"):
            some_gains, some_links = painter.small_faces(solid)
            gains += some_gains
            links += some_links
            continue
        shadows = painter.near_solids(number)
        for side in range(len(solid.faces)):
            patch = painter.patch(solid, side, shadows)
            gains.append(np.ones(3))
            links.append((len(patches), patch.frame, np.zeros(2)))
            patches.append(patch)
    picture, places = _pack_patches([patch.picture.shape for patch in patches])
    for patch, (row, column) in zip(patches, places, strict=True):
        picture[row : row + patch.picture.shape[0], column : column + patch.picture.shape[1]] = (
            patch.picture
        )
    mapping = np.empty((len(links), 2, 4))
    for face, (number, (origin, along, up), shift) in enumerate(links):
        start = np.array(places[number][::-1]) - patches[number].low / texel
        for axis, direction in enumerate((along, up)):
            mapping[face, axis, :3] = direction / texel
            mapping[face, axis, 3] = start[axis] + (shift[axis] - direction @ origin) / texel
    texture = paint.make_texture(picture, texel, NUM_LEVELS)
    corners = [
        solid.vertices[list(face + face[-1:] * (_MAX_CORNERS - len(face)))]
        for solid in town.solids
        for face in solid.faces
    ]
    planes = np.concatenate([solid.planes for solid in town.solids])
    return Faces(
        corners=np.array(corners),
        planes=planes,
        mapping=mapping.astype(np.float32),
        gain=np.asarray(gains, np.float32),
        texture=texture,
    )


def _pack_patches(shapes) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Places (row, column) for pictures, on shelves, and an empty picture that holds them all."""
    step = 2 ** (NUM_LEVELS - 1)
    rounded = [(-(-height // step) * step, -(-width // step) * step) for height, width in shapes]
    total = max(
        int(1.1 * np.sqrt(sum(height * width for height, width in rounded))),
        max(w for _, w in rounded),
    )
    total = -(-total // step) * step
    places: list = [None] * len(shapes)
    row = column = device_cache = 0
    for number in sorted(range(len(shapes)), key=lambda k: (-rounded[k][0], k)):
        height, width = rounded[number]
        if column + width > total:
            row = row + device_cache
            column = 0
            device_cache = 0
        places[number] = (row, column)
        column = column + width
        device_cache = max(device_cache, height)
    return np.zeros((row + device_cache, total), np.uint32), places


class _FacePainter:
    """Paints single faces; noise is cut from one large picture."""

    def __init__(self, town: Town, texel: float):
        self.town = town
        self.texel = texel
        self.side = int(40.0 / texel) + 4 * _PAD
        noise = paint.Noise(self.side, self.side, texel, (town.seed, 5))
        waves = [noise.block(number, 0, self.side) for number in range(len(paint.WAVELENGTHS_M))]
        zeros = np.zeros((self.side, self.side), np.float32)
        self.coarse = zeros + 0.6 * waves[2] + 0.6 * waves[3] + 0.5 * waves[4]
        self.fine = zeros + 0.7 * waves[5] + 0.8 * waves[6] + 0.6 * waves[7]
        self.centers = np.array([solid.footprint.mean(0) for solid in town.solids])
        self.radii = np.array(
            [np.linalg.norm(s.footprint - s.footprint.mean(0), axis=1).max() for s in town.solids]
        )
        self.tops = np.array([solid.vertices[:, 2].max() for solid in town.solids])

    def shared(self):
        """Pictures for small faces: leaves and plain metal."""
        count = int(_SHARED_M / self.texel) + 2 * _PAD
        frame = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float64)
        fine = self.fine[:count, :count]
        coarse = self.coarse[-count:, :count]
        leaves = paint.scale((0.30, 0.40, 0.19), 1 + 0.55 * fine + 0.25 * coarse)
        leaves = paint.blend(leaves, (0.14, 0.19, 0.09), np.clip(-2.2 * fine - 0.5, 0, 1))
        metal = paint.scale((0.8, 0.8, 0.8), 1 + 0.16 * self.fine[:count, -count:] + 0.12 * coarse)
        for color in (leaves, metal):
            yield _Patch(frame, np.full(2, -_PAD * self.texel), paint.pack(color))

    def near_solids(self, number: int) -> list[Solid]:
        """Solids that may cast a shadow on a solid."""
        town = self.town
        solid = self.town.solids[number]
        between = self.centers - self.centers[number]
        reach = (self.tops - solid.floor) * np.linalg.norm(SUN[:2]) / SUN[2]
        # A shadow runs away from the sun: the other solid stands on the sunny side, and not farther
        # than it can reach.
        ahead = between @ (SUN[:2] / np.linalg.norm(SUN[:2]))
        aside = np.abs(between @ np.array([-SUN[1], SUN[0]])) / np.linalg.norm(SUN[:2])
        radii = self.radii + self.radii[number]
        is_near = (aside < radii) & (ahead > -radii) & (ahead < radii + reach)
        return [town.solids[k] for k in np.flatnonzero(is_near) if k != number]

    def small_faces(self, solid: Solid):
        """Colour factors and places in the shared pictures of the faces of a tree or a car."""
        rng = np.random.default_rng([self.town.seed, solid.style])
        is_tree = solid.kind == "tree"
        body = rng.uniform(0.75, 1.2, 3) * rng.uniform(0.8, 1.15)
        if not is_tree:
            body = 1.2 * np.array(_PAINTWORK[rng.integers(len(_PAINTWORK))])
        # Faces are at most 9 m long and start at their first corner: the picture holds them for
        # these shifts.
        shifts = rng.uniform(9.5, _SHARED_M - 9.5, (len(solid.faces), 2))
        shades = paint.light(solid.planes[:, 2], solid.planes[:, :3] @ SUN, 0.0)
        gains = []
        links = []
        for side, face in enumerate(solid.faces):
            x, y, z = solid.planes[side, :3].tolist()
            level = np.hypot(x, y)
            along = (1.0, 0.0, 0.0)
            if level > 1e-3:
                along = (-y / level, x / level, 0.0)
            up = (-z * along[1], z * along[0], x * along[1] - y * along[0])  # normal x along
            color = body
            if not is_tree and 2 * solid.num_sides > side >= solid.num_sides:
                color = _GLASS
            gains.append(shades[side] * color)
            axes = np.array([solid.vertices[face[0]], along, up])
            links.append((int(not is_tree), axes, shifts[side]))
        return gains, links

    def patch(self, solid: Solid, side: int, shadows: list[Solid]) -> _Patch:
        """Picture of a wall or a roof, shaded."""
        normal = solid.planes[side, :3]
        points = solid.vertices[list(solid.faces[side])]
        along = points[1] - points[0]
        if abs(normal[2]) >= 0.999:
            along = np.array([*solid.axis, 0.0])
        along = along / np.linalg.norm(along)
        up = np.cross(normal, along)
        # Heights on walls are counted from the ground, so that all walls of a house agree on
        # storeys.
        is_wall = side < solid.num_sides
        origin = points[0]
        if is_wall:
            origin = points[0] + np.array([0, 0, solid.ground - points[0][2]])
        local = np.stack([(points - origin) @ along, (points - origin) @ up], axis=1)
        low = local.min(0) - _PAD * self.texel
        width, height = (
            np.ceil((local.max(0) - local.min(0)) / self.texel).astype(int) + 2 * _PAD
        ).tolist()
        u = (low[0] + (np.arange(width) + 0.5) * self.texel).astype(np.float32)[None, :]
        v = (low[1] + (np.arange(height) + 0.5) * self.texel).astype(np.float32)[:, None]
        rng = np.random.default_rng([solid.style, side])
        row = rng.integers(0, self.side - height)
        column = rng.integers(0, self.side - width)
        cut = (slice(row, row + height), slice(column, column + width))
        self.waves = self.fine[cut], self.coarse[cut]
        if solid.kind == "embankment":
            paint_it = self._earth
        elif is_wall:
            paint_it = self._wall
        elif normal[2] > 0.999:
            paint_it = self._flat_roof
        else:
            paint_it = self._roof
        color = paint_it(solid, side, u, v, local)
        shadow = np.zeros((1, 1), np.float32)
        if normal @ SUN > 0:
            position = [
                np.float32(origin[k]) + u * np.float32(along[k]) + v * np.float32(up[k])
                for k in range(3)
            ]
            for other in shadows:
                chord = chord_towards(other.planes, position, SUN)
                shadow = np.maximum(shadow, np.clip(chord / (6 * self.texel + 0.3), 0, 1))
        shade = paint.light(normal[2], normal @ SUN, shadow)
        return _Patch(np.array([origin, along, up]), low, paint.pack(paint.scale(color, shade)))

    def _wall(self, solid: Solid, side: int, u, v, local):
        fine, coarse = self.waves
        style = np.random.default_rng(solid.style)
        texel = self.texel
        base = _PLASTER[style.integers(len(_PLASTER))]
        course = style.choice([0.33, 0.5])
        if solid.kind == "chimney":
            base = (0.50, 0.33, 0.27)
            course = 0.25
        rows = np.floor(v / course).astype(np.int32)
        columns = np.floor(u / (2 * course) + 0.5 * (rows % 2)).astype(np.int32)
        stones = paint.per_tile(columns, rows, solid.style) * paint.keep(course, texel)
        contrast = 0.15
        roughness = 0.10
        if style.random() < 0.5:
            contrast = 0.05
            roughness = 0.14
        bright = 1 + contrast * stones + roughness * fine + 0.16 * coarse
        color = paint.scale(base, bright - 0.12 * paint.lines(v, course, 0.06, texel))
        damp = np.clip(1 - v / 0.9 + 0.5 * coarse, 0, 1)
        color = paint.blend(color, (0.36, 0.34, 0.31), 0.65 * damp)
        if solid.kind == "chimney":
            return color
        length = float(local[:, 0].max() - local[:, 0].min())
        heights = np.sort(local[:, 1])
        eave = float(heights[-1])
        if len(local) == 5:  # the wall below a gable
            eave = float(heights[-2])
        storey = eave / max(1, round(eave / 2.9))
        window = (1.15, 1.35)
        if solid.kind == "church":
            storey = eave
            window = (1.0, 0.62 * storey)
        num_windows = max(1, int(length / style.uniform(2.3, 3.2)))
        grid = (length / num_windows, storey), window
        return self._windows(color, u, v, grid, eave, solid.style + side)

    def _windows(self, color, u, v, grid, eave, style):
        """Windows below the eaves, in a grid ((column, row) pitch, (width, height), m): frame and
        panes; some are shut.
        """
        (pitch, storey), size = grid
        texel = self.texel
        column = np.floor(u / pitch).astype(np.int32)
        row = np.floor(v / storey).astype(np.int32)
        across = np.abs(u - (column + 0.5) * pitch) - size[0] / 2
        upright = np.abs(v - (row + 0.55) * storey) - size[1] / 2
        is_there = (paint.per_tile(column, row, style) > -0.75) & (v < eave) & (row >= 0)
        look = paint.per_tile(column, row, style + 1)
        edge = np.maximum(across, upright)
        frame = paint.cover(edge - 0.14, texel) * is_there
        panes = paint.cover(edge, texel) * is_there
        bars = paint.cover(np.abs(across + size[0] / 2) - 0.04, texel)
        fine, coarse = self.waves
        glass = paint.scale(
            (0.20, 0.24, 0.29),
            1 + 0.5 * look + 0.3 * coarse + 0.15 * fine + 0.4 * (upright / size[1]),
        )
        color = paint.blend(color, paint.scale((0.80, 0.79, 0.75), 1 + 0.06 * fine), frame)
        color = paint.blend(color, glass, panes * (1 - 0.7 * bars))
        shutters = paint.scale(
            (0.36, 0.42, 0.36), 1 + 0.2 * fine + 0.3 * paint.lines(v, 0.4, 0.1, texel)
        )
        return paint.blend(color, shutters, panes * (look > 0.6))

    def _earth(self, solid: Solid, side: int, u, v, local):
        """Grass with bare places, as on the ground."""
        fine, coarse = self.waves
        color = paint.scale((0.34, 0.42, 0.18), 1 + 0.35 * fine + 0.25 * coarse)
        return paint.blend(color, (0.47, 0.39, 0.28), np.clip(1.5 * coarse + 0.8 * fine, 0, 0.8))

    def _roof(self, solid: Solid, side: int, u, v, local):
        fine, coarse = self.waves
        style = np.random.default_rng(solid.style + 1)
        texel = self.texel
        base = _TILES[style.integers(len(_TILES))]
        pitch = 0.42
        row = np.floor(v / pitch).astype(np.int32)
        column = np.floor(u / pitch + 0.5 * (row % 2)).astype(np.int32)
        tiles = paint.per_tile(column, row, solid.style + side) * paint.keep(pitch, texel)
        groups = paint.per_tile(
            np.floor(u / 1.7).astype(np.int32), np.floor(v / 1.26).astype(np.int32), solid.style
        )
        bright = 1 + 0.20 * tiles + 0.08 * groups + 0.12 * fine + 0.17 * coarse
        color = paint.scale(base, bright - 0.25 * paint.lines(v, pitch, 0.09, texel))
        moss = np.clip((coarse + 0.3 * fine - 0.45) * 2.5, 0, 0.6)
        color = paint.blend(color, (0.33, 0.36, 0.22), moss)
        ridge = paint.cover(float(local[:, 1].max()) - 0.22 - v, texel)
        color = paint.blend(color, paint.scale(base, 0.72 + 0.3 * fine), ridge * 0.9)
        # Skylights in some roofs.
        at_u, at_v = style.uniform(0.25, 0.75, 2) * (local[:, 0].max(), local[:, 1].max())
        pane = np.maximum(np.abs(u - float(at_u)) - 0.5, np.abs(v - float(at_v)) - 0.7)
        if style.random() < 0.45:
            color = paint.blend(color, (0.25, 0.25, 0.26), paint.cover(pane - 0.1, texel))
            glass = paint.scale((0.42, 0.50, 0.58), 1 + 0.2 * coarse + 0.1 * fine)
            color = paint.blend(color, glass, paint.cover(pane, texel))
        return color

    def _flat_roof(self, solid: Solid, side: int, u, v, local):
        fine, coarse = self.waves
        style = np.random.default_rng(solid.style + 2)
        texel = self.texel
        base = ((0.56, 0.55, 0.53), (0.45, 0.44, 0.43), (0.50, 0.47, 0.40))[style.integers(3)]
        seams = np.maximum(paint.lines(u, 2.6, 0.12, texel), paint.lines(v, 3.9, 0.12, texel))
        sheets = paint.per_tile(
            np.floor(u / 2.6).astype(np.int32), np.floor(v / 3.9).astype(np.int32), solid.style
        )
        color = paint.scale(base, 1 + 0.20 * fine + 0.18 * coarse + 0.07 * sheets - 0.3 * seams)
        puddle = np.clip((-coarse - 0.4) * 5, 0, 0.5)
        color = paint.blend(color, (0.30, 0.30, 0.31), puddle)
        low = local.min(0)
        high = local.max(0)
        inside = np.minimum(
            np.minimum(u - float(low[0]), float(high[0]) - u),
            np.minimum(v - float(low[1]), float(high[1]) - v),
        )
        rim = paint.cover(inside - 0.3, texel)
        return paint.blend(
            color, paint.scale((0.68, 0.67, 0.64), 1 + 0.12 * fine + 0.1 * coarse), rim
        )
