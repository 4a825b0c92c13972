"""The trainable part of the surfels and its optimiser: Adam with a learning rate per field."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from cosurfgs_jax.native import ffi
from cosurfgs_jax.settings import OptimSettings
from cosurfgs_jax.types import PARAM_NAMES, SurfelParams

_BETA1 = 0.9
_BETA2 = 0.999
_TARGET = "cosurfgs_adam"


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
    rates = {
        name: jnp.float32(getattr(settings, name))
        for name in ("quats", "log_scales", "logit_opacities")
    }
    return rates | {
        "means": settings.means_start * (settings.means_end / settings.means_start) ** progress,
        "sh": jnp.array([settings.sh_dc] + [settings.sh_rest] * (num_sh - 1), jnp.float32),
    }


def _definition(params, gradient, state, alive, learns, rates, epsilon):
    mask = alive.astype(jnp.float32)
    learns = {
        name: mask.reshape((-1,) + (1,) * (value.ndim - 1)) * learns[name][None]
        for name, value in params.by_name().items()
    }
    masked = {name: learns[name] * value for name, value in gradient.by_name().items()}
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
        tree: Any = SurfelParams(**masked)
        steps, state = optax.scale_by_adam(_BETA1, _BETA2, epsilon).update(tree, state)
    new = {
        name: value - rates[name][None] * learns[name] * getattr(steps, name)
        for name, value in params.by_name().items()
    }
    return SurfelParams(**new), state


def _native(params, gradient, state, alive, learns, rates, epsilon):
    count = optax.safe_increment(state.count)
    new = {}
    for name in PARAM_NAMES:
        # In place: XLA's own program reads moments three times, and copies them and the parameters
        # once. With an axis in front, as they lie in the program of a mesh's device: behind a
        # reshape XLA would copy what is to be changed.
        fields = (getattr(tree, name)[None] for tree in (params, state.mu, state.nu, gradient))
        operands = ffi.match_varying(
            *fields, alive, rates[name].reshape(-1), learns[name].reshape(-1), count
        )
        results = ffi.call(
            _TARGET,
            [(operands[0].shape, np.float32)] * 3,
            *operands,
            in_place={0: 0, 1: 1, 2: 2},
            beta1=_BETA1,
            beta2=_BETA2,
            gain1=1 - _BETA1,
            gain2=1 - _BETA2,
            epsilon=float(epsilon),
        )
        new[name] = [result[0] for result in results]
    trees: list[Any] = [
        SurfelParams(**{name: leaves[part] for name, leaves in new.items()}) for part in range(3)
    ]
    params, mu, nu = trees
    return params, optax.ScaleByAdamState(count, mu, nu)


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
    """One step of Adam. Dead slots keep their values, and their gradient counts as zero.

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
        The new parameters and state.
    Raises:
        InputError: an unknown backend, or one that is not there.
    Source: Kingma and Ba 2015, as in optax. Masks multiply: `jnp.where` on parameters and moments
        takes 4 times as long.
    """
    is_native = ffi.choose_native("Adam", _TARGET, backend, *jax.tree.leaves((params, gradient)))
    num_sh = params.sh.shape[1]
    band = np.sqrt(np.arange(num_sh)).astype(np.int32)
    learns = {
        name: jnp.ones(value.shape[1:], jnp.float32) for name, value in params.by_name().items()
    }
    learns["sh"] = learns["sh"] * (band <= sh_degree).astype(jnp.float32)[:, None]
    rates = learning_rates(settings, progress, num_sh)
    rates["sh"] = rates["sh"][:, None]
    rates["means"] = rates["means"] * length
    rates = {
        name: jnp.broadcast_to(rate, getattr(params, name).shape[1:])
        for name, rate in rates.items()
    }
    step = _native if is_native else _definition
    return step(params, gradient, state, alive, learns, rates, settings.adam_eps)
