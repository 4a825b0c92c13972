"""Renders surfels, and differentiates the image with respect to the camera's pose.

    python examples/render_and_differentiate.py [--ply=point_cloud.ply] [--steps=120]

Reads the surfels of a PLY file (`point_cloud/iteration_*/point_cloud.ply` of a workdir, say), or
makes a small hilly sheet. Renders a target image, disturbs the pose by two degrees and 3 % of the
scene's radius, and follows the gradient of an image loss back to the pose of the target.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cosurfgs_jax import Camera, Surfels, rasterize, read_surfels_ply

IMAGE_SIZE = (96, 128)  # H, W
FOCAL_PX = 110.0


def make_surfels(num_per_side: int = 40) -> Surfels:
    """A hilly sheet over [-1, 1]^2, coloured by position."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, num_per_side)] * 2)
    z = 0.15 * np.sin(4 * x) * np.cos(3 * y)
    means = np.stack([x, y, z], axis=-1).reshape(-1, 3).astype(np.float32)
    num = len(means)
    colors = 0.5 + 0.5 * np.sin(means @ np.array([[5, 1, 9], [2, 7, 1], [0, 0, 6]], np.float32))
    quats = np.tile(np.array([1, 0, 0, 0], np.float32), (num, 1))  # facing +z
    return Surfels(
        means=jnp.asarray(means),
        quats=jnp.asarray(quats),
        log_scales=jnp.full((num, 2), np.log(1.5 / num_per_side), jnp.float32),
        logit_opacities=jnp.full(num, 3.0, jnp.float32),
        sh=jnp.asarray((colors - 0.5)[:, None] / 0.28209479, jnp.float32),  # degree 0
        alive=jnp.ones(num, bool),
    )


def look_at(eye: np.ndarray, target: np.ndarray) -> jax.Array:
    """camera_from_world f32[4,4] of a camera at `eye` that looks at `target`; world z is up."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = [right, np.cross(forward, right), forward]  # rows: x right, y down, z forward
    pose[:3, 3] = -pose[:3, :3] @ eye
    return jnp.asarray(pose, jnp.float32)


def moved(pose: jax.Array, motion: jax.Array, center: np.ndarray, radius: float) -> jax.Array:
    """The pose after a small rigid motion: a turn about the scene's centre and a shift.

    Args:
        pose: camera_from_world f32[4,4].
        motion: f32[6], a rotation vector in radians and a shift in radii of the scene, in the axes
            of the camera; 0 = none.
        center: f[3], of the scene, world. A turn about it and a shift look different; a turn about
            the camera and a shift look nearly alike, and are hard to tell apart.
        radius: of the scene, world length.
    """
    x, y, z = motion[:3]
    rotation = jax.scipy.linalg.expm(jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]))
    pivot = pose[:3, :3] @ jnp.asarray(center, jnp.float32) + pose[:3, 3]
    shift = pivot - rotation @ pivot + radius * motion[3:]
    return (
        pose.at[:3, :3].set(rotation @ pose[:3, :3]).at[:3, 3].set(rotation @ pose[:3, 3] + shift)
    )


def pose_error(pose: jax.Array, true_pose: jax.Array) -> tuple[float, float]:
    """Angle in degrees and distance of the camera centres in world lengths."""
    first, second = np.asarray(pose, np.float64), np.asarray(true_pose, np.float64)
    turn = first[:3, :3] @ second[:3, :3].T
    sine = np.linalg.norm(turn - turn.T) / np.sqrt(8)
    centers = [-each[:3, :3].T @ each[:3, 3] for each in (first, second)]
    return float(np.degrees(np.arcsin(min(sine, 1.0)))), float(
        np.linalg.norm(np.subtract(*centers))
    )


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ply", help="splat file of surfels; without it a sheet is made")
    parser.add_argument("--steps", type=int, default=120, help="gradient steps")
    options = parser.parse_args()

    surfels = read_surfels_ply(options.ply) if options.ply else make_surfels()
    means = np.asarray(surfels.means)
    center = np.median(means, axis=0)
    radius = float(np.percentile(np.linalg.norm(means - center, axis=1), 80))
    height, width = IMAGE_SIZE
    intrinsics = jnp.array(
        [[FOCAL_PX, 0, width / 2], [0, FOCAL_PX, height / 2], [0, 0, 1]], jnp.float32
    )
    true_pose = look_at(center + radius * np.array([0.5, -1.5, 1.5]), center)

    @jax.jit
    def draw(pose):
        out = rasterize(
            surfels, Camera(pose, intrinsics), image_size=IMAGE_SIZE, near=0.01 * radius, maps="all"
        )
        return out.color, out.alpha, out.depth

    color, alpha, depth = draw(true_pose)
    print(f"{len(means)} surfels, {width}x{height} pixels, {float(alpha.mean()):.0%} covered")
    seen = np.asarray(alpha) > 0.5
    print(f"median depth of what is covered: {np.median(np.asarray(depth)[seen]):.3f}")

    disturbance = jnp.array([0.02, -0.02, 0.02, 0.02, -0.02, 0.01], jnp.float32)
    start = moved(true_pose, disturbance, center, radius)

    def loss_of_pose(pose):
        return jnp.square(draw(pose)[0] - color).mean()

    gradient = jax.grad(loss_of_pose)(start)
    print("gradient of the loss with respect to camera_from_world:")
    print(np.array2string(np.asarray(gradient), precision=4, suppress_small=True))

    step_sizes = optax.cosine_decay_schedule(5e-3, options.steps)
    optimizer = optax.adam(step_sizes)
    motion = jnp.zeros(6, jnp.float32)
    state = optimizer.init(motion)

    @jax.jit
    def step(motion, state):
        loss, gradient = jax.value_and_grad(
            lambda m: loss_of_pose(moved(start, m, center, radius))
        )(motion)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(motion, updates), state, loss

    print("step  loss       angle (degrees)  distance (radii)")
    for number in range(options.steps + 1):
        if number % max(options.steps // 6, 1) == 0 or number == options.steps:
            pose = moved(start, motion, center, radius)
            angle, distance = pose_error(pose, true_pose)
            loss = float(loss_of_pose(pose))
            print(f"{number:4d}  {loss:.3e}  {angle:15.4f}  {distance / radius:16.5f}")
        if number < options.steps:
            motion, state, _ = step(motion, state)


if __name__ == "__main__":
    main()
