"""Settings of what is made of a trained model: mesh, texture, height map, terrain, orthophoto and
points."""

import dataclasses

from cosurfgs_jax.errors import required
from cosurfgs_jax.settings.declaration import (
    Check,
    SettingsGroup,
    at_least,
    not_negative,
    number,
    one_of,
    positive,
    proper_fraction,
    require,
    setting,
)

_DEPTH_MAPS = ("plane", "median", "expected")
_SOURCES = ("surface", "surfels")  # of heights and of points
_MAX_OFFSET = 1e10  # of map coordinates, in any unit of length
_SIZES = (64, 16384)  # of a texture; larger ones are beyond what graphics cards take
_SIZE_FORM = f"0 (from the data) or {_SIZES[0]} to {_SIZES[1]}"
_OFFSET_FORM = 'three numbers "x,y,z"'


def _parse_offset(text: str) -> tuple[float, float, float] | None:
    """The numbers of "x,y,z", zeros for an empty text; None where it is neither."""
    if not text.strip():
        return 0.0, 0.0, 0.0
    try:
        x, y, z = (float(part) for part in text.replace(" ", "").split(","))
    except ValueError:
        return None
    is_good = all(abs(value) <= _MAX_OFFSET for value in (x, y, z))
    return (x, y, z) if is_good else None


@dataclasses.dataclass
class SurfaceSettings(SettingsGroup, name="surface"):
    """Mesh extraction. Lengths are in the dataset's unit."""

    depth_map: str = setting(
        "plane",
        'Rendered depth that is fused: "plane", "median" or "expected".',
        one_of(_DEPTH_MAPS, '"plane", "median" or "expected"'),
    )
    voxel_size: float = setting(
        0.0,
        "Side of a voxel of the mesh in the dataset's unit; 0 means from the data.",
        not_negative("0 (from the data) or a positive length"),
        is_main=True,
    )
    truncation_voxels: float = setting(
        3.0,
        "Distance to the surface, in voxels, up to which the signed distance field is kept.",
        at_least(1),
    )
    max_angle_deg: float = setting(
        80.0,
        "Maximum angle in degrees between ray and normal of a depth that is fused.",
        number("above 0, at most 90 degrees", above=0, at_most=90),
    )
    min_neighbor_views: int = setting(
        2,
        "Number of views that must confirm a depth, where that many see it.",
        not_negative(),
    )
    min_cluster_share: float = setting(
        0.005,
        "Connected pieces with fewer triangles than this fraction of the largest are dropped.",
        proper_fraction("a fraction in [0, 1)"),
    )
    smoothing_passes: int = setting(
        10,
        "Passes of a filter over the mesh that takes away the noise of the voxels and does not "
        "shrink (Taubin's); 0 means none.",
        number("0 to 1000", at_least=0, at_most=1000),
    )
    target_triangles: int = setting(
        0,
        "Edges of the mesh are collapsed until this many triangles are left, which needs all of it "
        "in memory; 0 means keep all.",
        not_negative("0 (keep all) or a positive number"),
        is_main=True,
    )
    memory_mb: int = setting(
        2048,
        "Memory in MiB for the fusion; a scene that needs more is fused tile by tile, with the "
        "same result.",
        at_least(64),
    )


@dataclasses.dataclass
class GeoSettings(SettingsGroup, name="geo"):
    """Map coordinates, height map and orthophoto. Lengths are in the dataset's unit."""

    heights: str = setting(
        "surface",
        'What the height map shows: "surface", the fused mesh, or "surfels", which are rougher but '
        "need no open3d.",
        one_of(_SOURCES, '"surface" or "surfels"'),
    )
    pixel_size: float = setting(
        0.0,
        "Size of a pixel of height map and orthophoto on the ground, in the dataset's unit; 0 "
        "means from the data (the median size of a photograph's pixel there).",
        not_negative("0 (from the data) or a positive length"),
        is_main=True,
    )
    offset: str = setting(
        "",
        'Offset "x,y,z" from the dataset\'s coordinates to map coordinates; it is added in the '
        "files that are written. Empty means that of the dataset's geo.json, or none.",
        Check(_OFFSET_FORM, lambda text: _parse_offset(text) is not None),
    )
    epsg: int = setting(
        0,
        "EPSG number of the projected system of the map coordinates; 0 means that of the dataset's "
        "geo.json, or none.",
        not_negative("0 (from geo.json, or none) or the EPSG number of a projected system"),
    )

    def offset_xyz(self) -> tuple[float, float, float]:
        """The offset as numbers.

        Raises:
            InputError: it is not three numbers.
        """
        numbers = _parse_offset(self.offset)
        require(numbers is not None, "geo.offset", _OFFSET_FORM, self.offset)
        return required(numbers, "geo.offset")


@dataclasses.dataclass
class PointsSettings(SettingsGroup, name="points"):
    """The points of `export --format=las`, `laz` and `points`. Lengths are in the dataset's
    unit.
    """

    source: str = setting(
        "surface",
        'Where the points lie: "surface", spread evenly over the fused mesh, or "surfels", the '
        "centres of the surfels, which are few and uneven but need no mesh.",
        one_of(_SOURCES, '"surface" or "surfels"'),
    )
    spacing: float = setting(
        0.0,
        "Side of the square of the surface that has one point; 0 means that of the mesh's voxels. "
        "Centres of surfels are as they are.",
        not_negative("0 (from the mesh) or a positive length"),
    )


@dataclasses.dataclass
class TerrainSettings(SettingsGroup, name="terrain"):
    """The terrain model and the contour lines of `export --format=dtm` and `contours`. Lengths are
    in the dataset's unit."""

    object_width: float = setting(
        50.0,
        "Width of the widest building that is taken away, at most a quarter of the map's shorter "
        "side; ground is interpolated no farther than that from ground which is seen.",
        positive(),
    )
    slope: float = setting(
        0.15,
        "How steeply something must rise above what is around it to be taken away, height by half "
        "its width; more keeps ridges and mounds, and in the end buildings. Even slopes stay, "
        "however steep.",
        positive(),
    )
    contours_of: str = setting(
        "dtm",
        'What contour lines are drawn of: "dtm", the ground, or "dsm", the surface with everything '
        "on it.",
        one_of(("dtm", "dsm"), '"dtm" or "dsm"'),
    )
    interval: float = setting(
        0.0,
        "Height from one contour line to the next; 0 means from the data: a round number that "
        "gives about 10 to 20 heights.",
        not_negative("0 (from the data) or a positive length"),
    )


@dataclasses.dataclass
class TextureSettings(SettingsGroup, name="texture"):
    """The textured mesh of `export --format=textured`."""

    triangles: int = setting(
        0,
        "Edges are collapsed until this many triangles are left; 0 means a tenth of those of the "
        "mesh.",
        not_negative("0 (a tenth of the mesh) or a positive number"),
    )
    size: int = setting(
        0,
        "Pixels along the side of the texture, or of the largest one of tiles; 0 means from the "
        "data (the pixels on the mesh of the photographs), at most 4096. It takes 100 bytes of "
        "memory a pixel.",
        Check(_SIZE_FORM, lambda size: size == 0 or _SIZES[0] <= size <= _SIZES[1]),
    )
    tile_size: float = setting(
        0.0,
        "Side of the squares of ground that the mesh is cut into, each with a texture of its own, "
        "in the dataset's unit; 0 means from the data: one texture where that is fine enough, or "
        "its size is given.",
        not_negative("0 (from the data) or a positive length"),
    )
    tile_obj: bool = setting(
        False, "Whether tiles are also written as OBJ, with material and picture."
    )
    downscale: int = setting(
        0,
        "Whole factor by which the photographs are shrunk for the texture; 0 means as training "
        "used them (data.downscale).",
        not_negative("0 (data.downscale) or a whole factor"),
        largest=1024,
    )
