"""Where photographs with the poses of another program lie: by the coordinate system of its file."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.geo_json import GeoReference
from cosurfgs_jax.formats.posed_photos import PoseFile
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm import georeference, map_system
from cosurfgs_jax.sfm.exif import ELLIPSOID, PhotoTags
from cosurfgs_jax.sfm.foreign_cameras import KnownPoses, middle_of
from cosurfgs_jax.sfm.georeference import Placement, Reconstructed
from cosurfgs_jax.sfm.similarity import Similarity, fit_weighted

# Between places on the map and those of the similarity: the earth is round, and maps are flat.
_MAX_BEND_M = 0.05
_NUM_POINTS = 2000  # of the cloud, that the similarity is fitted to
# Coordinates beyond are those of a map, in metres; single precision has steps of 8 mm there.
_FAR = 1e5


def place_by_export(
    model: Reconstructed, known: KnownPoses, tags: dict[str, PhotoTags], settings: PrepareSettings
) -> Placement:
    """Scale, vertical and place as the file of poses has them.

    Where it names no coordinate system, `settings.epsg` is that of its coordinates; without one the
    frame stays as it is where its z is up, and is placed by GPS, or by the vertical of the
    photographs, where it is not.

    Args:
        model: of `foreign_cameras.triangulated`.
        known: the poses.
        tags: of all photographs, by name.
        settings: `epsg` and `gps`.
    Raises:
        InputError: a system that is none, in degrees without heights, or in feet.
    """
    file = known.file
    to_local = Similarity(1.0, np.eye(3), middle_of(known))
    if file.system or (settings.epsg and file.has_vertical):
        return _on_map(model, to_local, file, settings.epsg)
    if not file.has_vertical:
        return georeference.place(model, tags, settings)
    return _as_it_is(model, to_local, file)


def _system_similarity(file: PoseFile) -> Similarity:
    matrix = file.system_from_local
    scale = float(np.cbrt(np.linalg.det(matrix[:3, :3])))
    return Similarity(scale, matrix[:3, :3] / scale, matrix[:3, 3])


def _as_it_is(model: Reconstructed, to_local: Similarity, file: PoseFile) -> Placement:
    """In the frame of the file, or near its origin."""
    to_system = to_local.then(_system_similarity(file))
    middle = np.median(to_system.apply(model.points), axis=0)
    offset = np.zeros(3)
    warnings = []
    if np.abs(middle).max() > _FAR:
        offset = np.round(middle, georeference.ROUND_OFFSET) + 0.0
        warnings.append(
            f"the coordinates of {file.path.name} are those of a map ({middle[0]:.0f}, "
            f"{middle[1]:.0f}), and it does not say of which: give --epsg=NUMBER"
        )
    x, y, z = map(float, offset)
    reason = f"{file.path.name} names no coordinate system"
    fit = {"method": f"the frame of {file.program}", "reason": reason, "program": file.program}
    return Placement(
        dataclasses.replace(to_system, translation=to_system.translation - offset),
        GeoReference(0, (x, y, z), False, {"fit": fit}),
        warnings,
    )


def _on_map(model: Reconstructed, to_local: Similarity, file: PoseFile, wanted: int) -> Placement:
    to_system = to_local.then(_system_similarity(file))
    step = max(1, len(model.points) // _NUM_POINTS)
    source = np.concatenate([model.centers, model.points[::step]])
    pyproj = map_system.import_pyproj()
    try:
        system = pyproj.CRS.from_user_input(file.system or wanted)
    except pyproj.exceptions.CRSError:
        raise InputError(
            f"{file.path}: expected a coordinate system that PROJ knows, got "
            f"{file.system[:80]!r}; give --epsg=NUMBER and export without it"
        ) from None
    target, epsg, vertical = _map_places(system, to_system.apply(source), file, wanted)
    to_map = fit_weighted(source, target, np.ones(len(source)))
    residuals = to_map.apply(source) - target
    bend = float(np.linalg.norm(residuals, axis=1).max())
    details: dict[str, Any] = {
        "vertical_datum": vertical,
        "fit": {
            "method": f"coordinates of {file.program}",
            "num_used": len(model.names),
            "scale_error": 0.0,
            "program": file.program,
            "largest_residual": bend,
        },
    }
    placement = georeference.placed_on_map(model, to_map, epsg, details)
    warnings = []
    if bend > _MAX_BEND_M:
        warnings.append(
            f"the place is larger than a flat map is exact: it is off by up to {bend:.2g} m"
        )
    return dataclasses.replace(placement, warnings=warnings)


def _map_places(
    system: Any, places: Float[np.ndarray, "n 3"], file: PoseFile, wanted: int
) -> tuple[Float[np.ndarray, "n 3"], int, str]:
    """Map coordinates of places of the file's system, the EPSG number, and what heights are above.

    Raises:
        InputError: a system in feet, or coordinates in degrees.
    """
    pyproj = map_system.import_pyproj()
    vertical = "the zero of its coordinate system"
    heights = places[:, 2]
    ground = places[:, :2]
    source = system
    if file.is_geocentric:
        source = pyproj.CRS.from_user_input(system.geodetic_crs.to_2d())
        ellipsoid = system.ellipsoid
        to_degrees = pyproj.Transformer.from_pipeline(
            f"+proj=pipeline +step +inv +proj=cart +a={ellipsoid.semi_major_metre!r} "
            f"+rf={ellipsoid.inverse_flattening!r} +step +proj=unitconvert +xy_in=rad +xy_out=deg"
        )
        longitudes, latitudes, heights = to_degrees.transform(*places.T)
        ground = np.stack([longitudes, latitudes], axis=1)
        vertical = ELLIPSOID
    elif not system.is_projected or system.axis_info[0].unit_conversion_factor != 1.0:
        raise InputError(
            f"{file.path}: expected coordinates of a projected system in metres, got those of "
            f"{system.name}; export them again in one"
        )
    middle = np.median(map_system.to_degrees(source, ground), axis=0)
    latitude, longitude = map(float, middle)
    epsg = wanted or map_system.number_of(system)
    if wanted:
        map_system.check_system(wanted, latitude, longitude)
    elif not epsg or map_system.stretch_of(system, latitude, longitude) > map_system.MAX_STRETCH:
        epsg = map_system.utm_epsg(latitude, longitude)
    places_on_map, _ = map_system.between(source, epsg, ground)
    return np.column_stack([places_on_map, heights]), epsg, vertical
