"""The merged model of the newest saved stage."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from cosurfgs_jax.collab.stage_spec import StageSpec
from cosurfgs_jax.collab.stages import stages_of
from cosurfgs_jax.errors import InputError, required
from cosurfgs_jax.model import exposure_model
from cosurfgs_jax.part import WHOLE, Part
from cosurfgs_jax.raster.culling import Discs
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training import harmonize
from cosurfgs_jax.training.checkpoint_files import DamagedCheckpoint
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.training.saved_blocks import SavedBlocks
from cosurfgs_jax.training.saved_meta import check_identity
from cosurfgs_jax.training.schedule import progress_at
from cosurfgs_jax.training.state import (
    MODEL_FIELDS,
    TrainState,
    abstract_state,
    kept_of,
    to_saved,
)
from cosurfgs_jax.training.step import settle_step
from cosurfgs_jax.types import PARAM_NAMES, Surfels, on_host
from cosurfgs_jax.workdir import Workdir

CHUNK = 2**16  # surfels; in float64, and twice while they are turned, 60 MB with 16 coefficients


# Of a cell's living surfels those that are wanted.
Choose = Callable[[Discs], Bool[np.ndarray, " n"]]


def none_of(discs: Discs) -> Bool[np.ndarray, " n"]:
    """Chooses no surfel."""
    return np.zeros(len(discs.alive), bool)


@dataclasses.dataclass(frozen=True)
class MergedModel:
    """The surfels of all cells of a stage, which stay on disk until a cell is asked for.

    Attributes:
        step: steps of all stages up to it.
        identity: the same text for the same surfels.
        num_cells: C.
        read_cell: number of a cell, and what chooses some of its surfels -> these, NumPy arrays,
            world frame, all alive.
        lengths: number of a cell that was read -> how many surfels it has.
    """

    step: int
    identity: str
    num_cells: int
    read_cell: Callable[[int, Choose], Surfels]
    lengths: dict[int, int] = dataclasses.field(default_factory=dict)

    def cell(self, number: int, choose: Choose | None = None) -> Surfels:
        """The surfels of a cell, read now.

        Args:
            number: of the cell.
            choose: which of them; None = all.
        """

        def counted(discs: Discs) -> Bool[np.ndarray, " n"]:
            self.lengths[number] = len(discs.alive)
            return np.ones(len(discs.alive), bool) if choose is None else choose(discs)

        return self.read_cell(number, counted)

    def count(self, number: int) -> int:
        """How many surfels a cell has; reads no more of it than that takes."""
        if number not in self.lengths:
            self.cell(number, none_of)
        return self.lengths[number]

    def cells(self) -> Iterator[Surfels]:
        """The surfels of cell after cell; one cell is in memory at a time."""
        return map(self.cell, range(self.num_cells))

    def chunks(self, part: Part = WHOLE) -> Iterator[Surfels]:
        """The surfels of cell after cell, at most `CHUNK` at a time.

        Args:
            part: of the chunks of the model, whose number and borders do not depend on it.
        """
        if part == WHOLE:
            for cell in self.cells():
                yield from _chunks_of(cell, range(0, len(cell.alive), CHUNK))
            return
        places = [
            (number, start)
            for number in range(self.num_cells)
            for start in range(0, self.count(number), CHUNK)
        ]
        chosen = places[part.run_of(len(places))]
        for number, group in itertools.groupby(chosen, key=lambda place: place[0]):
            yield from _chunks_of(self.cell(number), [start for _, start in group])

    def whole(self) -> Surfels:
        """The surfels of all cells in memory, in the order of `cells`."""
        return joined(list(self.cells()))


def _chunks_of(cell: Surfels, starts: Iterable[int]) -> Iterator[Surfels]:
    for start in starts:
        rows = slice(start, start + CHUNK)
        yield jax.tree.map(lambda values, rows=rows: values[rows], cell)


def joined(parts: list[Surfels]) -> Surfels:
    """Surfels of NumPy arrays one behind another.

    Args:
        parts: at least one. The list is emptied, and its arrays go field by field: nothing is held
            twice for long.
    """
    fields = [part.by_name() | {"alive": part.alive} for part in parts]
    parts.clear()
    whole: dict[str, Any] = {}
    for name in list(fields[0]):
        whole[name] = np.concatenate([part.pop(name) for part in fields])
    return Surfels(**whole)


def open_merged(
    settings: Settings, workdir: Workdir, partitioned: PartitionedScene, stage: str = ""
) -> MergedModel:
    """The merged model of a stage.

    Blocks that are not distilled yet are cropped to their cells, and their colours are harmonized
    in brightness (`training.harmonize`).

    Args:
        settings, workdir, partitioned: of the run.
        stage: its name; "" = the newest that is saved.
    Raises:
        InputError: nothing is saved, the checkpoints are of another dataset, or damaged. Reading a
            cell raises it, too, where the run has gone on and replaced the checkpoint.
    """
    found = _newest(settings, workdir, partitioned, stage)
    settle = _settling(found, settings)
    gains = _gains(found, settings, partitioned)

    def read_cell(number: int, choose: Choose) -> Surfels:
        read = found.reading(number) if settle is None else _taking(settle(number))
        alive = read("alive")
        means = read("means")
        if not found.spec.is_merged:
            alive = alive & (partitioned.partition.cell_of(means) == number)
        rows = np.flatnonzero(alive)
        log_scales = read("log_scales")
        living: dict[str, Any] = {"means": means[rows], "log_scales": log_scales[rows]}
        rows = rows[choose(Discs(**living, alive=on_host(np.ones(len(rows), bool))))]
        fields: dict[str, Any] = {"means": means[rows], "log_scales": log_scales[rows]}
        for name in PARAM_NAMES:
            if name in fields:
                continue
            if not len(rows):
                fields[name] = found.nothing_of(name)
                continue
            values = read(name)
            if name == "sh" and gains is not None:
                gain = jnp.asarray(gains[number], jnp.float32)
                values = np.asarray(harmonize.scale_harmonics(jnp.asarray(values), gain))
            fields[name] = values[rows]
        return Surfels(**fields, alive=on_host(np.ones(len(rows), bool)))

    return MergedModel(
        step=found.steps_before + found.blocks.step,
        identity=f"{found.spec.name} {found.blocks.identity}",
        num_cells=len(partitioned.blocks),
        read_cell=read_cell,
    )


def _taking(state: dict[str, Any]) -> Callable[[str], np.ndarray]:
    """Name of a field of the surfels of a block in memory -> it."""
    fields = state["params"].by_name() | {"alive": state["alive"]}
    return lambda name: np.asarray(fields[name])


def _gains(
    found: "_Saved", settings: Settings, partitioned: PartitionedScene
) -> Float[np.ndarray, "b 3"] | None:
    """The factors on the colours of blocks that are not distilled; None where they stay."""
    num_blocks = len(partitioned.blocks)
    if found.spec.is_merged or not settings.appearance.enabled or num_blocks == 1:
        return None
    models = {number: found.exposures(number) for number in range(num_blocks)}
    return harmonize.gains_of(partitioned, models)


def load_merged(
    settings: Settings, workdir: Workdir, partitioned: PartitionedScene, stage: str = ""
) -> tuple[Surfels, int]:
    """The surfels of all cells of a stage in memory, and the steps taken up to there.

    Args, Raises: see `open_merged`.
    Returns:
        Surfels of NumPy arrays, world frame, all alive; and the steps of all stages up to them.
    """
    model = open_merged(settings, workdir, partitioned, stage)
    return model.whole(), model.step


def load_exposures(
    settings: Settings, workdir: Workdir, partitioned: PartitionedScene
) -> Float[np.ndarray, "v 3 4"]:
    """What each photograph shows of the colours of the merged model: matrix and offset; the mean
    over the blocks that were trained with it, the identity where none was.

    Args:
        settings, workdir, partitioned: of the run.
    Raises:
        InputError: see `load_merged`.
    """
    num_views = partitioned.scene.num_views
    if not settings.appearance.enabled:
        return np.tile(np.eye(3, 4), (num_views, 1, 1))
    saved = _newest(settings, workdir, partitioned)
    models = {number: saved.exposures(number) for number in range(len(partitioned.blocks))}
    if not saved.spec.is_merged and len(models) > 1:
        gains = harmonize.gains_of(partitioned, models)
        models = {
            block: exposure_model.apply_inverse_gain(model, jnp.asarray(gain, jnp.float32))
            for (block, model), gain in zip(models.items(), gains, strict=True)
        }
    sums = np.zeros((num_views, 3, 4))
    counts = np.zeros(num_views)
    for block, model in models.items():
        views = partitioned.blocks[block].views
        sums[views] += np.asarray(exposure_model.transforms(model))[: len(views)]
        counts[views] += 1
    means = sums / np.maximum(counts, 1)[:, None, None]
    return np.where(counts[:, None, None] > 0, means, np.eye(3, 4))


class _Saved(NamedTuple):
    """The newest saved stage."""

    spec: StageSpec
    blocks: SavedBlocks
    steps_before: int
    state_fields: dict[str, Any]  # of a block as it is trained, as shapes

    def reading(self, number: int) -> Callable[[str], np.ndarray]:
        """Name of a field of the surfels of a block -> it, read now."""

        def read(name: str) -> np.ndarray:
            fields: dict[str, Any] = {"alive": self.state_fields["alive"]}
            if name != "alive":
                fields = {"params": {name: getattr(self.state_fields["params"], name)}}
            (values,) = jax.tree.leaves(self.blocks.read(number, fields))
            return values

        return read

    def nothing_of(self, name: str) -> np.ndarray:
        """A field of no surfel."""
        leaf = getattr(self.state_fields["params"], name)
        return np.zeros((0, *leaf.shape[1:]), leaf.dtype)

    def exposures(self, number: int) -> dict:
        """The exposure model of a block."""
        fields = {"appearance": self.state_fields["appearance"]}
        return jax.tree.map(jnp.asarray, self.blocks.read(number, fields)["appearance"])


def _newest(
    settings: Settings, workdir: Workdir, partitioned: PartitionedScene, stage: str = ""
) -> _Saved:
    newest = None
    steps_before = 0
    num_steps = 0
    for spec in stages_of(settings, partitioned.partition):
        if workdir.has_begun(spec.name) and stage in ("", spec.name):
            newest = spec
            steps_before = num_steps
        num_steps += spec.num_steps(settings)
    if newest is None:
        raise InputError(
            f"{workdir}: expected a trained model, got no checkpoint; run `python -m "
            "cosurfgs_jax.train` first"
        )

    def make_abstract(meta: dict) -> dict[str, Any]:
        check_identity(partitioned, meta)
        fields = _state_fields(meta, settings)
        return {name: fields[name] for name in MODEL_FIELDS}

    with Checkpoints(workdir.checkpoints(newest.name), is_read_only=True) as checkpoints:
        blocks = required(
            checkpoints.open_latest(make_abstract), f"checkpoint of stage {newest.name}"
        )
    return _Saved(newest, blocks, steps_before, _state_fields(blocks.meta, settings))


def _state_fields(meta: dict, settings: Settings) -> dict[str, Any]:
    """The shapes of a block's state."""
    return to_saved(abstract_state(meta["num_slots"], meta["max_views"], settings, kept_of(meta)))


def _settling(found: _Saved, settings: Settings) -> Callable[[int], dict[str, Any]] | None:
    """Number of a block -> its surfels, up to date: a run that was stopped saves some that wait for
    the next view which may show them. None where none waits, or where the run has gone on to the
    end meanwhile.
    """
    saved = found.blocks
    num_steps = found.spec.num_steps(settings)
    if not saved.meta.get("is_lazy", False) or not 0 < saved.step < num_steps:
        return None
    # What was remembered of depths is not looked at.
    fields = {name: leaf for name, leaf in found.state_fields.items() if name != "depths"}
    try:
        saved.check(fields)
    except DamagedCheckpoint:
        return None
    progress = jnp.float32(progress_at(saved.step, num_steps, found.spec.first_progress(settings)))

    def settle(number: int) -> dict[str, Any]:
        state = TrainState(**jax.tree.map(jnp.asarray, saved.read(number, fields)))
        return {"params": settle_step(state, progress, settings).params, "alive": state.alive}

    return settle
