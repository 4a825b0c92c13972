"""The photometric loss, and the native SSIM against its plain definition."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cosurfgs_jax import metrics
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.losses import photometric

# Smaller than the window, odd, two column strips, and another number of channels.
SIZES = [(1, 1, 3), (37, 53, 3), (70, 260, 3), (24, 401, 2)]


def _images(shape, seed=0):
    """A smooth picture with noise and a flat corner, and a worse copy of it."""
    generator = np.random.default_rng(seed)
    y, x, c = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    target = 0.5 + 0.4 * np.sin(9 * x + 3 * c) * np.cos(7 * y) + 0.05 * generator.standard_normal(shape)
    target[: shape[0] // 3, : shape[1] // 3] = 0.25
    render = 0.9 * target + 0.03 + 0.1 * generator.standard_normal(shape)
    return jnp.asarray(np.clip(render, 0, 1), jnp.float32), jnp.asarray(np.clip(target, 0, 1), jnp.float32)


def _stack(shape, num):
    pairs = [_images(shape, seed) for seed in range(num)]
    return tuple(jnp.stack(images) for images in zip(*pairs, strict=True))


def _definition64(render, target):
    with jax.enable_x64(True):
        images = (jnp.asarray(image, jnp.float64) for image in (render, target))
        value, gradient = jax.jit(jax.value_and_grad(metrics.ssim))(*images)
        return np.asarray(value), np.asarray(gradient)


@pytest.mark.parametrize("shape", SIZES)
def test_native_ssim_is_the_definition(shape):
    render, target = _images(shape)
    value, gradient = jax.jit(jax.value_and_grad(lambda r: photometric.ssim(r, target, backend="cpu")))(render)
    expected_value, expected_gradient = _definition64(render, target)
    # The rounding of float32 moments against C2 = 9e-4 sets the tolerance in the flat corner.
    np.testing.assert_allclose(value, expected_value, atol=2e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=3e-4 * np.abs(expected_gradient).max())
    only_value = photometric.ssim(render, target, backend="cpu")
    assert only_value == value


VARIANT_SCRIPT = """
import os, sys
os.sched_setaffinity(0, [int(core) for core in sys.argv[1].split(",")])
import jax, jax.numpy as jnp, numpy as np
from cosurfgs_jax.losses import photometric
generator = np.random.default_rng(1)
render, target = (jnp.asarray(generator.random((131, 97, 3)), jnp.float32) for _ in range(2))
value, gradient = jax.value_and_grad(lambda r: photometric.ssim(r, target, backend="cpu"))(render)
print(float(value).hex(), float(np.abs(np.asarray(gradient, np.float64)).sum()).hex())
"""


def _run_variant(instruction_set, cores):
    environment = dict(os.environ, COSURFGS_INSTRUCTION_SET=instruction_set)
    result = subprocess.run([sys.executable, "-c", VARIANT_SCRIPT, ",".join(map(str, cores))], env=environment,
                            capture_output=True, text=True, timeout=120, check=True)
    return result.stdout.split()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_lower_instruction_sets_and_fewer_threads_agree():
    cores = sorted(os.sched_getaffinity(0))
    generator = np.random.default_rng(1)
    render, target = (jnp.asarray(generator.random((131, 97, 3)), jnp.float32) for _ in range(2))
    value, gradient = _definition64(render, target)
    # A variant that this processor lacks falls back to a lower one.
    results = {name: _run_variant(name, cores) for name in ("baseline", "v3")}
    for numbers in results.values():
        np.testing.assert_allclose([float.fromhex(x) for x in numbers], [value, np.abs(gradient).sum()], rtol=1e-5)
    assert _run_variant("v3", cores[:1]) == results["v3"]  # to the last bit


def test_ssim_of_equal_images_is_one_and_stationary():
    render, _ = _images((40, 50, 3))
    value, gradient = jax.value_and_grad(lambda r: photometric.ssim(r, render, backend="cpu"))(render)
    np.testing.assert_allclose(value, 1, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_native_ssim_under_vmap():
    renders, targets = _stack((20, 30, 3), 3)
    function = jax.value_and_grad(lambda r, t: photometric.ssim(r, t, backend="cpu"))
    values, gradients = jax.jit(jax.vmap(function))(renders, targets)
    for i in range(3):
        value, gradient = function(renders[i], targets[i])
        assert values[i] == value
        np.testing.assert_array_equal(gradients[i], gradient)


def test_native_ssim_under_shard_map():
    mesh = jax.make_mesh((2,), ("device",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    renders, targets = _stack((33, 30, 3), 2)

    def total(gain, renders, targets):
        def local(gain, render, target):
            return jax.lax.psum(photometric.ssim(gain * render[0], target[0], backend="cpu"), "device")

        sharded = PartitionSpec("device")
        return jax.shard_map(local, mesh=mesh, in_specs=(PartitionSpec(), sharded, sharded),
                             out_specs=PartitionSpec())(gain, renders, targets)

    place = NamedSharding(mesh, PartitionSpec("device"))
    arguments = (jnp.float32(0.9), jax.device_put(renders, place), jax.device_put(targets, place))
    value, (by_gain, by_render) = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(*arguments)

    def plain(gain, renders):
        return sum(photometric.ssim(gain * renders[i], targets[i], backend="cpu") for i in range(2))

    expected, (expected_gain, expected_render) = jax.value_and_grad(plain, argnums=(0, 1))(arguments[0], renders)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(by_gain, expected_gain, rtol=1e-4)
    np.testing.assert_allclose(by_render, expected_render, atol=1e-9)


def test_photometric_loss_is_its_formula():
    render, target = _images((30, 40, 3))
    exposed = 1.1 * render
    loss = photometric.photometric_loss(render, exposed, target, None, 0.2)
    expected = 0.8 * np.abs(np.asarray(exposed) - np.asarray(target)).mean() + 0.2 * (1 - metrics.ssim(render, target))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # Exposure must not reach the structural term.
    gradient = jax.grad(lambda e: photometric.photometric_loss(render, e, target, None, 1.0))(exposed)
    np.testing.assert_array_equal(gradient, 0)


def test_masked_pixels_are_not_judged():
    render, target = _images((40, 50, 3))
    mask = jnp.ones((40, 50)).at[:, 25:].set(0)
    spoiled = render.at[:, 25:].set(0.77)

    def loss(r):
        return photometric.photometric_loss(r, r, target, mask, 0.2)

    value, gradient = jax.value_and_grad(loss)(render)
    assert value == loss(spoiled)
    np.testing.assert_array_equal(gradient[:, 25:], 0)
    assert np.abs(gradient[:, :25]).min() > 0
    ones = jnp.ones((40, 50))
    np.testing.assert_allclose(photometric.photometric_loss(render, render, target, ones, 0.2),
                               photometric.photometric_loss(render, render, target, None, 0.2), rtol=1e-6)
    # The scale does not depend on how much is masked: the same defect everywhere gives about the same loss.
    defect = jnp.where(mask[..., None] > 0, target + 0.1, target)
    halved = photometric.photometric_loss(defect, defect, target, mask, 0.0)
    np.testing.assert_allclose(halved, 0.1, rtol=1e-5)
    assert photometric.photometric_loss(render, render, target, jnp.zeros((40, 50)), 0.2) == 0


def test_light_that_passes_counts_where_the_photograph_does():
    alpha = jnp.asarray(np.random.default_rng(0).uniform(size=(30, 40)), jnp.float32)
    mask = jnp.ones((30, 40)).at[:, 10:].set(0)
    value, gradient = jax.value_and_grad(photometric.transparency_loss)(alpha, mask)
    np.testing.assert_allclose(value, 1 - alpha[:, :10].mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient, -mask / 300, rtol=1e-5)
    np.testing.assert_allclose(photometric.transparency_loss(alpha, None), 1 - alpha.mean(), rtol=1e-6)
    assert photometric.transparency_loss(alpha, 0 * mask) == 0
    assert photometric.transparency_loss(jnp.ones((3, 4)), None) == 0


def test_reference_backend_and_bad_arguments():
    render, target = _images((12, 14, 3))
    np.testing.assert_allclose(photometric.ssim(render, target, backend="reference"), photometric.ssim(render, target),
                               atol=2e-6)
    with pytest.raises(InputError, match="backend"):
        photometric.ssim(render, target, backend="cuda")
