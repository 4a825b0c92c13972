"""Small generated scenes for tests, made once per process and removed at its end."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import numpy as np

from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.data.scene import Scene
from cosurfgs_jax.data.town.dataset import make_town
from cosurfgs_jax.losses.inputs import SecondView
from cosurfgs_jax.settings import DataSettings, GeneratedSettings, PartitionSettings, Settings
from cosurfgs_jax.training.partitioned_scene import PartitionedScene, open_partitioned_scene
from cosurfgs_jax.training.step import Batch
from cosurfgs_jax.types import Camera
from cosurfgs_jax.workdir import Workdir

# 0.6 m per pixel on the ground; neighbouring photographs overlap by more than 70 %. Takes about a
# second to make.
SMALL = GeneratedSettings(num_views=12, width=160, height=120, size_m=80.0)
# 1.5 m per pixel: for tests that only need something to load.
TINY = GeneratedSettings(num_views=6, width=64, height=48, size_m=50.0)


@functools.cache
def _root() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="cosurfgs-town-")


def town_folder(settings: GeneratedSettings = SMALL) -> Path:
    """The dataset folder of a generated town. Tests must not write into it."""
    name = "-".join(f"{key}={value}" for key, value in dataclasses.asdict(settings).items())
    folder = Path(_root().name) / name
    make_town(settings, folder)
    return folder


def town_scene(
    settings: GeneratedSettings = SMALL, split: str = "every8", downscale: int = 1
) -> Scene:
    """A generated town, loaded from its folder, with ground truth."""
    data = DataSettings(path=str(town_folder(settings)), split=split, downscale=downscale)
    return load_scene(data, settings, _root().name)


def town_place(
    settings: GeneratedSettings = TINY, num_blocks: int = 1, num_edges: int = 1
) -> PartitionedScene:
    """A generated town as training sees it; no block is too small to be one."""
    partition = PartitionSettings(
        num_blocks=num_blocks, num_edges=num_edges, min_views=1, min_points=1
    )
    given = Settings(
        data=DataSettings(path=str(town_folder(settings))), generated=settings, partition=partition
    )
    return open_partitioned_scene(given, Workdir(Path(_root().name)))


def abstract_batch(size: tuple[int, int]) -> Batch:
    """Shapes of what a training step with a second view takes."""
    shape = jax.ShapeDtypeStruct
    photo = (*size, 3)
    camera = Camera(shape((4, 4), np.float32), shape((3, 3), np.float32))
    second = SecondView(
        camera=camera,
        photo=shape(photo, np.uint8),
        is_used=shape((), bool),
        offset=shape((2,), np.int32),
        index=shape((), np.int32),
    )
    return Batch(
        camera,
        shape(photo, np.uint8),
        shape((), np.int32),
        shape((), np.float32),
        shape((), np.int32),
        second,
    )
