"""The trainable part of the surfels and its optimiser: Adam with a learning rate per field."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from cosurfgs_jax.model.slots import per_slot
from cosurfgs_jax.native import ffi
from cosurfgs_jax.raster.reference import MAX_ALPHA
from cosurfgs_jax.settings import OptimSettings
from cosurfgs_jax.types import PARAM_NAMES, SurfelParams

MAX_LOGIT = float(np.log(MAX_ALPHA / (1 - MAX_ALPHA)))  # of opacities
_BETA1 = 0.9
_BETA2 = 0.999
_TARGET = "cosurfgs_adam"
_CATCH_UP_TARGET = "cosurfgs_adam_catch_up"
# Steps without a gradient after which what the last one began has come to rest: the moments' ratio
# falls by beta1 / sqrt(beta2) a step, to 1e-6.
_MAX_DRIFT = 128
_MAX_LAZY_EPSILON = 1e-12  # at 1e-8 a gradient of 1e-8 would be caught up by a tenth of its steps


@jax.jit  # one program in place of one for each field
def init_optimizer(params: SurfelParams) -> optax.ScaleByAdamState:
    """Zero moments and a zero count."""
    return optax.ScaleByAdamState(
        count=jnp.zeros((), jnp.int32),
        mu=jax.tree.map(jnp.zeros_like, params),
        nu=jax.tree.map(jnp.zeros_like, params),
    )


def learning_rates(
    settings: OptimSettings, progress: Float[Array, ""] | float, num_sh: int
) -> dict[str, Float[Array, ""] | Float[Array, " k"]]:
    """The learning rate of each field.

    Args:
        settings: the rates; lengths are world lengths, in which the scene's extent is 1.
        progress: fraction of the steps that are done, in [0, 1].
        num_sh: K, coefficients of the spherical harmonics.
    Returns:
        One f32[] per field, but f32[K] for "sh", whose first coefficient learns at a rate of its
        own. That of the means falls from `means_start` to `means_end`, linearly in its logarithm.
    """
    progress = jnp.clip(jnp.asarray(progress, jnp.float32), 0, 1)
    constant = [name for name in PARAM_NAMES if name not in ("means", "sh")]
    rates = {name: jnp.float32(getattr(settings, name)) for name in constant}
    return rates | {
        "means": settings.means_start * (settings.means_end / settings.means_start) ** progress,
        "sh": jnp.array([settings.sh_dc] + [settings.sh_rest] * (num_sh - 1), jnp.float32),
    }


def _below_the_cut(params: SurfelParams, rows: Bool[Array, " n"]) -> SurfelParams:
    """The parameters with opacities that go on learning, in these rows.

    Above `MAX_LOGIT` the rasterizer cuts alpha in the middle of a surfel, where the gradient is
    then zero; far above it the sigmoid is 1 in float32, and nothing brings the surfel back: small
    black ones filled the air in front of what they had been.
    """
    is_above = rows & (params.logit_opacities > MAX_LOGIT)
    return params.replace(logit_opacities=jnp.where(is_above, MAX_LOGIT, params.logit_opacities))


def _where_alive(alive, new, old):
    return jax.tree.map(lambda a, b: jnp.where(per_slot(alive, a), a, b), new, old)


def _definition(params, gradient, state, alive, learns, rates, epsilon):
    mask = alive.astype(jnp.float32)
    learns = {
        name: per_slot(mask, value) * learns[name][None] for name, value in params.by_name().items()
    }
    masked = {name: learns[name] * value for name, value in gradient.by_name().items()}
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
        tree: Any = SurfelParams(**masked)
        steps, updated = optax.scale_by_adam(_BETA1, _BETA2, epsilon).update(tree, state)
    after: Any = updated
    after = after._replace(
        mu=_where_alive(alive, after.mu, state.mu), nu=_where_alive(alive, after.nu, state.nu)
    )
    new = {
        name: value - rates[name][None] * learns[name] * getattr(steps, name)
        for name, value in params.by_name().items()
    }
    return SurfelParams(**new), after


def _in_place(target: str, trees, others, **attributes) -> list[Any]:
    """Calls a native target field by field.

    Args:
        target: takes a field's values and moments, and changes them.
        trees: parameters, mu and nu.
        others: name of a field -> its other operands.
        **attributes: of the target, besides the optimiser's own.
    Returns:
        The new parameters, mu and nu.
    """
    new = {}
    for name in PARAM_NAMES:
        # In place: XLA's own program reads moments three times, and copies them and the parameters
        # once. With an axis in front, as they lie in the program of a mesh's device: behind a
        # reshape XLA would copy what is to be changed.
        fields = (getattr(tree, name)[None] for tree in trees)
        operands = ffi.match_varying(*fields, *others(name))
        results = ffi.call(
            target,
            [(operands[0].shape, np.float32)] * 3,
            *operands,
            in_place={0: 0, 1: 1, 2: 2},
            beta1=_BETA1,
            beta2=_BETA2,
            **attributes,
        )
        new[name] = [result[0] for result in results]
    return [
        SurfelParams(**{name: leaves[part] for name, leaves in new.items()}) for part in range(3)
    ]


def _native(params, gradient, state, alive, learns, rates, epsilon):
    count = optax.safe_increment(state.count)

    def others(name):
        own = getattr(gradient, name)[None]
        return own, alive, rates[name].reshape(-1), learns[name].reshape(-1), count

    params, mu, nu = _in_place(
        _TARGET,
        (params, state.mu, state.nu),
        others,
        gain1=1 - _BETA1,
        gain2=1 - _BETA2,
        epsilon=float(epsilon),
    )
    return params, optax.ScaleByAdamState(count, mu, nu)


def _rates_of(params: SurfelParams, settings: OptimSettings, progress, length) -> dict:
    """The learning rate of each number of a surfel, by field."""
    rates = learning_rates(settings, progress, params.sh.shape[1])
    rates["sh"] = rates["sh"][:, None]
    rates["means"] = rates["means"] * length
    return {
        name: jnp.broadcast_to(rate, getattr(params, name).shape[1:])
        for name, rate in rates.items()
    }


def update(
    params: SurfelParams,
    gradient: SurfelParams,
    state: optax.ScaleByAdamState,
    alive: Bool[Array, " n"],
    settings: OptimSettings,
    progress: Float[Array, ""] | float,
    sh_degree: Int[Array, ""] | int = 3,
    length: Float[Array, ""] | float = 1.0,
    backend: str | None = None,
) -> tuple[SurfelParams, optax.ScaleByAdamState]:
    """One step of Adam. Rows that are not alive keep their values and moments.

    Args:
        params, gradient: one array per field; donate `params` and `state` when jitting.
        state: from `init_optimizer`; its moments have the shapes of the parameters.
        alive: bool[N].
        settings: learning rates and epsilon.
        progress: see `learning_rates`.
        sh_degree: bands of the spherical harmonics above it neither learn nor gather moments. A
            number on the device, so that the next degree needs no new program.
        length: extent of the block in world lengths; the rate of the means is per extent.
        backend: "cpu" or "cuda" (native kernels, float32), "reference" (optax), or None: native
            where it can run.
    Returns:
        The new parameters and state. Logits of opacities are at most `MAX_LOGIT`.
    Raises:
        InputError: an unknown backend, or one that is not there.
    Source: Kingma and Ba 2015, as in optax. Masks multiply: `jnp.where` on parameters and moments
        takes 4 times as long.
    """
    is_native = ffi.choose_native("Adam", _TARGET, backend, *jax.tree.leaves((params, gradient)))
    rates = _rates_of(params, settings, progress, length)
    num_sh = params.sh.shape[1]
    band = np.sqrt(np.arange(num_sh)).astype(np.int32)
    learns = {
        name: jnp.ones(value.shape[1:], jnp.float32) for name, value in params.by_name().items()
    }
    learns["sh"] = learns["sh"] * (band <= sh_degree).astype(jnp.float32)[:, None]
    step = _native if is_native else _definition
    params, state = step(params, gradient, state, alive, learns, rates, settings.adam_eps)
    return _below_the_cut(params, alive), state


class Course(NamedTuple):
    """Where on its course the optimiser is; see `update`."""

    settings: OptimSettings
    progress: Float[Array, ""] | float
    length: Float[Array, ""] | float = 1.0


def can_be_lazy(settings: OptimSettings) -> bool:
    """Whether rows without a gradient can be left alone and caught up later, at little cost and to
    the same place: where the native kernel is, and epsilon next to nothing.
    """
    return settings.adam_eps <= _MAX_LAZY_EPSILON and ffi.has_native(_CATCH_UP_TARGET)


def _drift(count: Int[Array, ""], missed: Int[Array, " k"]) -> Float[Array, " k"]:
    """How far a row goes on in its missed steps, in learning rates times mu / sqrt(nu) of its last
    step with a gradient.

    Step s = count - missed + j, the j-th missed one, moves it by beta1^j mu / (1 - beta1^s) over
    sqrt(beta2^j nu / (1 - beta2^s)): Adam with a gradient of zero.
    """
    j = jnp.arange(1, _MAX_DRIFT + 1, dtype=jnp.int32)[None]
    step = jnp.maximum(count - missed[:, None] + j, 1).astype(jnp.float32)
    log_beta1 = jnp.float32(np.log(_BETA1))
    log_beta2 = jnp.float32(np.log(_BETA2))
    ratio = jnp.exp(j.astype(jnp.float32) * (log_beta1 - 0.5 * log_beta2))
    bias = jnp.sqrt(-jnp.expm1(step * log_beta2)) / -jnp.expm1(step * log_beta1)
    return jnp.where(j <= missed[:, None], ratio * bias, 0.0).sum(axis=1)


def catch_up(
    params: SurfelParams,
    state: optax.ScaleByAdamState,
    rows: Bool[Array, " n"],
    missed: Int[Array, " n"],
    course: Course,
    backend: str | None = None,
) -> tuple[SurfelParams, optax.ScaleByAdamState]:
    """Brings rows to where Adam would have taken them in steps in which they had no gradient.

    Equal to `update` with gradients of zero in those steps, but for rounding, for the learning rate
    of the means, which is taken as it is now (it falls by 0.02 % a step in 7,000), and for epsilon,
    which is added before the correction of the bias instead of after it: it must be small beside
    the gradients (`can_be_lazy`).

    Args:
        params, state: donate both when jitting. `state.count` includes the steps missed.
        rows: bool[N], which ones; the others are not touched.
        missed: i32[N], steps since the row's last `update`, at most `state.count`.
        course: where on its course the optimiser is.
        backend: "cpu" (native kernel), "reference" (plain JAX), or None: native where it can run.
    Returns:
        The parameters and the state, of the same count.
    Raises:
        InputError: an unknown backend, or one that is not there.
    """
    leaves = jax.tree.leaves(params)
    is_native = ffi.choose_native("catch_up", _CATCH_UP_TARGET, backend, *leaves)
    rates = _rates_of(params, *course)
    step = _native_catch_up if is_native else _catch_up_definition
    params, mu, nu = step(
        params, state, rows=rows, missed=missed, rates=rates, epsilon=course.settings.adam_eps
    )
    return _below_the_cut(params, rows), state._replace(mu=mu, nu=nu)


def _catch_up_definition(params, state, rows, missed, rates, epsilon):
    steps = _drift(state.count, missed)
    gap = missed.astype(jnp.float32)
    values = {}
    for name, value in params.by_name().items():
        direction = getattr(state.mu, name) / (jnp.sqrt(getattr(state.nu, name)) + epsilon)
        values[name] = value - rates[name][None] * per_slot(steps, value) * direction
    decays = (jnp.exp(gap * float(np.log(beta))) for beta in (_BETA1, _BETA2))
    mu, nu = (
        jax.tree.map(lambda leaf, decay=decay: leaf * per_slot(decay, leaf), moments)
        for moments, decay in zip((state.mu, state.nu), decays, strict=True)
    )
    old = params, state.mu, state.nu
    return _where_alive(rows & (missed > 0), (SurfelParams(**values), mu, nu), old)


def _native_catch_up(params, state, rows, missed, rates, epsilon):
    drift = _drift(state.count, jnp.arange(_MAX_DRIFT + 1, dtype=jnp.int32))

    def others(name):
        return rows, missed, rates[name].reshape(-1), drift, state.count

    trees = (params, state.mu, state.nu)
    return _in_place(_CATCH_UP_TARGET, trees, others, epsilon=float(epsilon))
