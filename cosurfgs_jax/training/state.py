"""What training changes from step to step: one pytree, whose shapes follow from three numbers."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from cosurfgs_jax.model import exposure_model, masks, optim
from cosurfgs_jax.model.density_strategies import strategy_of
from cosurfgs_jax.model.masks import MaskState
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.training import depth_memory
from cosurfgs_jax.training.depth_memory import DepthMemory
from cosurfgs_jax.types import SurfelParams, Surfels, blank_params, param_shapes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All of it; a checkpoint holds nothing else that has a shape. The fields of `BlockModel` stay
    when a stage is finished.

    | field                  | what                                                            |
    |------------------------|-----------------------------------------------------------------|
    | `params`               | trainable fields of N slots (`SurfelParams`)                    |
    | `alive`                | bool[N], slots in use                                           |
    | `optimizer`            | Adam moments of `params`                                        |
    | `stats`                | what the density strategy gathers since it last ran             |
    | `appearance`           | exposure model of V photographs; None where it is off           |
    | `appearance_optimizer` | its optimiser's state, or None                                  |
    | `num_views`            | i32[], how many of the V belong to this block; the rest fill up |
    | `length`               | f32[], extent of the block in world lengths                     |
    | `depths`               | `DepthMemory` of the views; None where neighbours are drawn     |
    | `updated`              | i32[N], count of the optimiser at each surfel's last update;    |
    |                        | None where every step updates all                               |
    | `masks`                | masks that are being learned; None before and after             |
    """

    params: SurfelParams
    alive: Bool[Array, " n"]
    optimizer: optax.ScaleByAdamState
    stats: Any
    appearance: exposure_model.ExposureParams | None
    appearance_optimizer: exposure_model.ExposureOptimizerState | None
    num_views: Int[Array, ""]
    length: Float[Array, ""]
    depths: DepthMemory | None = None
    updated: Int[Array, " n"] | None = None
    masks: MaskState | None = None

    def surfels(self) -> Surfels:
        """The model."""
        return Surfels.of(self.params, self.alive)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockModel:
    """What stays of a state when its stage is finished: all that teachers, evaluation and exports
    read. The fields are those of `TrainState`.
    """

    params: SurfelParams
    alive: Bool[Array, " n"]
    appearance: exposure_model.ExposureParams | None
    num_views: Int[Array, ""]
    length: Float[Array, ""]

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "BlockModel":
        """From what a checkpoint holds (`to_saved`)."""
        return cls(**{name: fields[name] for name in MODEL_FIELDS})

    def surfels(self) -> Surfels:
        """The model."""
        return Surfels.of(self.params, self.alive)


MODEL_FIELDS = tuple(field.name for field in dataclasses.fields(BlockModel))


class Kept(NamedTuple):
    """What a state keeps besides the model and its optimiser."""

    memory_size: tuple[int, int] | None  # of the depth remembered of each view; None = none is
    is_lazy: bool  # surfels outside of a view are caught up later
    has_masks: bool = False  # masks are being learned


NOTHING_KEPT = Kept(memory_size=None, is_lazy=False)


_OPTIONAL = (
    "depths",
    "updated",
    "masks",
)  # fields that checkpoints have only where there is something


def to_saved(state: TrainState | BlockModel) -> dict[str, Any]:
    """What a checkpoint holds of a state, or of its shapes."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {
        name: value for name, value in fields.items() if name not in _OPTIONAL or value is not None
    }


def from_saved(fields: dict[str, Any]) -> TrainState | BlockModel:
    """What a checkpoint gave back: a state, or the model alone that a finished stage has."""
    if fields.keys() == set(MODEL_FIELDS):
        return BlockModel(**fields)
    return TrainState(**fields)


def model_of(state: TrainState | BlockModel) -> BlockModel:
    """The model of a state, of the same arrays."""
    return BlockModel(**{name: getattr(state, name) for name in MODEL_FIELDS})


def meta_of(state: TrainState | BlockModel) -> dict[str, Any]:
    """Which of the optional fields a state has, as its checkpoint says it."""
    if isinstance(state, BlockModel):
        return {"memory_size": None, "is_lazy": False, "has_masks": False}
    size = None
    if state.depths is not None:
        size = [int(length) for length in state.depths.depths.shape[-2:]]
    return {
        "memory_size": size,
        "is_lazy": state.updated is not None,
        "has_masks": state.masks is not None,
    }


def kept_of(meta: dict) -> Kept:
    """The optional fields that a checkpoint has; older ones have none."""
    size = meta.get("memory_size")
    if size is not None:
        size = (int(size[0]), int(size[1]))
    return Kept(size, bool(meta.get("is_lazy", False)), bool(meta.get("has_masks", False)))


def is_lazy(settings: Settings) -> bool:
    """Whether steps leave surfels outside of their view for later."""
    return settings.optim.lazy and optim.can_be_lazy(settings.optim)


def init_state(
    surfels: Surfels,
    num_views: int,
    settings: Settings,
    max_views: int | None = None,
    length: float = 1.0,
    kept: Kept = NOTHING_KEPT,
) -> TrainState:
    """The state before the first step.

    Args:
        surfels: initial model with all its slots.
        num_views: training photographs of the block.
        settings: `seed`, `appearance` and `density` are used.
        max_views: room for so many exposures, so that all blocks have one shape; None = num_views.
        length: extent of the block in world lengths.
        kept: which of the optional fields it has.
    """
    if max_views is None:
        max_views = num_views
    exposure = None
    if settings.appearance.enabled:
        exposure = exposure_model.init(
            jax.random.fold_in(jax.random.key(settings.seed), 1), max_views, settings.appearance
        )
    model = BlockModel(
        params=surfels.params,
        alive=surfels.alive,
        appearance=exposure,
        num_views=jnp.int32(num_views),
        length=jnp.float32(length),
    )
    return begin_training(model, max_views, settings, kept)


def begin_training(
    model: BlockModel, max_views: int, settings: Settings, kept: Kept = NOTHING_KEPT
) -> TrainState:
    """The state before the first step of a training that goes on from a model: no moments and
    statistics yet.

    Args:
        model: of a block, with all its slots.
        max_views, settings, kept: see `init_state`.
    """
    num_slots = model.alive.shape[0]
    exposure_optimizer = depths = updated = own_masks = None
    if model.appearance is not None:
        exposure_optimizer = exposure_model.init_optimizer(model.appearance)
    if kept.memory_size is not None:
        depths = depth_memory.init(max_views, kept.memory_size)
    if kept.is_lazy:
        updated = jnp.zeros(model.alive.shape, jnp.int32)
    if kept.has_masks:
        own_masks = masks.init(num_slots)
    return TrainState(
        params=model.params,
        alive=model.alive,
        optimizer=optim.init_optimizer(model.params),
        stats=strategy_of(settings.density).init_stats(num_slots),
        appearance=model.appearance,
        appearance_optimizer=exposure_optimizer,
        num_views=model.num_views,
        length=model.length,
        depths=depths,
        updated=updated,
        masks=own_masks,
    )


def abstract_state(
    num_slots: int,
    max_views: int,
    settings: Settings,
    kept: Kept = NOTHING_KEPT,
):
    """The shapes of a state, for restoring: a TrainState of `jax.ShapeDtypeStruct`.

    Args:
        num_slots: N. max_views: V. settings: `surfels` and `appearance` are used.
        kept: see `init_state`.
    """
    num_sh = (settings.surfels.sh_degree + 1) ** 2

    def make():
        shapes = param_shapes(num_slots, num_sh)
        params = SurfelParams(**{name: jnp.zeros(shape) for name, shape in shapes.items()})
        surfels = Surfels.of(params, jnp.zeros(num_slots, bool))
        return init_state(surfels, max_views, settings, kept=kept)

    return jax.eval_shape(make)


def empty_state(
    num_slots: int,
    max_views: int,
    settings: Settings,
    kept: Kept = NOTHING_KEPT,
) -> TrainState:
    """A block without surfels, for a device that has nothing to do: `blank_params`, and NumPy zeros
    of `abstract_state`'s shapes.
    """
    state = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        abstract_state(num_slots, max_views, settings, kept),
    )
    return dataclasses.replace(state, params=blank_params(num_slots, state.params.sh.shape[1]))


def map_slots(
    state: TrainState | BlockModel, function: Callable[[Array], Array]
) -> TrainState | BlockModel:
    """The state with a function applied to every array of slots, without masks. The surfels must be
    up to date (`step.settle_step`).
    """
    if isinstance(state, BlockModel):
        params, alive = jax.tree.map(function, (state.params, state.alive))
        return dataclasses.replace(state, params=params, alive=alive)
    optimizer = state.optimizer
    params, mu, nu, alive, stats = jax.tree.map(
        function, (state.params, optimizer.mu, optimizer.nu, state.alive, state.stats)
    )
    return with_surfels(state, params, optimizer._replace(mu=mu, nu=nu), alive, stats)


def with_surfels(state: TrainState, params, optimizer, alive, stats) -> TrainState:
    """The state with other slots, without masks. Those of before must be up to date
    (`step.settle_step`).
    """
    updated = state.updated
    if updated is not None:
        updated = jnp.broadcast_to(optimizer.count, alive.shape)
    return dataclasses.replace(
        state,
        params=params,
        optimizer=optimizer,
        alive=alive,
        stats=stats,
        updated=updated,
        masks=None,
    )
