"""place.json: where the files beside it lie on the map. Whoever writes a file that is not in map
coordinates notes there what was taken off its coordinates, and how they were turned.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError

NAME = "place.json"
FORMAT = 1
_ADVICE = "delete it, and write again the files that it is of"


@dataclasses.dataclass(frozen=True)
class Place:
    """The map coordinates of a file: map = `rotation` @ file + `offset`.

    | field      | shape    | unit, frame                                                        |
    |------------|----------|--------------------------------------------------------------------|
    | `rotation` | f64[3,3] | proper rotation from the file's axes to the map's                  |
    | `offset`   | f64[3]   | map; what was taken off                                            |
    | `epsg`     |          | of the map coordinates; 0 = they are of no known system            |
    """

    rotation: np.ndarray
    offset: np.ndarray
    epsg: int = 0

    def to_map(self, points: np.ndarray) -> np.ndarray:
        """Points [n,3] of the file in map coordinates, f64[n,3]."""
        return np.asarray(points, np.float64) @ self.rotation.T + self.offset


@contextlib.contextmanager
def placing(folder: Path, places: Mapping[str, Place]) -> Iterator[None]:
    """Notes the places of files that are written meanwhile. Until they are whole there is none: it
    would be that of the files before.

    Args:
        folder: of the files.
        places: by the names of the files.
    Raises:
        InputError: see `read_places`, or the file system refused.
    """
    _update(folder, dict.fromkeys(places))
    yield
    _update(folder, places)


def _update(folder: Path, changes: Mapping[str, Place | None]) -> None:
    """Replaces the places of files, or takes them out; those of files that are gone go, too."""
    before = read_places(folder)
    there = {name: place for name, place in before.items() if (folder / name).exists()}
    places = {name: place for name, place in (there | dict(changes)).items() if place is not None}
    if places.keys() == before.keys() and not any(changes.values()):
        return
    content = {
        name: {"epsg": place.epsg or None, "offset": place.offset, "rotation": place.rotation}
        for name, place in sorted(places.items())
    }
    files.write_json(folder / NAME, {"format": FORMAT, "files": content})


def read_places(folder: Path) -> dict[str, Place]:
    """The places of the files of a folder, by their names; none where nothing is noted.

    Raises:
        InputError: place.json is damaged, or of another version.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    content = files.read_json_object(path)
    if content.get("format") != FORMAT:
        raise InputError(f"{path}: expected a file of format {FORMAT}, got another; {_ADVICE}")
    try:
        return {name: _place(found) for name, found in content["files"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: expected epsg, offset and rotation of each file, got {error!r}; {_ADVICE}"
        ) from error


def _place(found: dict[str, Any]) -> Place:
    rotation = np.array(found["rotation"], np.float64).reshape(3, 3)
    offset = np.array(found["offset"], np.float64).reshape(3)
    return Place(rotation, offset, int(found["epsg"] or 0))
