"""Cameras: half-pixel centres, inverses, and normals of known planes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cosurfgs_jax.geometry import cameras

INTRINSICS = np.array([[50.0, 0, 21.3], [0, 60.0, 14.2], [0, 0, 1]])
SIZE = (30, 41)


def _pose():
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec([0.3, -0.5, 1.1]).as_matrix()
    pose[:3, 3] = [0.4, -0.2, 1.5]
    return pose


def _plane_depth(normal, distance):
    """Camera z of the plane normal . x = distance along each pixel's ray."""
    x = (np.arange(SIZE[1]) + 0.5 - INTRINSICS[0, 2]) / INTRINSICS[0, 0]
    y = (np.arange(SIZE[0]) + 0.5 - INTRINSICS[1, 2]) / INTRINSICS[1, 1]
    return distance / (normal[0] * x[None, :] + normal[1] * y[:, None] + normal[2])


def test_the_principal_point_of_the_first_pixel_is_at_one_half():
    intrinsics = np.array([[10.0, 0, 0.5], [0, 10.0, 0.5], [0, 0, 1]])
    rays = cameras.pixel_rays(intrinsics, (2, 3))
    np.testing.assert_allclose(rays[0, 0], [0, 0, 1])
    np.testing.assert_allclose(rays[1, 2], [0.2, 0.1, 1])


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_project_undoes_unproject(make):
    dtype = np.float64 if make is np.asarray else np.float32
    depth = np.random.default_rng(0).uniform(1, 5, SIZE)
    depth, intrinsics, pose = (make(array.astype(dtype)) for array in (depth, INTRINSICS, _pose()))
    points = cameras.unproject(depth, intrinsics, pose)
    pixels, z = cameras.project(points, pose, intrinsics)
    x, y = np.meshgrid(np.arange(SIZE[1]) + 0.5, np.arange(SIZE[0]) + 0.5)
    np.testing.assert_allclose(
        pixels, np.stack([x, y], -1), atol=1e-10 if dtype == np.float64 else 1e-4
    )
    np.testing.assert_allclose(z, depth, rtol=1e-12 if dtype == np.float64 else 1e-5)


def test_points_behind_the_camera_have_finite_pixels_and_gradient():
    points = jnp.asarray([[0.1, 0.2, -1.0], [0.3, 0.1, 0.0], [0.2, 0.1, 2.0]], jnp.float32)
    eye = jnp.eye(4)
    intrinsics = jnp.asarray(INTRINSICS, jnp.float32)
    pixels, z = cameras.project(points, eye, intrinsics)
    assert np.isfinite(pixels).all() and (np.asarray(z) == [-1, 0, 2]).all()
    gradient = jax.grad(lambda p: cameras.project(p, eye, intrinsics)[0].sum())(points)
    assert np.isfinite(gradient).all()


def test_invert_rigid_and_camera_center():
    pose = np.stack([_pose(), np.eye(4)])
    np.testing.assert_allclose(cameras.invert_rigid(pose), np.linalg.inv(pose), atol=1e-14)
    np.testing.assert_allclose(
        cameras.camera_center(pose), np.linalg.inv(pose)[:, :3, 3], atol=1e-14
    )


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_normals_of_a_tilted_plane(make):
    dtype = np.float64 if make is np.asarray else np.float32
    normal = np.array([0.3, -0.4, -0.9])
    normal /= np.linalg.norm(normal)
    depth = _plane_depth(normal, -2.0)
    assert (depth > 0).all()
    arguments = [make(array.astype(dtype)) for array in (depth, INTRINSICS, _pose())]
    in_camera = cameras.normals_from_depth(*arguments[:2])
    in_world = cameras.normals_from_depth(*arguments)
    tolerance = 1e-9 if dtype == np.float64 else 1e-4
    inner = np.asarray(in_camera)[1:-1, 1:-1]
    np.testing.assert_allclose(inner, np.broadcast_to(normal, inner.shape), atol=tolerance)
    np.testing.assert_allclose(
        np.asarray(in_world)[1:-1, 1:-1],
        np.broadcast_to(_pose()[:3, :3].T @ normal, inner.shape),
        atol=tolerance,
    )
    border = np.ones(SIZE, bool)
    border[1:-1, 1:-1] = False
    assert (np.asarray(in_camera)[border] == 0).all()


def test_holes_give_zero_normals_and_finite_gradients():
    depth = np.full(SIZE, 2.0, np.float32)
    depth[10, 10] = 0
    depth = jnp.asarray(depth)
    intrinsics = jnp.asarray(INTRINSICS, jnp.float32)
    normals = np.asarray(cameras.normals_from_depth(depth, intrinsics))
    for y, x in [(10, 9), (10, 11), (9, 10), (11, 10)]:
        assert (normals[y, x] == 0).all()
    np.testing.assert_allclose(
        normals[10, 10], [0, 0, -1], atol=1e-6
    )  # its four neighbours are there
    weights = jnp.asarray(np.random.default_rng(0).normal(size=normals.shape), jnp.float32)
    for image in (depth, jnp.zeros_like(depth)):
        gradient = jax.grad(lambda d: (cameras.normals_from_depth(d, intrinsics) * weights).sum())(
            image
        )
        assert np.isfinite(gradient).all()


def test_gradient_of_normals_flows_to_depth():
    normal = np.array([0.2, 0.1, -1.0])
    depth = jnp.asarray(_plane_depth(normal, -2.0), jnp.float32)
    intrinsics = jnp.asarray(INTRINSICS, jnp.float32)

    def tilt(depth):
        return cameras.normals_from_depth(depth, intrinsics)[..., 0].sum()

    slope = jnp.broadcast_to(jnp.arange(SIZE[1], dtype=jnp.float32)[None, :], SIZE)
    step = 1e-3
    difference = (tilt(depth + step * slope) - tilt(depth - step * slope)) / (2 * step)
    np.testing.assert_allclose((jax.grad(tilt)(depth) * slope).sum(), difference, rtol=2e-3)
