"""The photometric losses: the native kernel against the plain definition, and the definition
against its formula.
"""

import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cosurfgs_jax import metrics
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.losses import photometric
from cosurfgs_jax.losses.photometric import PhotometricWeights, photometric_losses

WEIGHTS = PhotometricWeights(ssim=0.2, transparency=0.05, photometric=0.7)
# Size, whether the photograph has weights, whether there is a mask: one pixel, smaller than the
# window, odd, two column strips and bands, one pixel more than whole vectors.
CASES = [
    ((1, 1), False, False),
    ((4, 7), True, True),
    ((37, 53), True, False),
    ((70, 260), False, False),
    ((9, 513), False, True),
]


class Case(NamedTuple):
    """What takes gradient, in this order, and what takes none."""

    render: jax.Array
    alpha: jax.Array
    transform: jax.Array
    photo: jax.Array
    mask: jax.Array | None


def _images(size, seed=0):
    """A smooth picture with noise and a flat corner, and a worse copy of it."""
    generator = np.random.default_rng(seed)
    shape = (*size, 3)
    y, x, c = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    target = (
        0.5 + 0.4 * np.sin(9 * x + 3 * c) * np.cos(7 * y) + 0.05 * generator.standard_normal(shape)
    )
    target[: shape[0] // 3, : shape[1] // 3] = 0.25
    render = 0.9 * target + 0.03 + 0.1 * generator.standard_normal(shape)
    return jnp.asarray(np.clip(render, 0, 1), jnp.float32), jnp.asarray(
        np.clip(target, 0, 1), jnp.float32
    )


def _case(size, has_weights=False, has_mask=False, seed=0) -> Case:
    generator = np.random.default_rng(seed + 100)
    render, target = _images(size, seed)
    photo = np.round(255 * np.asarray(target)).astype(np.uint8)
    if has_weights:  # 0, one half of the weight, and all
        weights = generator.choice(np.array([0, 128, 255], np.uint8), (*size, 1), p=[0.3, 0.1, 0.6])
        photo = np.concatenate([photo, weights], axis=-1)
    mask = jnp.asarray(generator.random(size) < 0.8) if has_mask else None
    transform = np.eye(3, 4) + 0.1 * generator.standard_normal((3, 4))
    return Case(
        render,
        jnp.asarray(generator.random(size), jnp.float32),
        jnp.asarray(transform, jnp.float32),
        jnp.asarray(photo),
        mask,
    )


def _slopes(case: Case, backend: str | None, weights=WEIGHTS):
    """((total, psnr), gradients by render, alpha and transform)."""

    def run(render, alpha, transform):
        losses = photometric_losses(
            render, alpha, case.photo, case.mask, transform, weights, backend
        )
        return losses.total, losses.psnr

    return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))(*case[:3])


def _definition64(case: Case, weights=WEIGHTS):
    with jax.enable_x64(True):
        wide = (jnp.asarray(np.asarray(leaf), jnp.float64) for leaf in case[:3])
        return jax.tree.map(
            np.asarray, _slopes(Case(*wide, case.photo, case.mask), "reference", weights)
        )


def _stack(size, num, **options) -> Case:
    return jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *(_case(size, seed=seed, **options) for seed in range(num)),
    )


@pytest.mark.parametrize(("size", "has_weights", "has_mask"), CASES)
def test_the_kernel_is_the_definition_in_values_and_gradients(size, has_weights, has_mask):
    case = _case(size, has_weights, has_mask, seed=3)
    (total, psnr), gradients = _slopes(case, "cpu")
    (expected_total, expected_psnr), expected = _definition64(case)
    np.testing.assert_allclose(total, expected_total, rtol=1e-5)
    np.testing.assert_allclose(psnr, expected_psnr, rtol=1e-5)
    for gradient, slope in zip(gradients, expected, strict=True):
        # The rounding of float32 moments against C2 = 9e-4 sets the tolerance in the flat corner.
        np.testing.assert_allclose(gradient, slope, atol=3e-4 * np.abs(slope).max())


@pytest.mark.parametrize("weights", [(0.0, 0.0, 1.0), (1.0, 0.0, 1.0), (0.3, 2.0, 0.0)])
def test_every_term_of_the_kernel_alone(weights):
    case = _case((20, 30), has_mask=True)
    weights = PhotometricWeights(*weights)
    (total, _), gradients = _slopes(case, "cpu", weights)
    (expected_total, _), expected = _definition64(case, weights)
    assert expected_total > 0.01
    np.testing.assert_allclose(total, expected_total, rtol=1e-5)
    for gradient, slope in zip(gradients, expected, strict=True):
        assert bool(np.any(gradient != 0)) == bool(np.any(slope != 0))
        np.testing.assert_allclose(gradient, slope, atol=3e-4 * np.abs(slope).max())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_where_no_pixel_counts_there_is_no_loss_and_no_gradient(backend):
    case = _case((40, 50), has_weights=True)._replace(mask=jnp.zeros((40, 50), bool))
    (total, psnr), gradients = _slopes(case, backend)
    assert total == 0 and np.isnan(psnr)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_without_an_exposure_it_is_the_identity(backend):
    case = _case((20, 30))._replace(transform=jnp.eye(3, 4))

    def run(render):
        losses = photometric_losses(render, case.alpha, case.photo, None, None, WEIGHTS, backend)
        return losses.total, losses.psnr

    shown, by_render = jax.jit(jax.value_and_grad(run, has_aux=True))(case.render)
    expected, gradients = _slopes(case, backend)
    np.testing.assert_allclose(shown, expected, rtol=1e-6)
    np.testing.assert_allclose(by_render, gradients[0], atol=1e-9)


def test_the_photograph_itself_costs_nothing_and_is_stationary():
    case = _case((40, 50))._replace(transform=jnp.eye(3, 4))
    case = case._replace(
        render=case.photo.astype(jnp.float32) * np.float32(1 / 255), alpha=jnp.ones((40, 50))
    )
    (total, psnr), gradients = _slopes(case, "cpu")
    np.testing.assert_allclose(total, 0, atol=1e-6)
    np.testing.assert_allclose(gradients[0], 0, atol=1e-7)
    assert psnr > 100


VARIANT_SCRIPT = """
import os, sys
os.sched_setaffinity(0, [int(core) for core in sys.argv[1].split(",")])
import jax, jax.numpy as jnp, numpy as np
from cosurfgs_jax.losses.photometric import PhotometricWeights, photometric_losses
generator = np.random.default_rng(1)
photo = jnp.asarray(generator.integers(0, 256, (131, 97, 4)), jnp.uint8)
render = jnp.asarray(generator.random((131, 97, 3)), jnp.float32)
alpha = jnp.asarray(generator.random((131, 97)), jnp.float32)
weights = PhotometricWeights(0.2, 0.05)
run = lambda a, b, c: photometric_losses(a, b, photo, None, c, weights, "cpu").total
value, gradients = jax.value_and_grad(run, (0, 1, 2))(render, alpha, jnp.eye(3, 4) + 0.1)
print(*(float(np.abs(np.asarray(x, np.float64)).sum()).hex() for x in (value, *gradients)))
"""


def _run_variant(instruction_set, cores):
    environment = dict(os.environ, COSURFGS_INSTRUCTION_SET=instruction_set)
    result = subprocess.run(
        [sys.executable, "-c", VARIANT_SCRIPT, ",".join(map(str, cores))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return result.stdout.split()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_lower_instruction_sets_and_fewer_threads_agree():
    cores = sorted(os.sched_getaffinity(0))
    generator = np.random.default_rng(1)
    photo = jnp.asarray(generator.integers(0, 256, (131, 97, 4)), jnp.uint8)
    render, alpha = (
        jnp.asarray(generator.random(shape), jnp.float32) for shape in ((131, 97, 3), (131, 97))
    )
    case = Case(render, alpha, jnp.eye(3, 4) + 0.1, photo, None)
    (total, _), gradients = _definition64(case, PhotometricWeights(0.2, 0.05))
    # A variant that this processor lacks falls back to a lower one.
    results = {name: _run_variant(name, cores) for name in ("baseline", "v3")}
    for numbers in results.values():
        np.testing.assert_allclose(
            [float.fromhex(x) for x in numbers],
            [total, *(np.abs(slope).sum() for slope in gradients)],
            rtol=1e-5,
        )
    assert _run_variant("v3", cores[:1]) == results["v3"]  # to the last bit


def _value_and_grad(case: Case):
    def run(render, alpha, transform):
        return photometric_losses(
            render, alpha, case.photo, case.mask, transform, WEIGHTS, "cpu"
        ).total

    return jax.value_and_grad(run, argnums=(0, 1, 2))(*case[:3])


def test_the_kernel_under_vmap():
    cases = _stack((20, 30), 3, has_mask=True)
    values, gradients = jax.jit(jax.vmap(_value_and_grad))(cases)
    for i in range(3):
        value, own = _value_and_grad(jax.tree.map(lambda leaf, i=i: leaf[i], cases))
        assert values[i] == value
        jax.tree.map(
            lambda batched, one, i=i: np.testing.assert_array_equal(batched[i], one), gradients, own
        )


def test_the_kernel_under_shard_map():
    mesh = jax.make_mesh((2,), ("device",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    cases = _stack((33, 30), 2)

    def local_loss(gain, case):
        return photometric_losses(
            gain * case.render, case.alpha, case.photo, None, case.transform, WEIGHTS, "cpu"
        ).total

    def total(gain, renders, cases):
        def local(gain, renders, cases):
            case = jax.tree.map(lambda leaf: leaf[0], cases._replace(render=renders))
            return jax.lax.psum(local_loss(gain, case), "device")

        sharded = PartitionSpec("device")
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(PartitionSpec(), sharded, sharded),
            out_specs=PartitionSpec(),
        )(gain, renders, cases)

    placed = jax.device_put(cases, NamedSharding(mesh, PartitionSpec("device")))
    arguments = jnp.float32(0.9), placed.render, placed
    value, (by_gain, by_render) = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(*arguments)

    def plain(gain, renders):
        return sum(
            local_loss(
                gain, jax.tree.map(lambda leaf, i=i: leaf[i], cases._replace(render=renders))
            )
            for i in range(2)
        )

    expected, (expected_gain, expected_render) = jax.value_and_grad(plain, argnums=(0, 1))(
        arguments[0], cases.render
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(by_gain, expected_gain, rtol=1e-4)
    np.testing.assert_allclose(by_render, expected_render, atol=1e-9)


def test_photometric_loss_is_its_formula():
    render, target = _images((30, 40))
    exposed = 1.1 * render
    loss = photometric.photometric_loss(render, exposed, target, None, 0.2)
    expected = 0.8 * np.abs(np.asarray(exposed) - np.asarray(target)).mean() + 0.2 * (
        1 - metrics.ssim(render, target)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # Exposure must not reach the structural term.
    gradient = jax.grad(lambda e: photometric.photometric_loss(render, e, target, None, 1.0))(
        exposed
    )
    np.testing.assert_array_equal(gradient, 0)


def test_masked_pixels_are_not_judged():
    render, target = _images((40, 50))
    mask = jnp.ones((40, 50)).at[:, 25:].set(0)
    spoiled = render.at[:, 25:].set(0.77)

    def loss(r):
        return photometric.photometric_loss(r, r, target, mask, 0.2)

    value, gradient = jax.value_and_grad(loss)(render)
    assert value == loss(spoiled)
    np.testing.assert_array_equal(gradient[:, 25:], 0)
    assert np.abs(gradient[:, :25]).min() > 0
    ones = jnp.ones((40, 50))
    np.testing.assert_allclose(
        photometric.photometric_loss(render, render, target, ones, 0.2),
        photometric.photometric_loss(render, render, target, None, 0.2),
        rtol=1e-6,
    )
    # The scale does not depend on how much is masked: the same defect everywhere gives about the
    # same loss.
    defect = jnp.where(mask[..., None] > 0, target + 0.1, target)
    halved = photometric.photometric_loss(defect, defect, target, mask, 0.0)
    np.testing.assert_allclose(halved, 0.1, rtol=1e-5)
    assert photometric.photometric_loss(render, render, target, jnp.zeros((40, 50)), 0.2) == 0


def test_light_that_passes_counts_where_the_photograph_does():
    alpha = jnp.asarray(np.random.default_rng(0).uniform(size=(30, 40)), jnp.float32)
    mask = jnp.ones((30, 40)).at[:, 10:].set(0)
    value, gradient = jax.value_and_grad(photometric.transparency_loss)(alpha, mask)
    light = 1 - alpha
    np.testing.assert_allclose(value, (light[:, :10] ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient, -2 * mask * light / 300, rtol=1e-5)
    np.testing.assert_allclose(
        photometric.transparency_loss(alpha, None), (light**2).mean(), rtol=1e-6
    )
    assert photometric.transparency_loss(alpha, 0 * mask) == 0
    assert photometric.transparency_loss(jnp.ones((3, 4)), None) == 0


def test_bad_arguments():
    case = _case((12, 14))
    with pytest.raises(InputError, match="backend"):
        _slopes(case, "cuda")
    with pytest.raises(InputError, match="photo, alpha"):
        _slopes(case._replace(photo=case.photo[..., :2]), None)
