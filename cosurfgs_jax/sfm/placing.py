"""What a reconstruction is placed by: ground control points, another program's file, or GPS."""

from cosurfgs_jax.geometry.distortion import Lens
from cosurfgs_jax.settings import PrepareSettings
from cosurfgs_jax.sfm.control_fit import place_by_control
from cosurfgs_jax.sfm.control_points import ControlPoints, read_control_points
from cosurfgs_jax.sfm.export_place import place_by_export
from cosurfgs_jax.sfm.foreign_cameras import KnownPoses
from cosurfgs_jax.sfm.georeference import (
    Placement,
    Reconstructed,
    check_epsg,
    check_positions,
    place,
)
from cosurfgs_jax.sfm.photos import PhotoFolder


def check_place(
    folder: PhotoFolder, num_known: int, settings: PrepareSettings
) -> ControlPoints | None:
    """Checks what says where photographs are, before the long work.

    Args:
        folder: the photographs.
        num_known: how many of them have GPS.
        settings: `gcp`, `cameras`, `gps` and `epsg`.
    Returns:
        The ground control points, if a file of them is given.
    Raises:
        InputError: they make no sense, or there is no GPS where it is needed.
    """
    if settings.gcp:
        return read_control_points(folder, settings)
    if settings.cameras:
        return None
    check_positions(num_known, len(folder.photos), settings)
    if num_known and settings.gps != "ignore":
        check_epsg(folder.tags, settings.epsg)
    return None


def placed(
    reading: Reconstructed,
    lenses: dict[str, Lens],
    folder: PhotoFolder,
    settings: PrepareSettings,
    *,
    control: ControlPoints | None,
    known: KnownPoses | None = None,
) -> Placement:
    """The place of a model: by ground control points, else by the file of known poses, else by GPS.

    Args:
        reading: the model.
        lenses: of its photographs as they are here, by name.
        folder: the photographs.
        settings: how.
        control: ground control points, if there are any.
        known: poses of another program, if they are that.
    Raises:
        InputError: what `place_by_control`, `place_by_export` and `place` refuse.
    """
    if control is not None:
        return place_by_control(reading, lenses, control, tags=folder.tags, settings=settings)
    if known is not None:
        return place_by_export(reading, known, folder.tags, settings)
    return place(reading, folder.tags, settings)
