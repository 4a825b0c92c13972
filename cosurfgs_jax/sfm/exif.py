"""What a camera writes into a photograph: position, focal length, camera, time."""

import dataclasses
import math
from typing import Any

from PIL import ExifTags

from cosurfgs_jax.data.photo_files import ExifTables

_BASE = ExifTags.Base
_GPS = ExifTags.GPS
# The equivalent on 35 mm film refers to the diagonal of the picture (CIPA DCG-001). Of a sensor of
# 4:3, which drones and compact cameras have, the longer side is 34.6 mm then; pictures of 16:9 are
# cut from it. Of 3:2 it is 36 mm.
_LONG_SIDE_MM = {"4:3": 34.6, "3:2": 36.0}
_BELOW = (1, 3)  # of the reference of a height: below sea level, below the ellipsoid
_ELLIPSOID = (2, 3)
SEA_LEVEL = "sea level as the camera's receiver gives it"
ELLIPSOID = "the ellipsoid of WGS84"


@dataclasses.dataclass(frozen=True)
class PhotoTags:
    """What EXIF data say; None and "" where they say nothing, or nothing that can be.

    | field                   | unit                                                            |
    |-------------------------|-----------------------------------------------------------------|
    | `latitude`, `longitude` | degrees of WGS84, north and east positive                       |
    | `altitude`              | metres above `datum`                                            |
    | `datum`                 | SEA_LEVEL or ELLIPSOID                                          |
    | `has_hemispheres`       | whether north or south and east or west are said                |
    | `focal_35mm`            | mm, the equivalent on 35 mm film                                |
    | `focal_mm`              | mm                                                              |
    | `camera`                | maker and model                                                 |
    | `time`                  | as the camera writes it; sorts as text                          |
    """

    latitude: float | None = None
    longitude: float | None = None
    altitude: float | None = None
    datum: str = SEA_LEVEL
    has_hemispheres: bool = True
    focal_35mm: float | None = None
    focal_mm: float | None = None
    camera: str = ""
    time: str = ""

    @property
    def has_position(self) -> bool:
        """Whether latitude and longitude are known."""
        return self.latitude is not None and self.longitude is not None

    def focal_px(self, height: int, width: int) -> float | None:
        """The focal length in pixels of a picture of this size; None where it is not known."""
        if self.focal_35mm is None:
            return None
        is_film = abs(max(height, width) / min(height, width) - 1.5) < 0.02
        long_side = _LONG_SIDE_MM["3:2" if is_film else "4:3"]
        return self.focal_35mm / long_side * max(height, width)


def _number(value: Any) -> float | None:
    """A finite number; damaged files have fractions with a denominator of 0."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None


def _positive(value: Any) -> float | None:
    number = _number(value)
    return number if number and number > 0 else None


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    return str(value or "").replace("\0", "").strip()


def _degrees(value: Any, reference: str, largest: float) -> float | None:
    """Degrees, minutes and seconds with N, S, E or W as a number."""
    if not isinstance(value, tuple | list):
        value = (value,)
    parts = [_number(part) for part in value]
    if len(parts) == 3 and parts[1] is not None and parts[2] is None:
        parts[2] = 0.0  # of cameras that write minutes with decimals, and seconds as 0/0
    if not parts or len(parts) > 3 or None in parts:
        return None
    degrees = sum(abs(part) / 60**place for place, part in enumerate(parts) if part is not None)
    is_negative = any(math.copysign(1, part) < 0 for part in parts if part is not None)
    if reference in ("S", "W") or (is_negative and reference not in ("N", "E")):
        degrees = -degrees
    return degrees if abs(degrees) <= largest else None


def tags_of(tables: ExifTables) -> PhotoTags:
    """The tags of a photograph.

    A position of exactly 0, 0, which receivers write before they have one, is none.

    Args:
        tables: of `photo_files.read_exif`.
    """
    gps = tables.gps
    north = _text(gps.get(_GPS.GPSLatitudeRef)).upper()[:1]
    east = _text(gps.get(_GPS.GPSLongitudeRef)).upper()[:1]
    latitude = _degrees(gps.get(_GPS.GPSLatitude), north, 90)
    longitude = _degrees(gps.get(_GPS.GPSLongitude), east, 180)
    if latitude is None or longitude is None or (latitude == 0 and longitude == 0):
        latitude = longitude = None
    altitude = _number(gps.get(_GPS.GPSAltitude))
    reference = gps.get(_GPS.GPSAltitudeRef, 0)
    kind = reference[0] if isinstance(reference, bytes) and reference else reference
    if altitude is not None and kind in _BELOW:
        altitude = -abs(altitude)
    maker, model = _text(tables.main.get(_BASE.Make)), _text(tables.main.get(_BASE.Model))
    if maker and model.lower().startswith(maker.lower()):
        maker = ""
    return PhotoTags(
        latitude=latitude,
        longitude=longitude,
        altitude=altitude,
        datum=ELLIPSOID if kind in _ELLIPSOID else SEA_LEVEL,
        has_hemispheres=north in ("N", "S") and east in ("E", "W"),
        focal_35mm=_positive(tables.photo.get(_BASE.FocalLengthIn35mmFilm)),
        focal_mm=_positive(tables.photo.get(_BASE.FocalLength)),
        camera=f"{maker} {model}".strip(),
        time=_text(tables.photo.get(_BASE.DateTimeOriginal) or tables.main.get(_BASE.DateTime)),
    )
