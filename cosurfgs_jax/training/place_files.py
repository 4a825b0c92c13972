"""A place as it was opened and cut, in files: written by one process, mapped into memory by others,
which read only what is of their blocks.

Points are in the order of the cells that they lie in, so that a block's are near each other in the
file; all lists of points name them by their places there, in the order that the dataset has."""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from cosurfgs_jax import files
from cosurfgs_jax.data.ground_truth import ground_truth_of
from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import ground_tree
from cosurfgs_jax.geometry.distortion import Lens
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.geometry.views import PointCloud, Sightings, Views
from cosurfgs_jax.partition import Partition
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.partitioned_scene import Block, PartitionedScene
from cosurfgs_jax.training.world_cameras import WorldViews

TABLE = "place.json"  # written last: where it is, the rest is whole
_SMALL = 2**16  # bytes of a file that is read at once
_VIEWS = ("camera_from_dataset", "intrinsics", "image_sizes")
_SCENE = ("photo_sizes", "shrink_factors", "is_test")
_CLOUD = ("points", "colors", "track_offsets", "track_views")
_SPARSE = ("data", "indices", "indptr")


class PlaceFiles(NamedTuple):
    """What was read from the files of a place."""

    partitioned: PartitionedScene
    warnings: list[str]  # that were logged when the dataset was read


def _by_cell(partitioned: PartitionedScene) -> PointCloud:
    """The cloud in the order of the cells; without tracks, as it is."""
    cloud = partitioned.scene.cloud
    if not cloud.has_tracks:
        return cloud
    partition = partitioned.partition
    cells = partition.cell_of(partitioned.frame.to_world(cloud.points))
    order = np.concatenate(ground_tree.grouped(cells, partition.num_blocks))
    return cloud.reordered(order)


def write_place(
    partitioned: PartitionedScene, settings: Settings, folder: Path, warnings: Sequence[str] = ()
) -> None:
    """Writes all that `read_place` needs.

    Args:
        partitioned, settings: of the run.
        folder: what is there is written over.
        warnings: that were logged when the dataset was read.
    Raises:
        InputError: the file system refuses it.
    """
    scene = partitioned.scene
    partition = partitioned.partition
    cloud = _by_cell(partitioned)
    places = np.arange(len(cloud)) if cloud.numbers is None else cloud.numbers
    lenses = list(dict.fromkeys(lens for lens in scene.distortion if lens is not None))
    number_of = {lens: number for number, lens in enumerate(lenses)}
    arrays = {name: getattr(scene.views, name) for name in _VIEWS}
    arrays |= {name: getattr(scene, name) for name in _SCENE}
    arrays |= {name: getattr(cloud, name) for name in _CLOUD}
    arrays["numbers"] = cloud.numbers
    arrays["orientations"] = np.array(scene.orientations, np.int64)
    arrays["lens_of_view"] = np.array([number_of.get(lens, -1) for lens in scene.distortion])
    arrays["home"] = partition.home
    arrays |= {f"coverage_{name}": getattr(partition.coverage, name) for name in _SPARSE}
    arrays |= {f"sightings_{name}": value for name, value in cloud.sightings._asdict().items()}
    arrays |= _as_arrays("views", partition.views)
    arrays |= _as_arrays("points_of", [places[points] for points in partition.points])
    arrays |= _as_arrays("starts", [places[block.points] for block in partitioned.blocks])
    there = {name: array for name, array in arrays.items() if array is not None}
    with files.writing(folder / TABLE):
        (folder / TABLE).unlink(missing_ok=True)
    for name, array in there.items():
        with files.atomic_path(_file(folder, name)) as partial, open(partial, "wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
    root = Path(settings.data.path).expanduser()
    table = {
        "arrays": {
            name: [array.shape, array.dtype.str, _file(folder, name).stat().st_size]
            for name, array in there.items()
        },
        "warnings": list(warnings),
        "name": None if scene.name == _name_of(scene.path) else scene.name,
        "path": os.path.relpath(scene.path, root),
        "image_names": scene.image_names,
        "image_paths": [os.path.relpath(path, scene.path) for path in scene.image_paths],
        "mask_paths": [path and os.path.relpath(path, scene.path) for path in scene.mask_paths],
        "has_masks": scene.has_masks,
        "up": scene.up,
        "lenses": [dataclasses.asdict(lens) for lens in lenses],
        "frame": partitioned.frame.to_dict(),
        "partition": partition.without_lists().to_dict(),
        "blocks": [[block.capacity, block.num_initial] for block in partitioned.blocks],
        "identity": partitioned.identity(),
    }
    files.write_json(folder / TABLE, table)


def _as_arrays(name: str, lists: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Lists as two arrays that are files."""
    offsets = np.cumsum([0, *map(len, lists)])
    return {name: np.concatenate(lists), f"{name}_offsets": offsets}


def _as_lists(arrays: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    return [
        arrays[name][start:end]
        for start, end in itertools.pairwise(arrays[f"{name}_offsets"].tolist())
    ]


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _name_of(path: str) -> str:
    """A dataset's name where its files give none: that of its folder."""
    return Path(path).resolve().name


def _mapped(path: Path, shape: list[int], dtype: str, num_bytes: int) -> np.ndarray:
    """An array of a file; a large one is not read before it is used."""
    found = path.stat().st_size
    if found != num_bytes:
        raise ValueError(f"{path.name} has {found} bytes instead of {num_bytes}")
    mode = "r" if num_bytes > _SMALL else None
    array = np.asarray(np.load(path, mmap_mode=mode, allow_pickle=False))
    if list(array.shape) != shape or array.dtype.str != dtype:
        raise ValueError(f"{path.name} has {array.dtype.str}{array.shape}, not {dtype}{shape}")
    return array


def read_place(settings: Settings, folder: Path) -> PlaceFiles | None:
    """A place that is kept; None where there is none. What is of the whole place and large is in
    files that are mapped into memory, and cannot be written.

    Raises:
        InputError: a file is missing or damaged.
    """
    if not (folder / TABLE).exists():
        return None
    with files.reading(folder / TABLE, "the table of a kept place and its arrays", "delete it"):
        table = files.read_json_object(folder / TABLE)
        arrays = {
            name: _mapped(_file(folder, name), *form) for name, form in table["arrays"].items()
        }
        try:
            partitioned = _place_of(settings, table, arrays)._replace(kept_in=folder)
        except InputError as error:  # of a part of the table
            raise InputError(f"{folder / TABLE}: {error}; delete it") from error
        return PlaceFiles(partitioned, table["warnings"])


def _place_of(settings: Settings, table: dict, arrays: dict[str, np.ndarray]) -> PartitionedScene:
    scene = _scene_of(settings, table, arrays)
    frame = SceneFrame.from_dict(table["frame"])
    partition = dataclasses.replace(
        Partition.from_dict(table["partition"]),
        home=arrays["home"],
        views=_as_lists(arrays, "views"),
        points=_as_lists(arrays, "points_of"),
        coverage=csr_array(
            tuple(arrays[f"coverage_{name}"] for name in _SPARSE),
            (scene.num_views, len(table["blocks"])),
        ),
    )
    starts = _as_lists(arrays, "starts")
    blocks = [
        Block(
            number=number,
            views=partition.views[number],
            capacity=capacity,
            points=starts[number],
            num_initial=num_initial,
            length=float(partition.lengths[number]),
        )
        for number, (capacity, num_initial) in enumerate(table["blocks"])
    ]
    return PartitionedScene(
        scene=scene,
        frame=frame,
        views=WorldViews(scene.views, frame),
        partition=partition,
        blocks=blocks,
        known_identity=table["identity"],
    )


def _scene_of(settings: Settings, table: dict, arrays: dict[str, np.ndarray]) -> Scene:
    path = os.path.normpath(Path(settings.data.path).expanduser() / table["path"])
    lenses = [_lens(row) for row in table["lenses"]]
    cloud = PointCloud(
        **{name: arrays[name] for name in _CLOUD},
        numbers=arrays.get("numbers"),
        known_sightings=Sightings(arrays["sightings_offsets"], arrays["sightings_points"]),
    )
    return Scene(
        name=table["name"] or _name_of(path),
        path=path,
        image_names=table["image_names"],
        image_paths=[os.path.join(path, place) for place in table["image_paths"]],
        views=Views(**{name: arrays[name] for name in _VIEWS}),
        distortion=[
            None if number < 0 else lenses[number] for number in arrays["lens_of_view"].tolist()
        ],
        mask_paths=[place and os.path.join(path, place) for place in table["mask_paths"]],
        has_masks=table["has_masks"],
        cloud=cloud,
        up=np.array(table["up"]),
        ground_truth=ground_truth_of(path, table["image_names"]),
        orientations=tuple(arrays["orientations"].tolist()),
        photo_sizes=arrays["photo_sizes"],
        shrink_factors=arrays["shrink_factors"],
        is_test=arrays["is_test"],
        outside=(),
    )


def _lens(row: dict) -> Lens:
    pairs = {name: tuple(row[name]) for name in ("focal_px", "principal_px", "coefficients")}
    return Lens(row["model"], row["height"], row["width"], **pairs)
