"""The picture of the ground of the generated town: streets, gardens, fields, with the shadows of
what stands on it.
"""

import concurrent.futures
import dataclasses

import numpy as np
import scipy.spatial

from cosurfgs_jax.data.town import texture as paint
from cosurfgs_jax.data.town.layout import SIDEWALK_M, SUN, Town
from cosurfgs_jax.data.town.solids import chord_towards

NUM_LEVELS = 4
_BLOCK_ROWS = 64
_CROPS = (
    (0.62, 0.53, 0.30),
    (0.46, 0.36, 0.26),
    (0.38, 0.47, 0.20),
    (0.55, 0.55, 0.28),
    (0.29, 0.40, 0.17),
)


@dataclasses.dataclass(frozen=True)
class GroundPicture:
    """Texture of the ground seen from above: columns run east, rows north.

    | field     | meaning                                                 |
    |-----------|---------------------------------------------------------|
    | `texture` | Texture                                                 |
    | `low`     | float: local x and y of the first texel's corner, m     |
    """

    texture: paint.Texture
    low: float


def paint_ground(town: Town, reach: float, texel: float, num_threads: int) -> GroundPicture:
    """Paint the ground.

    Args:
        town: what is there.
        reach: half side of the square to paint, m.
        texel: size of a texel, m.
        num_threads: rows are painted in parallel; the result does not depend on it.
    """
    step = 2 ** (NUM_LEVELS - 1)
    count = -(-int(np.ceil(2 * reach / texel)) // step) * step
    low = -0.5 * count * texel
    painter = _Painter(town, low, count, texel)
    picture = np.empty((count, count), np.uint32)

    def fill(start: int) -> None:
        stop = min(start + _BLOCK_ROWS, count)
        picture[start:stop] = painter.rows(start, stop)

    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(fill, range(0, count, _BLOCK_ROWS)))
    return GroundPicture(paint.make_texture(picture, texel, NUM_LEVELS), low)


class _Painter:
    """Everything that is prepared once, so that blocks of rows can be painted on their own."""

    def __init__(self, town: Town, low: float, count: int, texel: float):
        self.town = town
        self.low = low
        self.count = count
        self.texel = texel
        self.noise = paint.Noise(count, count, texel, (town.seed, 3))
        self.paved = np.zeros((count, count), np.uint8)  # 0 nothing, 1 driveway, 2 terrace
        self.shadow = np.zeros(
            (count, count), np.uint8
        )  # fraction of the sun that is blocked, in 255ths
        self.x = (low + (np.arange(count) + 0.5) * texel).astype(np.float32)
        for outline in town.paved:
            self._pave(outline, 0.0, 1)
        for solid in town.solids:
            if solid.is_grounded and solid.kind in ("house", "flat", "church"):
                self._pave(solid.footprint, 0.9, 2)
            self._cast_shadow(solid)
        self._divide_lots()
        streets = town.streets
        self.is_field = np.ones((len(streets.lines_a) + 1, len(streets.lines_b) + 1), bool)
        for x, y in town.lots:
            a, b = streets.coordinates(x, y)
            self.is_field[
                np.searchsorted(streets.lines_a, a), np.searchsorted(streets.lines_b, b)
            ] = False

    def _box(self, points, margin: float) -> tuple[slice, slice]:
        """Rows and columns around points f64[n,2]."""
        first = np.clip(
            ((points.min(0) - margin - self.low) / self.texel).astype(int), 0, self.count
        )
        last = np.clip(
            ((points.max(0) + margin - self.low) / self.texel).astype(int) + 2, 0, self.count
        )
        return slice(first[1], last[1]), slice(first[0], last[0])

    def _pave(self, outline, margin: float, value: int) -> None:
        rows, columns = self._box(outline, margin)
        edges = np.roll(outline, -1, 0) - outline
        normals = (
            np.stack([edges[:, 1], -edges[:, 0]], axis=1) / np.linalg.norm(edges, axis=1)[:, None]
        )
        offsets = -np.einsum("ij,ij->i", normals, outline) - margin
        outside = np.max(
            [
                n_x * self.x[None, columns] + n_y * self.x[rows, None] + offset
                for (n_x, n_y), offset in zip(normals.tolist(), offsets.tolist(), strict=True)
            ],
            axis=0,
        )
        part = self.paved[rows, columns]
        part[(outside < 0) & (part == 0)] = value

    def _cast_shadow(self, solid) -> None:
        slope = -SUN[:2] / SUN[2]
        heights = solid.vertices[:, 2] - self.town.terrain.heights(*solid.vertices[:, :2].T)
        tips = solid.vertices[:, :2] + slope * (np.maximum(heights, 0) * 1.5)[:, None]
        rows, columns = self._box(np.concatenate([solid.footprint, tips]), 0.5)
        x = self.x[None, columns]
        y = self.x[rows, None]
        chord = chord_towards(solid.planes, (x, y, self.town.terrain.heights(x, y)), SUN)
        # Leaves let some light through; a thin edge blocks less than a thick one, which also makes
        # the edge soft.
        strength = 235.0 if solid.kind == "tree" else 255.0
        shade = (np.clip(chord / (6 * self.texel + 0.3), 0, 1) * strength).astype(np.uint8)
        part = self.shadow[rows, columns]
        np.maximum(part, shade, out=part)

    def _divide_lots(self) -> None:
        """Nearest and second nearest house of every point, on a grid of half metres."""
        self.lot_step = 0.5
        count = int(self.count * self.texel / self.lot_step) + 2
        at = self.low + np.arange(count) * self.lot_step
        grid = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)
        lots = np.concatenate([self.town.lots, [[1e4, 1e4], [1e4, -1e4]]])
        distances, numbers = scipy.spatial.cKDTree(lots).query(grid, k=2)
        self.lot_number = numbers[:, 0].reshape(count, count).astype(np.int32)
        self.lot_border = (
            (distances[:, 1] - distances[:, 0]).reshape(count, count).astype(np.float32)
        )
        self.lot_distance = distances[:, 0].reshape(count, count).astype(np.float32)

    def _from_lots(self, grid, start: int, stop: int, is_nearest: bool = False):
        """A map of half metres, enlarged to the texels of some rows."""
        at_row = (np.arange(start, stop) + 0.5) * (self.texel / self.lot_step)
        at_column = (np.arange(self.count) + 0.5) * (self.texel / self.lot_step)
        if is_nearest:
            return grid[np.round(at_row).astype(int)[:, None], np.round(at_column).astype(int)]
        row = at_row.astype(int)
        column = at_column.astype(int)
        weight_row = (at_row - row).astype(np.float32)[:, None]
        weight_column = (at_column - column).astype(np.float32)
        band = grid[row] * (1 - weight_row) + grid[row + 1] * weight_row
        return band[:, column] * (1 - weight_column) + band[:, column + 1] * weight_column

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Packed colours of rows start:stop."""
        town = self.town
        x = self.x[None, :]
        y = self.x[start:stop, None]
        waves = [
            self.noise.block(number, start, stop) for number in range(len(paint.WAVELENGTHS_M))
        ]
        fine = 0.8 * waves[5] + 0.8 * waves[6] + 0.6 * waves[7]
        a, b = town.streets.coordinates(x, y)
        color = self._grass(start, stop, waves, fine)
        column = np.searchsorted(town.streets.lines_a, a)
        row = np.searchsorted(town.streets.lines_b, b)
        is_field = self.is_field[column, row]
        if is_field.any():
            color = paint.blend(
                color, self._fields(a, b, column, row, waves, fine), is_field.astype(np.float32)
            )
        color = self._hedges(color, start, stop, waves, fine)
        color = self._pavement(color, start, stop, a, b, waves, fine)
        color = self._streets(color, a, b, waves, fine)
        _, slope_x, slope_y = town.terrain.heights_and_slopes(x, y)
        normal_z = 1 / np.sqrt(slope_x**2 + slope_y**2 + 1)
        towards_sun = (float(SUN[2]) - float(SUN[0]) * slope_x - float(SUN[1]) * slope_y) * normal_z
        shade = paint.light(normal_z, towards_sun, self.shadow[start:stop] * np.float32(1 / 255))
        return paint.pack(paint.scale(color, shade))

    def _grass(self, start, stop, waves, fine):
        dry = np.clip(
            0.5 + 0.5 * waves[1] + 0.5 * waves[2] + 0.45 * waves[3] + 0.3 * waves[4], 0, 1
        )
        color = paint.blend((0.25, 0.35, 0.14), (0.47, 0.47, 0.25), dry)
        number = self._from_lots(self.lot_number, start, stop, is_nearest=True)
        tint = 1 + 0.14 * paint.per_tile(number, np.zeros_like(number), self.town.seed)
        # Beds and worn patches: where two octaves together are high.
        bed = np.clip((waves[3] + 0.7 * waves[4] - 0.62) * 6, 0, 1)
        color = paint.blend(color, (0.40, 0.31, 0.22), bed * 0.8)
        return paint.scale(color, tint * (1 + 0.20 * fine + 0.16 * waves[4] + 0.08 * waves[0]))

    def _fields(self, a, b, column, row, waves, fine):
        """Crops in rows, one kind between each two streets."""
        kind = (paint.per_tile(column, row, self.town.seed + 11) * 0.4999 + 0.5) * len(_CROPS)
        crops = np.array(_CROPS, np.float32)[kind.astype(int)]
        is_across = paint.per_tile(column, row, self.town.seed + 12) > 0
        along = np.where(is_across, a, b) + 0.25 * waves[3]
        period = 1.35
        furrows = np.sin(along * np.float32(2 * np.pi / period)) * paint.keep(period, self.texel)
        tracks = paint.lines(along, 13.5, 0.6, self.texel)
        bright = (
            1
            + 0.10 * furrows
            + 0.17 * fine
            + 0.14 * waves[4]
            + 0.10 * waves[3]
            + 0.10 * waves[1]
            - 0.2 * tracks
        )
        return paint.scale([crops[..., channel] for channel in range(3)], bright)

    def _hedges(self, color, start, stop, waves, fine):
        """Hedges between gardens: painted, too low to matter as solids."""
        border = self._from_lots(self.lot_border, start, stop)
        distance = self._from_lots(self.lot_distance, start, stop)
        hedge = paint.cover(border - 0.9 + 0.35 * waves[5], self.texel) * np.clip(
            (19 - distance) / 2, 0, 1
        )
        leaves = paint.scale((0.19, 0.27, 0.12), 1 + 0.5 * fine + 0.25 * waves[4])
        return paint.blend(color, leaves, hedge)

    def _pavement(self, color, start, stop, a, b, waves, fine):
        """Driveways of gravel and terraces of slabs."""
        paved = self.paved[start:stop]
        gravel = paint.scale(
            (0.60, 0.55, 0.46), 1 + 0.26 * fine + 0.10 * waves[4] + 0.08 * waves[3]
        )
        color = paint.blend(color, gravel, (paved == 1).astype(np.float32))
        slabs = paint.scale(
            (0.57, 0.50, 0.43), self._slabs(a, b, 0.6) + 0.14 * fine + 0.1 * waves[4]
        )
        return paint.blend(color, slabs, (paved == 2).astype(np.float32))

    def _slabs(self, a, b, side: float):
        """Brightness of slabs with dark joints."""
        joints = np.maximum(
            paint.lines(a, side, 0.07, self.texel), paint.lines(b, side, 0.07, self.texel)
        )
        tiles = paint.per_tile(
            np.round(a / side - 0.5).astype(np.int32), np.round(b / side - 0.5).astype(np.int32), 5
        )
        return 1 - 0.35 * joints + 0.13 * paint.keep(side, self.texel) * tiles

    def _streets(self, color, a, b, waves, fine):
        streets = self.town.streets
        texel = self.texel
        to_a, to_b = streets.kerb_distances(a, b)
        to_kerb = np.minimum(to_a, to_b)
        walk = paint.scale(
            (0.60, 0.58, 0.54), self._slabs(a, b, 0.8) + 0.13 * fine + 0.06 * waves[4]
        )
        color = paint.blend(color, walk, paint.cover(to_kerb - SIDEWALK_M, texel))
        color = paint.blend(
            color, (0.72, 0.71, 0.68), paint.cover(np.abs(to_kerb - 0.1) - 0.1, texel) * 0.8
        )
        # Asphalt with patches of repair, darker and finer, and worn wheel tracks.
        repair = np.clip((waves[3] - 0.3) * 14, 0, 1)
        bright = (
            1
            + 0.17 * fine
            + 0.09 * waves[4]
            + 0.08 * waves[2]
            - 0.20 * repair
            + 0.05 * np.cos(to_kerb * 4.2)
        )
        asphalt = paint.scale((0.365, 0.365, 0.375), bright)
        dashes_a = self._dashes(a, b, streets.lines_a, to_b)
        dashes_b = self._dashes(b, a, streets.lines_b, to_a)
        asphalt = paint.blend(
            asphalt, (0.80, 0.80, 0.77), np.maximum(dashes_a, dashes_b) * (0.85 - 0.3 * waves[4])
        )
        return paint.blend(color, asphalt, paint.cover(to_kerb, texel))

    def _dashes(self, across, along, lines, to_other):
        """The dashed line in the middle of streets, interrupted at crossings."""
        off = np.full(across.shape, np.inf, np.float32)
        for line in lines.tolist():
            np.minimum(off, np.abs(across - line), out=off)
        dash = np.abs(along - 5.0 * np.round(along / 5.0)) - 1.3
        return paint.cover(np.maximum(np.maximum(off - 0.09, dash), 1.0 - to_other), self.texel)
