"""The normalised frame that training works in, and the transform back to the dataset's. NumPy,
float64.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.rotations import quat_from_matrix, quat_multiply
from cosurfgs_jax.geometry.spherical_harmonics import rotate
from cosurfgs_jax.types import Surfels, on_host

FORMAT = 1
# Frames whose z axis is up are common (surveys, GPS); a slope or a tilted flight must not turn
# them.
KEEP_Z_DEG = 15.0
# Least spread of the cameras' right-hand axes that fixes the vertical: about 18 degrees of heading.
_MIN_HEADING_SPREAD = 0.1
# Points count as flat if their thickness is less than half their smaller extent.
_MAX_FLATNESS = 0.25


def measure_up(
    camera_from_dataset: Float[np.ndarray, "v 4 4"], points: Float[np.ndarray, "p 3"]
) -> Float[np.ndarray, "3"]:
    """The vertical of a dataset, from its cameras and points.

    Photographs are hardly ever rolled, so the cameras' right-hand axes are horizontal and the
    vertical is what is most at right angles to all of them, whether cameras look down, ahead or
    aslant. Where all cameras have the same heading that says nothing; the normal of the best plane
    of the points is taken if they are flat, else the mean up axis. What is above is known from the
    mean of up axes minus viewing directions. Photographs of one facade, all taken straight at it,
    give the facade's normal.

    Args:
        camera_from_dataset: f64[V,4,4].
        points: f64[P,3], same frame.
    Returns:
        f64[3], unit length.
    Source: **ours**.
    """
    right, down, forward = (camera_from_dataset[:, axis, :3] for axis in range(3))
    hint = -down.mean(0) - forward.mean(0)
    spread, axes = np.linalg.eigh(right.T @ right / len(right))
    up = axes[:, 0]
    if spread[1] - spread[0] < _MIN_HEADING_SPREAD:
        offsets = points - np.median(points, axis=0)
        distances = np.linalg.norm(offsets, axis=1)
        offsets = offsets[distances <= np.percentile(distances, 90)]
        extent, axes = np.linalg.eigh(offsets.T @ offsets)
        if extent[0] < _MAX_FLATNESS * extent[1]:
            up = axes[:, 0]
        elif np.linalg.norm(down.mean(0)) > 0.5:
            up = -down.mean(0)
        else:
            up = hint
    length = np.linalg.norm(up)
    if not length > 1e-6:
        return np.array([0.0, 0.0, 1.0])
    up = up / length
    if up @ hint < 0:
        up = -up
    return up


def estimate_up(
    camera_from_dataset: Float[np.ndarray, "v 4 4"], points: Float[np.ndarray, "p 3"]
) -> Float[np.ndarray, "3"]:
    """The vertical of a dataset, for grouping by ground position and for looking at it: that of
    `measure_up`, or +z exactly if it is within KEEP_Z_DEG of it.

    Args:
        camera_from_dataset: f64[V,4,4].
        points: f64[P,3], same frame.
    Returns:
        f64[3], unit length.
    """
    up = measure_up(camera_from_dataset, points)
    if up[2] > np.cos(np.deg2rad(KEEP_Z_DEG)):
        return np.array([0.0, 0.0, 1.0])
    return up


def rotation_to_z(up: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The smallest rotation that takes a unit vector to +z."""
    if up[2] < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    # Rodrigues' formula with axis up x z and cosine up.z.
    x, y, z = up
    cross = np.array([[0.0, 0.0, -x], [0.0, 0.0, -y], [x, y, 0.0]])
    return np.eye(3) + cross + cross @ cross / (1 + z)


@dataclasses.dataclass(frozen=True)
class SceneFrame:
    """The similarity to the world of training: world = scale * rotation @ dataset + translation.

    | field         | shape    | unit                                        |
    |---------------|----------|---------------------------------------------|
    | `scale`       |          | world lengths per dataset length            |
    | `rotation`    | f64[3,3] | proper rotation, takes the scene's up to +z |
    | `translation` | f64[3]   | world                                       |

    It is applied in float64: survey coordinates of millions of metres keep their millimetres,
        float32 has half a metre.
    """

    scale: float
    rotation: np.ndarray
    translation: np.ndarray

    @classmethod
    def from_points(
        cls,
        points: Float[np.ndarray, "p 3"],
        camera_centers: Float[np.ndarray, "v 3"],
        up: Float[np.ndarray, "3"],
    ) -> "SceneFrame":
        """The frame that is centred on the ground, has +z up, and in which the scene is about 1 in
        size.

        Origin: median of the points on the ground plane, lower fifth of their heights. Length 1:
        the larger of 1.1 times the 95th percentile of the cameras' distances from it and the median
        distance of the points, so that neither stray points nor a far background set the scale.

        Args:
            points: f64[P,3], dataset.
            camera_centers: f64[V,3], dataset.
            up: f64[3], unit vector, dataset.
        Raises:
            InputError: all cameras and points are at one place.
        Source: **ours**; 3DGS takes 1.1 times the largest distance of a camera from the mean
            camera, which is nothing where cameras stand close together and look at a far place.
        """
        rotation = rotation_to_z(np.asarray(up, np.float64))
        points = points @ rotation.T
        centers = camera_centers @ rotation.T
        origin = np.array([*np.median(points[:, :2], axis=0), np.percentile(points[:, 2], 20)])
        reach = 1.1 * np.percentile(np.linalg.norm(centers - origin, axis=1), 95)
        extent = max(reach, np.median(np.linalg.norm(points - origin, axis=1)))
        if not np.isfinite(extent) or extent <= 0:
            raise InputError(
                f"scene: expected cameras and points at different places, got an extent of {extent}"
            )
        return cls(float(1 / extent), rotation, -origin / extent)

    def to_world(self, points: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
        """Dataset points [...,3] in the world, f64."""
        return self.scale * (np.asarray(points, np.float64) @ self.rotation.T) + self.translation

    def to_dataset(self, points: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
        """World points [...,3] in the dataset's frame, f64."""
        return (np.asarray(points, np.float64) - self.translation) @ self.rotation / self.scale

    def directions_to_dataset(
        self, directions: Float[np.ndarray, "*batch 3"]
    ) -> Float[np.ndarray, "*batch 3"]:
        """World directions, such as normals, [...,3] in the dataset's frame, f64, length kept."""
        return np.asarray(directions, np.float64) @ self.rotation

    def camera_to_world_frame(
        self, camera_from_dataset: Float[np.ndarray, "*batch 4 4"]
    ) -> Float[np.ndarray, "*batch 4 4"]:
        """Poses for training.

        Args:
            camera_from_dataset: f64[...,4,4], rigid, camera from the dataset's frame.
        Returns:
            f64[...,4,4], rigid, camera from the training world; lengths in the camera are scaled
            too, so pixels stay.
        """
        poses = np.array(camera_from_dataset, np.float64)
        rotations = poses[..., :3, :3] @ self.rotation.T
        shifts = self.scale * poses[..., :3, 3] - rotations @ self.translation
        poses[..., :3, :3] = rotations
        poses[..., :3, 3] = shifts
        return poses

    def depth_to_dataset(self, depth):
        """World depths, of any shape and dtype, in dataset lengths."""
        return depth / self.scale

    def discs_to_dataset(self, surfels: Surfels) -> tuple[np.ndarray, np.ndarray]:
        """Centres f64[n,3] and log scales f32[n,2] of world surfels in the dataset's frame."""
        log_scales = np.asarray(surfels.log_scales, np.float64) - np.log(self.scale)
        return self.to_dataset(np.asarray(surfels.means)), log_scales.astype(np.float32)

    def surfels_to_dataset(self, surfels: Surfels) -> Surfels:
        """Surfels in the dataset's frame, as NumPy arrays: means in float64, the rest in float32.

        Args:
            surfels: in the world.
        Returns:
            Means, orientations, scales and spherical harmonics of the same discs; the other fields
            unchanged.
        """
        back = self.rotation.T
        sh = np.asarray(surfels.sh, np.float64)
        quats = np.asarray(surfels.quats, np.float64)
        turn = np.broadcast_to(quat_from_matrix(back), quats.shape)
        means, log_scales = self.discs_to_dataset(surfels)
        moved = {
            "means": on_host(means),
            "quats": on_host(quat_multiply(turn, quats).astype(np.float32)),
            "log_scales": on_host(log_scales),
            "sh": on_host(np.asarray(rotate(sh, back)).astype(np.float32)),
        }
        kept = {
            name: on_host(np.asarray(value, np.float32))
            for name, value in surfels.by_name().items()
            if name not in moved
        }
        return Surfels(**moved, **kept, alive=on_host(np.asarray(surfels.alive)))

    def to_dict(self) -> dict:
        """For a JSON file; Python writes and reads float64 exactly."""
        return {
            "format": FORMAT,
            "scale": self.scale,
            "rotation": self.rotation.tolist(),
            "translation": self.translation.tolist(),
        }

    @classmethod
    def from_dict(cls, table: dict) -> "SceneFrame":
        """The frame that `to_dict` gave.

        Raises:
            InputError: not such a table, or of another format number.
        """
        try:
            if table["format"] != FORMAT:
                raise InputError(
                    f"scene frame: expected format {FORMAT}, got {table['format']}; train again"
                )
            rotation = np.array(table["rotation"], np.float64)
            translation = np.array(table["translation"], np.float64)
            frame = cls(float(table["scale"]), rotation.reshape(3, 3), translation.reshape(3))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"scene frame: expected format, scale, rotation and translation, got {error!r}"
            ) from None
        return frame
