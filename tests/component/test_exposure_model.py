"""The exposure model: starts as the identity, learns, stays anchored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, PartitionSpec

from cosurfgs_jax.losses.photometric import apply_exposure
from cosurfgs_jax.model import exposure_model
from cosurfgs_jax.native.ffi import match_varying
from cosurfgs_jax.settings import AppearanceSettings

SETTINGS = AppearanceSettings(learning_rate=1e-2)


def _render(seed=0, size=(6, 5)):
    return jnp.asarray(np.random.default_rng(seed).random((*size, 3)), jnp.float32)


def _perturbed(num_views=4):
    generator = np.random.default_rng(1)
    params = exposure_model.init(jax.random.key(0), num_views, SETTINGS)
    return jax.tree.map(
        lambda x: x + jnp.asarray(0.1 * generator.standard_normal(x.shape), jnp.float32), params
    )


def _exposed(params, image_id, render):
    """The render, or renders, as the photograph would show it."""
    function = jax.vmap(apply_exposure) if jnp.ndim(image_id) else apply_exposure
    return function(*match_varying(render, exposure_model.transform_of(params, image_id)))


update = jax.jit(functools.partial(exposure_model.update, settings=SETTINGS))


def test_starts_as_the_exact_identity():
    params = exposure_model.init(jax.random.key(3), 4, SETTINGS)
    np.testing.assert_array_equal(_exposed(params, 2, _render()), _render())
    np.testing.assert_array_equal(
        exposure_model.transforms(params), np.broadcast_to(np.eye(3, 4), (4, 3, 4))
    )
    assert exposure_model.identity_penalty(params, 4) == 0


def test_applies_matrix_and_offset():
    params = _perturbed()
    transform = np.asarray(exposure_model.transforms(params))[3]
    assert np.abs(transform - np.eye(3, 4)).max() > 0.01
    expected = np.asarray(_render()) @ transform[:, :3].T + transform[:, 3]
    np.testing.assert_allclose(
        _exposed(params, jnp.int32(3), _render()), expected, rtol=1e-5, atol=1e-6
    )
    batch = _exposed(params, jnp.array([3, 1]), jnp.stack([_render(0), _render(1)]))
    np.testing.assert_allclose(batch[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(batch[1], _exposed(params, 1, _render(1)), rtol=1e-5, atol=1e-6)


def test_embeddings_that_fill_up_do_not_pull():
    params = _perturbed(6)
    of_four = {"embeddings": params["embeddings"][:4], "network": params["network"]}
    penalty = jax.jit(exposure_model.identity_penalty)
    np.testing.assert_allclose(penalty(params, 4), penalty(of_four, 4), rtol=1e-6)
    assert abs(penalty(params, 6) - penalty(params, 4)) > 1e-3 * penalty(params, 4) > 0
    expected = np.square(exposure_model.transforms(of_four).mean(axis=0) - np.eye(3, 4)).sum()
    np.testing.assert_allclose(penalty(params, 4), expected, rtol=1e-4)
    assert penalty(params, 0) == 0  # of a device without a block: no division by zero


def test_gradients_of_the_transform():
    params = _perturbed()
    photo = _render(5)

    def loss(params, render):
        return (jnp.square(_exposed(params, 2, render) - photo) * (1 + render)).mean()

    def plain(params, render):
        transform = exposure_model.transforms(params)[2]
        exposed = jnp.einsum("hwc,dc->hwd", render, transform[:, :3]) + transform[None, None, :, 3]
        return (jnp.square(exposed - photo) * (1 + render)).mean()

    gradients, expected = (
        jax.jit(jax.grad(function, argnums=(0, 1)))(params, _render()) for function in (loss, plain)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), gradients, expected
    )


def test_replicated_parameters_under_shard_map():
    mesh = jax.make_mesh((2,), ("device",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    params = _perturbed()
    renders = jnp.stack([_render(0), _render(1)])

    def total(params, renders):
        def local(params, image_ids, renders):
            return jax.lax.psum(
                jnp.square(_exposed(params, image_ids[0], renders[0])).mean(), "device"
            )

        sharded = PartitionSpec("device")
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(PartitionSpec(), sharded, sharded),
            out_specs=PartitionSpec(),
        )(params, jnp.array([3, 1]), renders)

    def plain(params, renders):
        return jnp.square(_exposed(params, jnp.array([3, 1]), renders)).mean() * 2

    gradients, expected = (
        jax.jit(jax.grad(function))(params, renders) for function in (total, plain)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, expected
    )


def test_one_image_touches_one_embedding():
    params = _perturbed()
    state = exposure_model.init_optimizer(_perturbed())
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)  # so that the state can be donated

    def loss(p):
        penalty = SETTINGS.identity_weight * exposure_model.identity_penalty(p, 4)
        return _exposed(p, 1, _render()).mean() + penalty

    gradient = jax.jit(jax.grad(loss))
    for _ in range(3):
        new, state = update(params, gradient(params), state, 1)
        is_moved = (new["embeddings"] != params["embeddings"]).any(axis=-1)
        np.testing.assert_array_equal(is_moved, [0, 1, 0, 0])
        params = new
    np.testing.assert_array_equal(state.view_counts, [0, 3, 0, 0])
    # The next image's first step is a first step of Adam, however late it comes: the learning rate
    # long.
    new, _ = update(params, jax.tree.map(jnp.ones_like, params), state, 2)
    np.testing.assert_allclose(params["embeddings"][2] - new["embeddings"][2], 1e-2, rtol=1e-4)


def test_update_is_adam_where_all_images_are_used():
    params = _perturbed()
    state = exposure_model.init_optimizer(params)
    adam = optax.adam(SETTINGS.learning_rate)
    expected = params
    expected_state = adam.init(params)
    for i in range(4):
        gradient = jax.tree.map(lambda x, i=i: jnp.sin(7 * x + i), params)
        params, state = update(params, gradient, state, jnp.arange(4))
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
            steps, expected_state = adam.update(gradient, expected_state)
        expected = optax.apply_updates(expected, steps)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, expected
    )


def test_recovers_exposures_and_keeps_the_mean_at_the_identity():
    """Photographs of one picture at different exposures, all a third too bright for the canonical
    colours to stay.
    """
    canonical = _render(size=(8, 8))
    gains = jnp.array([1.1, 1.5])
    settings = AppearanceSettings(learning_rate=1e-2, identity_weight=1.0)
    params = {"exposure": exposure_model.init(jax.random.key(0), 2, settings), "picture": canonical}

    def loss(params, image_id):
        photo = gains[image_id] * canonical
        exposed = _exposed(params["exposure"], image_id, params["picture"])
        penalty = exposure_model.identity_penalty(params["exposure"], 2)
        return jnp.square(exposed - photo).mean() + settings.identity_weight * penalty

    @jax.jit
    def step(params, state, image_id):
        gradient = jax.grad(loss)(params, image_id)
        exposure, state = exposure_model.update(
            params["exposure"], gradient["exposure"], state, image_id, settings
        )
        return {
            "exposure": exposure,
            "picture": params["picture"] - 3.0 * gradient["picture"],
        }, state

    state = exposure_model.init_optimizer(params["exposure"])
    for i in range(600):
        params, state = step(params, state, jnp.int32(i % 2))
    for image_id in range(2):
        shown = _exposed(params["exposure"], image_id, params["picture"])
        np.testing.assert_allclose(shown, gains[image_id] * canonical, atol=0.03)
    mean = exposure_model.transforms(params["exposure"]).mean(axis=0)
    np.testing.assert_allclose(mean, np.eye(3, 4), atol=0.03)
    assert exposure_model.identity_penalty(params["exposure"], 2) < 1e-3
