"""A town in four blocks of two edges, a model of discs for each, and what a run works with: for
tests of collaboration.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from scenes import town_place

from cosurfgs_jax.collab.exchange import LARGEST_ALL_TO_ALL, Exchange, plan_exchange
from cosurfgs_jax.collab.merged_model import Choose, MergedModel
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.distributed.layout import Layout, make_layout
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.raster import rasterize
from cosurfgs_jax.raster.culling import Discs
from cosurfgs_jax.settings import (
    AppearanceSettings,
    DensitySettings,
    GeneratedSettings,
    LmcSettings,
    LossSettings,
    Settings,
    SurfelSettings,
)
from cosurfgs_jax.training import loop
from cosurfgs_jax.training.first_state import first_state
from cosurfgs_jax.training.interrupts import StopRequest
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.run_log import Log
from cosurfgs_jax.training.state import TrainState
from cosurfgs_jax.training.world_cameras import WorldViews
from cosurfgs_jax.types import SurfelParams, Surfels
from cosurfgs_jax.workdir import Workdir

# Discs on the points alone, each of which is in one cell.
SETTINGS = Settings(surfels=SurfelSettings(sh_degree=1, fill_gaps=False))
# Photometric steps alone: what they cost is compiling.
PHOTOMETRIC = dataclasses.replace(
    SETTINGS,
    appearance=AppearanceSettings(enabled=False),
    density=DensitySettings(enabled=False),
    loss=LossSettings(
        single_view_weight=0.0,
        multi_view_geometric_weight=0.0,
        multi_view_photometric_weight=0.0,
    ),
)
NUM_BLOCKS = 4
REACH = 3.4  # a solid disc is drawn up to 3.3 of its standard deviations
TOWN = GeneratedSettings(num_views=16, width=96, height=72, size_m=60.0)
_SOLID_LOGIT = 3.0  # opacity 0.95
_RIM = 1.1
_HEIGHT = 0.3  # world lengths: outside the town, not above its roofs by much


@functools.cache
def four_blocks() -> PartitionedScene:
    """The town as its photographs show it, from above."""
    partitioned = town_place(TOWN, num_blocks=NUM_BLOCKS, num_edges=2)
    assert len(partitioned.blocks) == NUM_BLOCKS and partitioned.partition.num_edges == 2
    return partitioned


def from_the_rim(partitioned: PartitionedScene) -> PartitionedScene:
    """The same place, but its views look across it from outside, so that rays go through several
    cells.
    """
    angles = np.linspace(0, 2 * np.pi, partitioned.scene.num_views, endpoint=False)
    poses = np.tile(np.eye(4), (len(angles), 1, 1))
    for pose, angle in zip(poses, angles, strict=True):
        center = np.array([_RIM * np.cos(angle), _RIM * np.sin(angle), _HEIGHT])
        forward = -center / np.linalg.norm(center)
        right = np.cross(forward, [0, 0, 1]) / np.linalg.norm(np.cross(forward, [0, 0, 1]))
        pose[:3, :3] = right, np.cross(forward, right), forward
        pose[:3, 3] = -pose[:3, :3] @ center
    views = dataclasses.replace(partitioned.scene.views, camera_from_dataset=poses)
    stays = SceneFrame(1.0, np.eye(3), np.zeros(3))
    return partitioned._replace(views=WorldViews(views, stays))


@contextlib.contextmanager
def run_context(
    partitioned: PartitionedScene, folder: Path, num_devices: int, settings: Settings = SETTINGS
) -> Iterator[Run]:
    """What a run works with, on so many devices."""
    layout = make_layout(partitioned.partition.edge_of_block, num_devices)
    workdir = Workdir(folder)
    with ImageStore(partitioned.scene, 64) as images, Log(workdir) as log:
        yield Run(settings, workdir, partitioned, layout, images, StopRequest(), log)


def num_slots(partitioned: PartitionedScene) -> int:
    """That hold the first surfels of every block."""
    return max(block.num_initial for block in partitioned.blocks)


def solid_state(
    partitioned: PartitionedScene,
    number: int,
    size: float = 0.5,
    is_clear_of_walls: bool = False,
    settings: Settings = SETTINGS,
) -> TrainState:
    """A block's first state, opaque.

    Args:
        place, number: of the block.
        size: of the discs, in terms of the first ones, which are as large as this town's few points
            are apart.
        is_clear_of_walls: without the discs that reach into another cell.
        settings: of the model.
    """
    state = first_state(partitioned, partitioned.blocks[number], settings, num_slots(partitioned))
    params = {name: np.array(value) for name, value in state.params.by_name().items()}
    params["logit_opacities"][:] = _SOLID_LOGIT
    params["log_scales"] += np.float32(np.log(size))
    alive = np.array(state.alive)
    if is_clear_of_walls:
        partition = partitioned.partition
        means = params["means"].astype(np.float64)[:, :2]
        cells = partition.cell_of(means)
        to_wall = np.minimum(means - partition.lows[cells], partition.highs[cells] - means).min(
            axis=1
        )
        alive &= to_wall > REACH * np.exp(params["log_scales"]).max(axis=1)
    return dataclasses.replace(state, params=SurfelParams(**params), alive=alive)


def put_states(run: Run, make_state) -> list:
    """The rows of a context's layout from `make_state(number of a block)`."""
    return loop.start_stage(run, "device", make_state, num_slots(run.partitioned)).states


def exchange_of(
    layout: Layout,
    is_within_rows: bool = False,
    largest_all_to_all: int = LARGEST_ALL_TO_ALL,
    most: int = 8,
) -> Exchange:
    """Everyone needs everyone alike."""
    needs = np.ones((layout.num_devices,) * 2)
    return plan_exchange(layout.mesh.devices.shape, needs, is_within_rows, most, largest_all_to_all)


def surfels_of(state: TrainState) -> Surfels:
    """The model of a state of NumPy arrays, which is what devices hand back."""
    return state.surfels()


def model_of(surfels: Surfels, step: int = 1, identity: str = "this one") -> MergedModel:
    """A merged model of one cell in memory."""
    return MergedModel(
        step, identity, 1, lambda _, choose: chosen_of(jax.tree.map(np.asarray, surfels), choose)
    )


def chosen_of(cell: Surfels, choose: Choose) -> Surfels:
    """What is chosen of the surfels of a cell in memory, as `MergedModel.read_cell`."""
    chosen = choose(Discs(cell.means, cell.log_scales, cell.alive))
    return jax.tree.map(lambda values: values[chosen], cell)


def merged_surfels(run: Run, rows: list) -> Surfels:
    """All blocks' surfels as one model, in the order of blocks, dead slots too."""
    models = [surfels_of(state) for state in run.layout.get_blocks(rows).values()]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *models)


def with_lmc(**changes) -> Settings:
    """The settings of these tests with others for compression."""
    return dataclasses.replace(SETTINGS, lmc=LmcSettings(**changes))


@functools.cache
def contributions(block: int) -> list[np.ndarray]:
    """What each photograph of a block gets from each of its surfels: f32[N,4] of `RenderOutput`."""
    partitioned = four_blocks()
    state = solid_state(four_blocks(), block)
    draw = jax.jit(
        functools.partial(
            rasterize, image_size=partitioned.photo_size, maps="color", with_contributions=True
        )
    )
    return [
        np.asarray(draw(surfels_of(state), partitioned.views.camera(int(view))).contributions)
        for view in partitioned.blocks[block].views
    ]
