"""The index of tiles in the format 3D Tiles 1.1, which viewers of maps open: which file shows which
part of the ground.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from cosurfgs_jax import files
from cosurfgs_jax.surface.mesh_cells import ground_axes
from cosurfgs_jax.surface.mesh_files import upright


class Tile(NamedTuple):
    """A file of a tileset.

    | field  | content                                                                    |
    |--------|----------------------------------------------------------------------------|
    | `uri`  | of its GLB file, relative to the index                                     |
    | `low`  | f64[3] lowest coordinates, in `tileset_axes`, relative to the origin       |
    | `high` | f64[3] highest ones                                                        |
    """

    uri: str
    low: np.ndarray
    high: np.ndarray


def tileset_axes(up: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation from the dataset's axes to those of a tileset, z up: none where z is the vertical.
    GLB files are y up, and viewers of tilesets turn them to these.
    """
    return np.stack([*ground_axes(up), upright(up)[1]])


def _box(low: np.ndarray, high: np.ndarray) -> dict[str, list[float]]:
    half = np.diag((high - low) / 2)
    return {"box": [*((low + high) / 2).tolist(), *half.ravel().tolist()]}


def write_tileset(
    path: Path,
    tiles: Sequence[Tile],
    up: Float[np.ndarray, "3"],
    origin: Float[np.ndarray, "3"],
) -> None:
    """Writes the index, atomically.

    Args:
        path: the JSON file.
        tiles: at least one.
        up: the vertical, dataset frame.
        origin: that the files' coordinates count from, dataset frame.
    """
    low = np.min([tile.low for tile in tiles], axis=0)
    high = np.max([tile.high for tile in tiles], axis=0)
    # Nothing is shown in place of the tiles: from any distance their error counts.
    error = float(np.linalg.norm(high - low))
    root: dict[str, Any] = {
        "boundingVolume": _box(low, high),
        "geometricError": error,
        "refine": "REPLACE",
    }
    if np.any(origin):
        matrix = np.eye(4)
        matrix[:3, 3] = tileset_axes(up) @ origin
        root["transform"] = matrix.T.ravel().tolist()
    root["children"] = [
        {
            "boundingVolume": _box(tile.low, tile.high),
            "geometricError": 0,
            "content": {"uri": tile.uri},
        }
        for tile in tiles
    ]
    asset = {"version": "1.1", "generator": "cosurfgs_jax"}
    files.write_json(path, {"asset": asset, "geometricError": error, "root": root})
