"""The exposure of each photograph: a learned colour transform between the canonical colours and the
picture.

The transform is a 3x3 matrix and an offset per image: the diagonal is exposure and white balance,
the other entries are saturation and the camera's colour profile, the offset is haze and black
level. It is applied to every pixel alike, so it cannot paint structure into the picture, and the
exported model keeps the canonical colours."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cosurfgs_jax.settings import AppearanceSettings

_BETA1 = 0.9
_BETA2 = 0.999
_EPSILON = 1e-8

ExposureParams = dict


class ExposureOptimizerState(NamedTuple):
    """Adam's moments, like the parameters, and how many steps each image's embedding took."""

    count: Int[Array, ""]
    view_counts: Int[Array, " v"]
    mu: ExposureParams
    nu: ExposureParams


class _Exposure(nn.Module):
    """From an embedding to the change of the identity transform."""

    hidden_dim: int

    @nn.compact
    def __call__(self, embeddings: Float[Array, "v e"]) -> Float[Array, "v 3 4"]:
        hidden = nn.relu(nn.Dense(self.hidden_dim, name="hidden")(embeddings))
        # Zero weights: the first output is the identity, exactly.
        return nn.Dense(12, kernel_init=nn.initializers.zeros, name="output")(hidden).reshape(
            -1, 3, 4
        )


def init(key, num_views: int, settings: AppearanceSettings) -> ExposureParams:
    """Parameters whose transforms are all exactly the identity.

    Args:
        key: of `jax.random`. num_views: V, number of photographs. settings: sizes.
    Returns:
        {"embeddings": f32[V,E], "network": weights of a two-layer perceptron}.
    """
    return _first_params(key, num_views, settings.embedding_dim, settings.hidden_dim)


# One program: operation by operation it is thirty, and compiling each is most of a run's start.
@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _first_params(key, num_views: int, embedding_dim: int, hidden_dim: int) -> ExposureParams:
    embedding_key, network_key = jax.random.split(key)
    embeddings = jax.random.normal(embedding_key, (num_views, embedding_dim))
    network = _Exposure(hidden_dim).init(network_key, embeddings[:1])["params"]
    return {"embeddings": embeddings, "network": network}


def _changes(params: ExposureParams, embeddings: Float[Array, "v e"]) -> Float[Array, "v 3 4"]:
    hidden_dim = params["network"]["hidden"]["bias"].shape[0]
    changes: Any = _Exposure(hidden_dim).apply({"params": params["network"]}, embeddings)
    return changes


def transforms(params: ExposureParams) -> Float[Array, "v 3 4"]:
    """The colour transform [matrix, offset] of every photograph."""
    return _changes(params, params["embeddings"]) + jnp.eye(3, 4)[None]


def gray_responses(params: ExposureParams) -> Float[Array, "v 3"]:
    """What each photograph shows of a canonical mid-grey (0.5)."""
    return transforms(params) @ jnp.asarray([0.5, 0.5, 0.5, 1.0])


def apply_inverse_gain(params: ExposureParams, gain: Float[Array, "3"]) -> ExposureParams:
    """The model whose transforms show canonical colours times `gain` as the old one shows the
    colours themselves.

    Args:
        params: from `init`.
        gain: per channel, positive.
    """
    output = params["network"]["output"]
    factors = jnp.tile(
        jnp.concatenate([1 / gain, jnp.ones(1)]), 3
    )  # of the 12 outputs, rows of the 3x4 transform
    shift = jnp.concatenate([jnp.diag(1 / gain - 1), jnp.zeros((3, 1))], axis=1).reshape(
        -1
    )  # the identity is not an output
    output = output | {
        "kernel": output["kernel"] * factors[None],
        "bias": output["bias"] * factors + shift,
    }
    return params | {"network": params["network"] | {"output": output}}


def transform_of(
    params: ExposureParams, image_id: Int[Array, "*views"] | int
) -> Float[Array, "*views 3 4"]:
    """The colour transform [matrix, offset] of one photograph, or of some
    (`losses.photometric.apply_exposure` applies it).

    Args:
        params: from `init`. Take gradient.
        image_id: i32[], which photograph, or i32[B].
    Source: VastGaussian (Lin et al. 2024) and PGSR learn an exposure per image; the transform's
        form is ours.
    """
    image_id = jnp.asarray(image_id)
    changes = _changes(params, params["embeddings"][image_id.reshape(-1)])
    return (changes + jnp.eye(3, 4)[None]).reshape(*image_id.shape, 3, 4)


def identity_penalty(params: ExposureParams, num_views: Int[Array, ""] | int) -> Float[Array, ""]:
    """The pull of the mean transform over all photographs to the identity: what anchors the
    canonical colours.

    A single transform is free to differ, but model and transforms cannot drift together. The
    gradient goes to the network only, which can shift all transforms at once; so a step still
    touches only the embedding of its photograph.

    Args:
        params: from `init`.
        num_views: the first so many embeddings belong to photographs, those behind them fill up the
            array.
    Returns:
        Squared Frobenius norm of the mean change.
    """
    changes = _changes(params, jax.lax.stop_gradient(params["embeddings"]))
    weight = 1.0 / jnp.maximum(jnp.asarray(num_views), 1).astype(jnp.float32)
    weights = jnp.where(jnp.arange(changes.shape[0]) < num_views, weight, 0.0)
    mean = (weights[:, None, None] * changes).sum(axis=0)
    return jnp.sum(jnp.square(mean))


@jax.jit
def init_optimizer(params: ExposureParams) -> ExposureOptimizerState:
    """Zero moments and counts."""
    # Two trees of zeros: a buffer that stands in the state twice could not be donated.
    mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    return ExposureOptimizerState(
        jnp.zeros((), jnp.int32), jnp.zeros(params["embeddings"].shape[0], jnp.int32), mu, nu
    )


def update(
    params: ExposureParams,
    gradient: ExposureParams,
    state: ExposureOptimizerState,
    image_ids: Int[Array, "*views"] | int,
    settings: AppearanceSettings,
) -> tuple[ExposureParams, ExposureOptimizerState]:
    """One step of Adam that moves the network and only the embeddings of these photographs.

    Plain Adam would go on moving every embedding by its old momentum, and let its second moment
    decay, over the hundreds of steps until its photograph is drawn again. Here the moments and the
    step count of an embedding advance only when it is used.

    Args:
        params, gradient: like `init`'s.
        state: from `init_optimizer`.
        image_ids: i32[] or i32[B], the photographs of this step.
        settings: the learning rate.
    Returns:
        The new parameters and state.
    Source: Adam (Kingma and Ba 2015), row-wise as in "lazy" Adam for embeddings.
    """
    used = jnp.zeros(state.view_counts.shape).at[image_ids].set(1.0)
    count = state.count + 1
    view_counts = state.view_counts + used.astype(jnp.int32)

    def step(value, grad, mu, nu, steps, keep):
        steps = jnp.maximum(steps, 1).astype(jnp.float32)
        mu = mu + (1 - _BETA1) * keep * (grad - mu)
        nu = nu + (1 - _BETA2) * keep * (grad * grad - nu)
        # Powers and multiply-adds have other last bits where they are fused into what follows,
        # which the compiler decides otherwise for one device than for several.
        mu, nu, bias1, bias2 = jax.lax.optimization_barrier(
            (mu, nu, 1 - _BETA1**steps, 1 - _BETA2**steps)
        )
        unbiased = jnp.sqrt(nu / bias2) + _EPSILON
        return value - settings.learning_rate * keep * (mu / bias1) / unbiased, mu, nu

    # Each leaf becomes a triple; the embeddings differ from the rest in their count and mask.
    triples = {
        "embeddings": step(
            params["embeddings"],
            gradient["embeddings"],
            state.mu["embeddings"],
            state.nu["embeddings"],
            view_counts[:, None],
            used[:, None],
        ),
        "network": jax.tree.map(
            lambda *leaf: step(*leaf, count, 1.0),
            params["network"],
            gradient["network"],
            state.mu["network"],
            state.nu["network"],
        ),
    }
    params, mu, nu = (
        jax.tree.map(
            lambda triple, part=part: triple[part], triples, is_leaf=lambda x: type(x) is tuple
        )
        for part in range(3)
    )
    return params, ExposureOptimizerState(count, view_counts, mu, nu)
