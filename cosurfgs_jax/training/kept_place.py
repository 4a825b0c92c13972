"""A place as it was opened and cut, in files of the workdir: written once, by who opens it first.
All others map them into memory and read only what is of their blocks.

Points are in the order of the cells that they lie in, so that a block's are near each other in the
file; all lists of points name them by their places there, in the order that the dataset has."""

import dataclasses
import hashlib
import itertools
import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from cosurfgs_jax import files
from cosurfgs_jax.data import generated
from cosurfgs_jax.data.dataset_state import state_of_dataset
from cosurfgs_jax.data.ground_truth import ground_truth_of
from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.distributed import processes
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry import ground_tree
from cosurfgs_jax.geometry.distortion import Lens
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.geometry.views import PointCloud, Sightings, Views
from cosurfgs_jax.partition import Partition
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.partitioned_scene import (
    Block,
    PartitionedScene,
    open_partitioned_scene,
)
from cosurfgs_jax.training.world_cameras import WorldViews
from cosurfgs_jax.workdir import Workdir

_FREE = ("path", "host_memory_mb", "device_memory_mb")  # of config.data: nothing is cut by them
_TABLE = "place.json"  # written last: where it is, the rest is whole
_SMALL = 2**16  # bytes of a file that is read at once
_VIEWS = ("camera_from_dataset", "intrinsics", "image_sizes")
_SCENE = ("photo_sizes", "shrink_factors", "is_test")
_CLOUD = ("points", "colors", "track_offsets", "track_views")
_SPARSE = ("data", "indices", "indptr")
_log = logging.getLogger(__name__)


def open_place(
    settings: Settings,
    workdir: Workdir,
    allow_missing: bool = False,
    left_out: Collection[str] | None = None,
    keeps: bool = False,
) -> PartitionedScene:
    """`open_partitioned_scene`, or the same from what is kept of it in the workdir.

    Args:
        settings, workdir, allow_missing, left_out: see there.
        keeps: whether what is read anew is kept for others.
    """
    state = None
    if not left_out:
        state = _state(settings, workdir)
    if state is not None:
        found = read_place(settings, workdir.place / state)
        if found is not None:
            return found
    partitioned = open_partitioned_scene(settings, workdir, allow_missing, left_out)
    if keeps and state is not None and _is_whole(partitioned):
        _keep(partitioned, settings, workdir, state)
    return partitioned


def is_kept(settings: Settings, workdir: Workdir) -> bool:
    """Whether `open_place` has only to map files."""
    state = _state(settings, workdir)
    return state is not None and (workdir.place / state / _TABLE).exists()


def _state(settings: Settings, workdir: Workdir) -> str | None:
    """What a place follows from, in 16 hexadecimal digits; None for one that is generated, or where
    there is none.
    """
    root = Path(settings.data.path).expanduser()
    if settings.data.path == generated.PATH or not root.is_dir():
        return None
    told = {
        "data": {name: value for name, value in vars(settings.data).items() if name not in _FREE},
        "partition": dataclasses.asdict(settings.partition),
        "capacity": settings.surfels.capacity,
        "seed": settings.seed,
        "program": processes.sources(),
    }
    digest = hashlib.sha256(files.to_json(told).encode())
    split = Path(settings.data.split)
    if split.is_file():
        digest.update(split.read_bytes())
    digest.update(state_of_dataset(root, workdir.root).encode())
    return digest.hexdigest()[:16]


def _is_whole(partitioned: PartitionedScene) -> bool:
    """Whether a place is the same wherever it is opened, and all of it lies in the dataset."""
    scene = partitioned.scene
    inside = os.path.join(os.path.abspath(scene.path), "")
    paths = [*scene.image_paths, *filter(None, scene.mask_paths)]
    return not scene.left_out and all(
        path and os.path.abspath(path).startswith(inside) for path in paths
    )


def _keep(partitioned: PartitionedScene, settings: Settings, workdir: Workdir, state: str) -> None:
    """Writes a place into the workdir, unless the dataset has changed meanwhile. A run goes on
    where the file system refuses. What was kept of other states is deleted before the run has
    begun; later, machines that have copies of the dataset may each use their own.
    """
    folder = workdir.place / state
    try:
        write_place(partitioned, settings, folder)
    except InputError as error:
        _log.warning("%s; every process reads the whole dataset", error)
    if _state(settings, workdir) != state:
        shutil.rmtree(folder, ignore_errors=True)
    if not workdir.has_begun():
        for other in workdir.place.glob("*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)


def _by_cell(partitioned: PartitionedScene) -> PointCloud:
    """The cloud in the order of the cells; without tracks, as it is."""
    cloud = partitioned.scene.cloud
    if not cloud.has_tracks:
        return cloud
    partition = partitioned.partition
    cells = partition.cell_of(partitioned.frame.to_world(cloud.points))
    order = np.concatenate(ground_tree.grouped(cells, partition.num_blocks))
    return cloud.reordered(order)


def write_place(partitioned: PartitionedScene, settings: Settings, folder: Path) -> None:
    """Writes all that `read_place` needs.

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
    for name, array in arrays.items():
        if array is not None:
            with files.atomic_path(folder / f"{name}.npy") as partial, open(partial, "wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
    root = Path(settings.data.path).expanduser()
    table = {
        "name": scene.name,
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
    files.write_json(folder / _TABLE, table)


def _as_arrays(name: str, lists: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Lists as two arrays that are files."""
    offsets = np.cumsum([0, *map(len, lists)])
    return {name: np.concatenate(lists), f"{name}_offsets": offsets}


def _as_lists(arrays: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    return [
        arrays[name][start:end]
        for start, end in itertools.pairwise(arrays[f"{name}_offsets"].tolist())
    ]


def _mapped(path: Path) -> np.ndarray:
    """An array of a file; a large one is not read before it is used."""
    is_large = path.stat().st_size > _SMALL
    return np.asarray(np.load(path, mmap_mode="r" if is_large else None))


def read_place(settings: Settings, folder: Path) -> PartitionedScene | None:
    """A place that is kept; None where there is none. What is of the whole place and large is in
    files that are mapped into memory, and cannot be written.
    """
    if not (folder / _TABLE).exists():
        return None
    try:
        table = files.read_json_object(folder / _TABLE)
        arrays = {path.stem: _mapped(path) for path in folder.glob("*.npy")}
        return _place_of(settings, table, arrays)._replace(kept_in=folder)
    except (OSError, EOFError, ValueError, KeyError, InputError) as error:
        _log.warning("%s: deleted meanwhile, or damaged (%r); the dataset is read", folder, error)
        return None


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
        name=table["name"],
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
    )


def _lens(row: dict) -> Lens:
    pairs = {name: tuple(row[name]) for name in ("focal_px", "principal_px", "coefficients")}
    return Lens(row["model"], row["height"], row["width"], **pairs)
