"""Lines on a map as GeoPackage, the file of vectors that QGIS and others open in any coordinate
system (GeoJSON has degrees alone). GDAL writes it, by pyogrio.
"""

import os
import warnings
from types import ModuleType
from typing import NamedTuple

import numpy as np

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import atomic_path

# Of GeoPackage. What GDAL writes by default is newer than what the versions before 3.7 know, which
# then warn of a file that they may not support.
_VERSION = "1.2"


class Packages(NamedTuple):
    """The optional packages for lines."""

    contourpy: ModuleType
    pyogrio: ModuleType
    shapely: ModuleType


def import_packages() -> Packages:
    """The packages that find, simplify and write lines.

    Raises:
        InputError: one is not installed.
    """
    try:
        import contourpy
        import pyogrio
        import shapely
    except ImportError as error:
        raise InputError(
            f"contourpy, shapely and pyogrio are needed for contour lines ({error}): "
            'pip install "cosurfgs_jax[geo]"'
        ) from error
    return Packages(contourpy, pyogrio, shapely)


def write_lines(
    path: str | os.PathLike,
    layer: str,
    lines: np.ndarray,
    numbers: dict[str, np.ndarray],
    epsg: int = 0,
) -> None:
    """Writes a GeoPackage with one layer, atomically.

    Args:
        path: the file, *.gpkg.
        layer: its name.
        lines: n lines of shapely.
        numbers: columns f64[n] by name.
        epsg: of the coordinate system; 0 = none is known.
    Raises:
        InputError: a package is missing, or the file system refused.
    """
    pyogrio = import_packages().pyogrio
    shapely = import_packages().shapely
    system = f"EPSG:{epsg}" if epsg else None
    with atomic_path(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
        try:
            pyogrio.raw.write(
                partial,
                shapely.to_wkb(lines),
                list(numbers.values()),
                list(numbers),
                layer=layer,
                driver="GPKG",
                geometry_type="LineString",
                crs=system,
                dataset_options={"VERSION": _VERSION},
            )
        except RuntimeError as error:  # of all that pyogrio raises
            raise InputError(
                f"{path}: could not be written (GDAL: {error}); make room or choose another "
                "folder, then run the same command again"
            ) from error
