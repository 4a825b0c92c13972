"""Losses and optimiser on what is finite and far from everything ordinary: values and gradients
stay finite. The native calls refuse shapes that do not fit.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cosurfgs_jax.geometry.lattice import whole
from cosurfgs_jax.losses.geometric import Second, geometric_losses
from cosurfgs_jax.losses.inputs import SecondView, Source
from cosurfgs_jax.losses.photometric import PhotometricWeights, photometric_losses
from cosurfgs_jax.model import optim
from cosurfgs_jax.native import ffi
from cosurfgs_jax.settings import LossSettings, OptimSettings
from cosurfgs_jax.types import Camera, RenderOutput, SurfelParams

SIZE = (37, 45)
BACKENDS = ("cpu", "reference")
MAX_COLOR = 1e6  # of surfels that are drawn
# Camera z of planes that surfels within 1e9 of the origin have, from the near plane on.
DEPTHS = (1e-6, 1e-3, 1.0, 1e5, 1e9, 1e10)
CALL_ERRORS = (jax.errors.JaxRuntimeError, ValueError)


def _maps(depth, normal, alpha, color) -> RenderOutput:
    return RenderOutput(
        color=color,
        alpha=alpha,
        depth=None,
        median_depth=None,
        plane_depth=depth,
        is_plane_depth_valid=depth > 0,
        normal=normal,
        distortion=None,
        contributions=None,
        num_invalid=jnp.zeros((), jnp.int32),
    )


@functools.lru_cache(maxsize=2)
def _losses(backend: str):
    def total(maps, transform, cameras, photos, depth_there):
        depth, normal, alpha, color = maps
        view, neighbor = cameras
        out = _maps(depth, normal, alpha, color)
        there = SecondView(neighbor, photos[1], jnp.ones((), bool), jnp.array([0, 1], jnp.int32))
        photometric = photometric_losses(
            color, alpha, photos[0], None, transform, PhotometricWeights(0.2, 0.1), backend
        )
        geometric = geometric_losses(
            out,
            view,
            Source(view, photos[0], whole()),
            None,
            Second(there, depth_there, whole()),
            LossSettings(patch_stride=2),
            backend,
        )
        return photometric.total + geometric.total

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))


def _pose(rng, turn: float, shift: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = np.linalg.qr(np.eye(3) + turn * rng.normal(size=(3, 3)))[0]
    pose[:3, :3] *= np.sign(np.diag(pose[:3, :3]))[None]
    pose[:3, 3] = shift * rng.normal(size=3)
    return pose


def _depths(rng, base: float) -> np.ndarray:
    """Of a rough plane, with holes and steps."""
    depth = base * (1 + rng.choice([0, 1e-4, 0.01]) * rng.normal(size=SIZE))
    is_spoilt = rng.uniform(size=SIZE) < rng.choice([0, 0.01, 0.3])
    return np.where(is_spoilt, rng.choice([0, *DEPTHS], SIZE), depth)


def _operands(seed: int):
    """What a rasterizer may give for extreme surfels, and two cameras between ordinary and absurd.

    Normals face the camera where there is a depth, as in `raster.outputs`.
    """
    rng = np.random.default_rng([23, seed])
    base = rng.choice(DEPTHS)
    alpha = rng.uniform(0.5, 1, SIZE)
    zoom = rng.choice([1, 1e-3, 1e5])
    intrinsics = np.array([[40 * zoom, 0, 22.1], [0, 44 * zoom, 18.7], [0, 0, 1]])
    pose = _pose(rng, rng.choice([0, 0.5]), rng.choice([0, 1, 1e9]))
    step = _pose(rng, rng.choice([0, 1e-7, 0.01]), rng.choice([0, 1e-6, 0.1, 1, 1e5, 1e9]))
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    rays = np.stack(
        [(columns - 22.1) / (40 * zoom), (rows - 18.7) / (44 * zoom), np.ones(SIZE)], axis=-1
    )
    normal = rng.normal(size=(*SIZE, 3))
    normal *= alpha[..., None] / np.linalg.norm(normal, axis=-1, keepdims=True)
    cosine = -((normal @ pose[:3, :3].T) * rays).sum(axis=-1) / np.linalg.norm(rays, axis=-1)
    normal *= np.sign(cosine)[..., None]
    depth = np.where(np.abs(cosine) >= 0.05 * alpha, _depths(rng, base), 0)
    color = rng.choice([0, 1, 1e-30, -1, MAX_COLOR, -MAX_COLOR], (*SIZE, 3))
    photos = [rng.integers(0, 256, (*SIZE, channels)) for channels in (3, 4)]
    maps, transform = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32), ((depth, normal, alpha, color), np.eye(3, 4))
    )
    cameras = [
        Camera(jnp.asarray(matrix, jnp.float32), jnp.asarray(intrinsics, jnp.float32))
        for matrix in (pose, step @ pose)
    ]
    photos = [jnp.asarray(photo, jnp.uint8) for photo in photos]
    return maps, transform, cameras, photos, jnp.asarray(_depths(rng, base), jnp.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_surfels_can_show_has_finite_losses_and_gradients(backend):
    moved = np.zeros(2, bool)
    for seed in range(40):
        total, (by_maps, by_transform) = _losses(backend)(*_operands(seed))
        assert np.isfinite(total), seed
        for leaf in (*by_maps, by_transform):
            assert np.isfinite(leaf).all(), seed
        moved |= [bool(by_maps[0].any()), bool(by_maps[1].any())]
    assert moved.all(), "no depth or no normal counted"


def _params(rng, extremes) -> SurfelParams:
    shapes = {"means": (64, 3), "quats": (64, 4), "log_scales": (64, 2), "logit_opacities": (64,)}
    return SurfelParams(
        **{
            name: jnp.asarray(rng.choice(extremes, shape), jnp.float32)
            for name, shape in {**shapes, "sh": (64, 4, 3)}.items()
        }
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("steps_missed", [0, 1, 200, 100_000])
def test_finite_gradients_leave_finite_surfels(backend, steps_missed):
    rng = np.random.default_rng(3)
    params = _params(rng, [0, 1e-30, 1, -1e5, 1e9])
    settings = OptimSettings(adam_eps=1e-15)
    alive = jnp.ones(64, bool)
    state = optim.init_optimizer(params)
    for _ in range(3):
        gradient = _params(rng, [0, 1e-38, 1e-20, -1e-6, 1, -1e10, 1e18])
        params, state = optim.update(params, gradient, state, alive, settings, 0.5, backend=backend)
    state = optax.ScaleByAdamState(state.count + steps_missed, state.mu, state.nu)
    missed = jnp.full(64, steps_missed, jnp.int32)
    course = optim.Course(settings, 0.5)
    params, state = optim.catch_up(params, state, alive, missed, course, backend)
    for leaf in jax.tree.leaves((params, state.mu, state.nu)):
        assert np.isfinite(leaf).all()


def _zeros(*shape, dtype=np.float32):
    return jnp.zeros(shape, dtype)


ADAM = [*[_zeros(5, 3)] * 4, _zeros(5, dtype=bool), _zeros(3), _zeros(3), jnp.int32(1)]
LATE = [*[_zeros(5, 3)] * 3, _zeros(5, dtype=bool), _zeros(5, dtype=np.int32), _zeros(3), _zeros(9)]
SUMS = [_zeros(4, 6, 3), _zeros(4, 6), _zeros(4, 6), _zeros(4, 4), _zeros(3, 3)]
PHOTO = [_zeros(4, 6, 3), _zeros(4, 6), _zeros(3, 4), _zeros(4, 6, 3, dtype=np.uint8)]
BETAS = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-15}
PLANE = {"min_alpha": 0.5, "min_cosine": 0.05}
WEIGHTS = {"color_weight": 1.0, "ssim_weight": 1.0, "light_weight": 1.0}


@pytest.mark.parametrize(
    ("target", "shapes", "operands", "attributes"),
    [
        ("adam", [(5, 3)] * 3, ADAM, {**BETAS, "gain1": 0.1, "gain2": 0.001}),
        ("adam_catch_up", [(5, 3)] * 3, [*LATE, jnp.int32(9)], BETAS),
        ("plane_depth_backward", [(4, 6, 3), (4, 6), (4, 4)], [*SUMS, _zeros(4, 6)], PLANE),
        (
            "photometric_losses",
            [(2,), (4, 6, 3), (4, 6), (3, 4)],
            [*PHOTO, _zeros(0, 0, dtype=bool)],
            WEIGHTS,
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(target, shapes, operands, attributes):
    def call(shapes, operands):
        results = [(shape, np.float32) for shape in shapes]
        jax.block_until_ready(
            ffi.call(f"cosurfgs_{target}", results, *map(jnp.asarray, operands), **attributes)
        )

    call(shapes, operands)
    words = target.removesuffix("_backward").removeprefix("adam_") + ": expected"
    for number in range(len(shapes)):
        shorter = [tuple(side - 1 for side in shapes[number])]
        with pytest.raises(CALL_ERRORS, match=re.escape(words)):
            call([*shapes[:number], *shorter, *shapes[number + 1 :]], operands)
    for number, operand in enumerate(operands):
        if operand.ndim and operand.size and number != len(LATE) - 1:
            longer = jnp.zeros([side + 1 for side in operand.shape], operand.dtype)
            with pytest.raises(CALL_ERRORS, match=re.escape(words)):
                call(shapes, [*operands[:number], longer, *operands[number + 1 :]])
