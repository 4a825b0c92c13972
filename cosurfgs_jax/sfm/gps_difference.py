"""How the GPS of photographs differs from ground control points."""

import numpy as np

from cosurfgs_jax.sfm.georeference import Placement
from cosurfgs_jax.sfm.similarity import Similarity

AXES = ("east", "north", "up")
# What GPS without corrections may differ by: some metres, and heights by those of the geoid above
# the ellipsoid or of a barometer.
_MAX_GPS_SHIFT_M = 30.0
_MAX_GPS_HEIGHT_M = 120.0
_MAX_SCALE_DIFFERENCE = 0.02


def compare_gps(base: Placement, to_map: Similarity, centers: np.ndarray) -> dict[str, float]:
    """How GPS differs from the control points: where it puts the photographs, minus where they are
    put; metres, and the lengths as a fraction.
    """
    by_gps = base.similarity.apply(centers) + base.geo.offset
    shift = np.median(by_gps - to_map.apply(centers), axis=0)
    lengths = base.similarity.scale / to_map.scale - 1
    return dict(zip(AXES, shift.tolist(), strict=True)) | {"scale": float(lengths)}


def gps_warnings(difference: dict[str, float], scale_error: float) -> list[str]:
    """What is suspicious in it.

    Args:
        difference: of `compare_gps`.
        scale_error: of the fit to GPS, as a fraction.
    """
    warnings = []
    shift = float(np.hypot(difference["east"], difference["north"]))
    if shift > _MAX_GPS_SHIFT_M:
        warnings.append(
            f"GPS puts the photographs {shift:.0f} m from where the ground control points put "
            "them: is the system of their first line another one of a neighbouring datum?"
        )
    up = difference["up"]
    if abs(up) > _MAX_GPS_HEIGHT_M:
        warnings.append(
            f"GPS puts the photographs {abs(up):.0f} m {'above' if up > 0 else 'below'} where the "
            "ground control points put them: are their heights of another datum, or in feet?"
        )
    if abs(difference["scale"]) > _MAX_SCALE_DIFFERENCE + 3 * scale_error:
        warnings.append(
            f"lengths by GPS are {abs(difference['scale']):.0%} "
            f"{'longer' if difference['scale'] > 0 else 'shorter'} than by the ground control "
            "points: are these in metres, and their marks at the right points?"
        )
    return warnings
