"""geo.json: where on earth a dataset lies, and how well that is known. `prepare` writes it beside
the photographs, `train` carries it into the workdir.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError

NAME = "geo.json"
_log = logging.getLogger(__name__)
FORMAT = 1
_ADVICE = "run `cosurfgs prepare` again, or delete the file"


@dataclasses.dataclass(frozen=True)
class GeoReference:
    """The map coordinates of a dataset: dataset coordinates plus `offset`.

    | field      | content                                                                         |
    |------------|---------------------------------------------------------------------------------|
    | `epsg`     | of the projected system of the map coordinates; 0: they are of none             |
    | `offset`   | x, y, z; metres where the scale is known                                        |
    | `has_scale`| whether lengths are metres                                                      |
    | `details`  | everything else of the file: fit, residuals, photographs, versions              |
    """

    epsg: int
    offset: tuple[float, float, float]
    has_scale: bool
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_map(self) -> bool:
        """Whether the dataset lies on a map."""
        return self.epsg > 0

    @property
    def offset_text(self) -> str:
        """The offset as the setting geo.offset has it."""
        return ",".join(f"{value:.12g}" for value in self.offset)


def write_geo(path: Path, geo: GeoReference) -> None:
    """Writes geo.json, atomically."""
    head = {
        "format": FORMAT,
        "epsg": geo.epsg or None,
        "offset": geo.offset,
        "unit": "metre" if geo.has_scale else None,
    }
    files.write_json(path, head | geo.details)


def read_geo(path: Path) -> GeoReference | None:
    """Reads geo.json; None where there is none, or one of GeoJSON, which others call so.

    Raises:
        InputError: it is damaged, or of another format.
    """
    if not path.is_file():
        return None
    content = files.read_json_object(path)
    if "format" not in content and "type" in content and "offset" not in content:
        _log.warning("%s: is of another program (GeoJSON) and was not used", path)
        return None
    if content.pop("format", None) != FORMAT:
        raise InputError(
            f"{path}: expected a file of format {FORMAT}, got another; {_ADVICE} (or use the "
            "version of cosurfgs_jax that wrote it)"
        )
    epsg = content.pop("epsg", None)
    offset = content.pop("offset", None)
    unit = content.pop("unit", None)
    is_system = epsg is None or (type(epsg) is int and epsg > 0)
    if not is_system or not _is_point(offset) or unit not in (None, "metre"):
        raise InputError(
            f"{path}: expected epsg (a number or null), offset (three numbers) and unit "
            f'("metre" or null), got {epsg!r:.80}, {offset!r:.80} and {unit!r:.80}; {_ADVICE}'
        )
    x, y, z = map(float, offset)
    return GeoReference(epsg or 0, (x, y, z), unit == "metre", content)


def carry_geo(dataset: Path, target: Path) -> None:
    """Copies the geo.json of a dataset, if it has one: results know where they are then, also where
    the dataset has moved.

    Args:
        dataset: its folder.
        target: the file of the copy.
    Raises:
        InputError: as `read_geo`.
    """
    geo = read_geo(dataset / NAME)
    if geo is not None:
        write_geo(target, geo)


def _is_point(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    return all(files.is_finite(item) for item in value)
