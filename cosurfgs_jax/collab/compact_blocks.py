"""Blocks handed over in the compact form: what a job of its own writes instead of states, and what
the run that goes on reads of it (`config.lmc.compact`).
"""

import json
from collections.abc import Sequence

import jax
import numpy as np

from cosurfgs_jax.collab.stage_spec import StageSpec
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import NO_JSON
from cosurfgs_jax.model import compact
from cosurfgs_jax.training.checkpoint_files import keep_meta_alone
from cosurfgs_jax.training.loop import StageState, meta_of_stage
from cosurfgs_jax.training.run import Run
from cosurfgs_jax.training.saved_meta import check_meta
from cosurfgs_jax.training.state import BlockModel, abstract_state
from cosurfgs_jax.types import SurfelParams, blank_params, on_host

_OWN = ("meta", "num_views", "length")


def write_compact(run: Run, spec: StageSpec, stage: StageState) -> None:
    """Writes the model of a block at the end of a stage.

    Args:
        run: of a block by itself.
        spec: of the stage.
        stage: at its last step.
    """
    model = run.layout.get(stage.states[0], 0)
    living = {name: value[model.alive] for name, value in model.params.by_name().items()}
    meta = meta_of_stage(run, stage) | {"step": stage.step}
    others = {
        "meta": np.frombuffer(json.dumps(meta, allow_nan=False).encode(), np.uint8),
        "num_views": model.num_views,
        "length": model.length,
    }
    leaves = jax.tree.leaves(model.appearance)
    others |= {f"exposure_{number}": leaf for number, leaf in enumerate(leaves)}
    compact.write(run.workdir.compact(spec.name), SurfelParams(**living), others)


def leave_compact(run: Run, specs: Sequence[StageSpec]) -> None:
    """Deletes the states of a finished block, when its models can be read in the compact form; none
    with `train.keep_moments`.

    Args:
        run: of a block by itself.
        specs: its stages.
    """
    for spec in specs:
        read_compact(run, spec)
        if not run.settings.train.keep_moments:
            keep_meta_alone(run.workdir.checkpoints(spec.name), spec.num_steps(run.settings))


def read_compact(run: Run, spec: StageSpec) -> StageState:
    """The model of a block at the end of a stage, on this process's first device.

    Args:
        run: of a block by itself.
        spec: of the stage.
    Raises:
        InputError: the file is missing or damaged, or of another dataset, block or stage.
    """
    path = run.workdir.compact(spec.name)
    advice = (
        f"bring it back, or delete {run.workdir}; --blocks={run.layout.blocks[0]} trains it again"
    )
    expected = abstract_state(1, run.partitioned.max_views, run.settings).appearance
    leaves, form = jax.tree.flatten(expected)
    exposures = tuple(f"exposure_{number}" for number in range(len(leaves)))
    params, others = compact.read(path, (*_OWN, *exposures), advice)
    try:
        meta = json.loads(others["meta"].astype(np.uint8).tobytes())
        check_meta(run, meta)
        num_slots = int(meta["num_slots"])
        step = meta["step"]
        num_without_room = int(meta["num_without_room"])
        seconds = float(meta["seconds"])
        if step != spec.num_steps(run.settings) or not len(params.means) <= num_slots <= 2**31:
            raise ValueError(f"step {step}, {len(params.means)} surfels in {num_slots} slots")
        found = [others[name] for name in exposures]
        if [(leaf.shape, leaf.dtype) for leaf in found] != [
            (leaf.shape, leaf.dtype) for leaf in leaves
        ]:
            raise ValueError("exposures of other shapes")
        if params.sh.shape[1] != (run.settings.surfels.sh_degree + 1) ** 2:
            raise ValueError(f"{params.sh.shape[1]} coefficients of colour")
        numbers = {
            "num_views": on_host(others["num_views"].reshape(()).astype(np.int32)),
            "length": on_host(others["length"].reshape(()).astype(np.float32)),
        }
    except InputError:
        raise
    except (KeyError, TypeError, ArithmeticError, *NO_JSON) as error:
        raise InputError(
            f"{path}: expected the model of a block at the end of stage {spec.name}, got another "
            f"content ({type(error).__name__}: {error}); {advice}"
        ) from error
    model = BlockModel(
        params=_in_slots(params, num_slots),
        alive=on_host(np.arange(num_slots) < len(params.means)),
        appearance=jax.tree.unflatten(form, found),
        **numbers,
    )
    states = [run.layout.put(lambda _: model)]
    return StageState(
        name=spec.name, states=states, step=step, num_without_room=num_without_room, seconds=seconds
    )


def _in_slots(params: SurfelParams, num_slots: int) -> SurfelParams:
    """The surfels in the first of so many slots."""
    slots = blank_params(num_slots, params.sh.shape[1])
    for name, value in params.by_name().items():
        getattr(slots, name)[: len(value)] = value
    return slots
