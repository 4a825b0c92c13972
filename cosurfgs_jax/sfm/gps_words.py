"""What is suspicious of the GPS of photographs, in words."""

import numpy as np

from cosurfgs_jax.sfm.exif import PhotoTags
from cosurfgs_jax.sfm.similarity import RobustFit

# Residuals of heights that are that many times those of positions, and that many metres, are said.
_MAX_DRIFT = 5.0
_MIN_DRIFT = 3.0


def fit_warnings(fit: RobustFit, names: list[str]) -> list[str]:
    """Positions that were left out, and heights that drift.

    Args:
        fit: of the positions.
        names: of their photographs.
    """
    warnings = []
    distances = np.linalg.norm(fit.residuals, axis=1)
    left_out = [name for name, is_used in zip(names, fit.is_used, strict=True) if not is_used]
    if left_out:
        wrong = distances[~fit.is_used]
        warnings.append(
            f"GPS of {len(left_out)} photographs is {wrong.min():.2g} to {wrong.max():.2g} m from "
            f"where they were taken and was not used: {', '.join(left_out[:5])}"
        )
    east, north, up = fit.rms
    if up > max(_MAX_DRIFT * np.hypot(east, north), _MIN_DRIFT):
        warnings.append(
            f"the heights of GPS differ by {up:.2g} m (rms) from those of the photographs, far "
            "more than its positions: they drift, and the height of the whole may be off as much"
        )
    return warnings


def tag_warnings(tags: dict[str, PhotoTags], known: list[str]) -> list[str]:
    """Photographs with half of their GPS.

    Args:
        tags: of all photographs, by name.
        known: names of those that have a position.
    """
    num_vague = sum(not tags[name].has_hemispheres for name in known)
    if not num_vague:
        return []
    return [
        f"GPS of {num_vague} photographs does not say north or south, east or west: north and "
        "east are assumed"
    ]
