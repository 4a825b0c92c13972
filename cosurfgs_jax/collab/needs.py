"""What a run needs of memory and disk, by arithmetic: nothing is compiled, no photograph is read.

The arrays of a run have sizes that follow from dataset and settings. What its programs take besides
is measured by `planning`; here it is an estimate from constants, for the lines with which `train`
begins. A run is refused only where its arrays alone are more than there is.
"""

from typing import NamedTuple

import jax
import numpy as np

from cosurfgs_jax.collab.exchange import LARGEST_ALL_TO_ALL
from cosurfgs_jax.collab.lmc_stages import compress_blocks, rounds_of, slots_left
from cosurfgs_jax.collab.stages import stages_of
from cosurfgs_jax.data import generated
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training.checkpoints import KEPT
from cosurfgs_jax.training.course import Course, course_of
from cosurfgs_jax.training.partitioned_scene import PartitionedScene, round_slots
from cosurfgs_jax.training.schedule import Schedule
from cosurfgs_jax.training.state import NOTHING_KEPT, Kept, abstract_state
from cosurfgs_jax.types import param_shapes

_TEACHER_BYTES = 15  # of a pixel of `TeacherMaps`
_PLY_BYTES_BESIDE = 12  # of a surfel in the splat file: a normal and the third scale
# Of the native CPU programs, from XLA's `memory_analysis` of the town and of caliterra.
_PIXEL_BYTES = 70  # of a training step
_CONTROL_COPIES = 3.1  # of the surfels, in density control
_PART_PIXEL_BYTES = 165  # of a step of distillation, for each partial image
# Of files, measured likewise.
_PICTURE_BYTES = 1.0  # of a pixel of a picture as PNG
_NUM_PICTURES = 6  # of a test view, by `train` and `evaluate` together
_TOWN_BYTES = 12  # of a pixel of the generated photographs, with their exact geometry
_STATE_OF_MODEL = 3  # a state is three times a model: with two moments
_PROGRAMS_A_SIZE = 4  # of arrays: looks, density control, catching up, moving
_OTHER_PROGRAMS = 3  # second views, pictures, scores


class Sizes(NamedTuple):
    """What memory and disk of a run follow from.

    | field            | content                                                                   |
    |------------------|---------------------------------------------------------------------------|
    | `num_blocks`     | of the run                                                                |
    | `num_devices`    | that carry them                                                           |
    | `num_slots`      | of a block, at most                                                       |
    | `cell_slots`     | of a cell in distillation; 0: there is none                               |
    | `state_bytes`    | of a block with its most slots                                            |
    | `before_bytes`   | of a block before its arrays grew the last time; 0: they do not grow      |
    | `cell_bytes`     | of a cell in distillation                                                 |
    | `compressed_bytes` | of a block after compression; 0: there is none                          |
    | `num_pixels`     | of the largest photograph                                                 |
    | `num_channels`   | of a photograph: 4 with masks                                             |
    | `photo_bytes`    | of all photographs that the run looks at                                  |
    | `block_photo_bytes` | of the photographs of the block that has the most                      |
    | `num_views`      | photographs of all blocks together: some are of several                   |
    | `surfel_bytes`   | of one surfel in the splat file                                           |
    | `num_final`      | surfels of the merged model, at most                                      |
    """

    num_blocks: int
    num_devices: int
    num_slots: int
    cell_slots: int
    state_bytes: int
    before_bytes: int
    cell_bytes: int
    compressed_bytes: int
    num_pixels: int
    num_channels: int
    photo_bytes: int
    block_photo_bytes: int
    num_views: int
    surfel_bytes: int
    num_final: int

    @property
    def blocks_per_device(self) -> int:
        """Rows of blocks on a device."""
        return -(-self.num_blocks // self.num_devices)


class ProgramBytes(NamedTuple):
    """What a device holds for its largest programs besides states and photographs."""

    training: int
    control: int  # density control
    compression: int
    distillation: int


def training_course(settings: Settings, partitioned: PartitionedScene) -> Course:
    """The course of the training of blocks from their SfM points."""
    schedule = Schedule.from_settings(settings, partitioned.dilation(settings))
    return course_of(schedule, partitioned.blocks, settings)


def state_bytes(
    num_slots: int, partitioned: PartitionedScene, settings: Settings, kept: Kept
) -> int:
    """Bytes of the state of a block with so many slots."""
    shapes = abstract_state(num_slots, partitioned.max_views, settings, kept)
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def sizes_of(
    settings: Settings, partitioned: PartitionedScene, num_devices: int, course: Course
) -> Sizes:
    """The sizes of a run.

    Args:
        settings: of the run.
        partitioned: its dataset, in blocks.
        num_devices: that carry the blocks.
        course: of the training of blocks.
    """
    kept = partitioned.kept(settings)
    if settings.mask.weight:
        kept = kept._replace(has_masks=True)
    stages = stages_of(settings, partitioned.partition)
    slot_sizes = course.slot_sizes
    before = 0
    if len(slot_sizes) > 1:
        before = state_bytes(slot_sizes[-2], partitioned, settings, kept)
    num_left = course.num_slots
    compressed = 0
    for spec in stages:
        if spec.run is compress_blocks:
            num_rounds = rounds_of(settings.lmc, spec.num_steps(settings))
            num_left = slots_left(course.num_slots, num_rounds, settings.lmc)
            compressed = state_bytes(num_left, partitioned, settings, kept)
    fractions = cell_fractions(partitioned)
    capacities = np.array([block.capacity for block in partitioned.blocks])
    full = capacities * min(1.0, course.num_surfels / capacities.sum())
    in_cells = fractions * full * min(1.0, num_left / course.num_slots)
    cell_slots = 0
    cell = 0
    if any(spec.is_merged for spec in stages):
        cell_slots = round_slots(int(in_cells.max()))
        cell = state_bytes(cell_slots, partitioned, settings, NOTHING_KEPT)
    image_sizes = partitioned.scene.views.image_sizes
    num_pixels = image_sizes.prod(axis=1)
    num_channels = 3 + partitioned.has_masked_photos
    shapes = param_shapes(1, (settings.surfels.sh_degree + 1) ** 2).values()
    return Sizes(
        num_blocks=len(partitioned.blocks),
        num_devices=num_devices,
        num_slots=course.num_slots,
        cell_slots=cell_slots,
        state_bytes=state_bytes(course.num_slots, partitioned, settings, kept),
        before_bytes=before,
        cell_bytes=cell,
        compressed_bytes=compressed,
        num_pixels=int(num_pixels.max()),
        num_channels=num_channels,
        photo_bytes=int(num_pixels.sum()) * num_channels,
        block_photo_bytes=num_channels
        * max(int(num_pixels[block.views].sum()) for block in partitioned.blocks),
        num_views=sum(len(block.views) for block in partitioned.blocks),
        surfel_bytes=4 * sum(int(np.prod(shape)) for shape in shapes) + _PLY_BYTES_BESIDE,
        num_final=int(in_cells.sum()),
    )


def cell_fractions(partitioned: PartitionedScene) -> np.ndarray:
    """f64[B], the fraction of a block's surfels that is in its own cell: that of the SfM points
    that it starts from.
    """
    points = partitioned.frame.to_world(partitioned.scene.cloud.points)
    fractions = []
    for block in partitioned.blocks:
        cells = partitioned.partition.cell_of(points[block.points])
        fractions.append((cells == block.number).mean() if len(cells) else 1.0)
    return np.array(fractions)


def estimated_programs(sizes: Sizes, settings: Settings) -> ProgramBytes:
    """What programs hold, from constants."""
    surfels = (sizes.surfel_bytes - _PLY_BYTES_BESIDE) * sizes.num_slots
    rows = sizes.blocks_per_device
    partners = min(settings.mas.max_partners, sizes.num_devices - 1, LARGEST_ALL_TO_ALL - 1)
    distillation = 0
    if sizes.cell_slots:
        distillation = _PART_PIXEL_BYTES * sizes.num_pixels * (1 + partners) * rows**2
    training = _PIXEL_BYTES * sizes.num_pixels + surfels
    return ProgramBytes(
        training=training,
        control=round(_CONTROL_COPIES * surfels),
        compression=training // 2,
        distillation=distillation,
    )


def num_programs(course: Course) -> int:
    """About how many programs are there at once: those of training, which later stages drop."""
    return len(course.programs) + _PROGRAMS_A_SIZE * len(course.slot_sizes) + _OTHER_PROGRAMS


def disk_bytes(sizes: Sizes, settings: Settings, partitioned: PartitionedScene) -> dict[str, int]:
    """What a run has on disk at most, in bytes, by what it is.

    Of a finished stage the models alone stay, once the next one has saved
    (`collab.finished_stages`).
    """
    checkpoints = 0
    finished = 0  # models of finished stages
    before = 0  # states of the stage before, and its model
    model_before = 0
    teachers = 0
    for spec in stages_of(settings, partitioned.partition):
        one = sizes.state_bytes
        num_saved = -(-spec.num_steps(settings) // settings.train.checkpoint_every)
        if spec.run is compress_blocks:
            one = sizes.compressed_bytes
            num_saved += rounds_of(settings.lmc, spec.num_steps(settings))
        elif spec.is_merged:
            one = sizes.cell_bytes
            num_saved += 1  # before its first step
            teachers = _TEACHER_BYTES * sizes.num_pixels * sizes.num_views
        if spec.has_checkpoints:
            states = sizes.num_blocks * one
            # The oldest is deleted when the newest is whole.
            own = min(num_saved, KEPT + 1) * states
            checkpoints = max(checkpoints, finished + before + states)
            finished += model_before
            checkpoints = max(checkpoints, finished + own)
            before = min(num_saved, KEPT) * states
            model_before = states
            if not settings.train.keep_moments:
                model_before = states // _STATE_OF_MODEL
    num_tests = len(partitioned.scene.test_views)
    found = {
        "checkpoints": checkpoints,
        "teachers' maps": teachers,
        "model": sizes.num_final * sizes.surfel_bytes,
        "pictures": round(num_tests * sizes.num_pixels * _NUM_PICTURES * _PICTURE_BYTES),
    }
    if settings.data.path == generated.PATH:
        found["photographs"] = _TOWN_BYTES * sizes.num_pixels * partitioned.scene.num_views
    return {what: num_bytes for what, num_bytes in found.items() if num_bytes}
