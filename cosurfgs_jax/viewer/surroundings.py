"""What stands around the model on the page: cameras, cells of blocks, the mesh. In the world of
training, whose extent is about 1.
"""

import numpy as np
from jaxtyping import Float

from cosurfgs_jax.geometry.cameras import camera_center
from cosurfgs_jax.geometry.rotations import matrix_from_quat, quat_from_matrix
from cosurfgs_jax.geometry.scene_frame import SceneFrame
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.partition import Partition
from cosurfgs_jax.surface import Mesh
from cosurfgs_jax.viewer.drawing import PageCamera

_CORNERS = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
_SIDES = [
    (i, j) for i in range(8) for j in range(i) if np.abs(_CORNERS[i] - _CORNERS[j]).sum() == 1
]


def page_camera(views: Views, frame: SceneFrame, view: int) -> PageCamera:
    """The camera of a photograph.

    Args:
        views: of the scene, dataset frame.
        frame: to the world.
        view: its number.
    """
    pose = frame.camera_to_world_frame(views.camera_from_dataset[view])
    height, width = views.image_sizes[view]
    focal_x, focal_y = views.intrinsics[view][[0, 1], [0, 1]]
    return PageCamera(
        wxyz=np.asarray(quat_from_matrix(pose[:3, :3].T)),
        position=camera_center(pose[None])[0],
        fov=float(2 * np.arctan(height / 2 / focal_y)),
        aspect=float(width / focal_x * focal_y / height),
    )


def looked_at(camera: PageCamera, ground: float = 0.0) -> Float[np.ndarray, "3"]:
    """Where the middle of a camera's picture meets the ground, or a point at length 1 where it does
    not look down.

    Args:
        camera: of the page.
        ground: its height, world.
    """
    direction = matrix_from_quat(camera.wxyz)[:, 2]
    length = 1.0
    if direction[2] < -0.1:
        length = max((ground - camera.position[2]) / direction[2], 1e-3)
    return camera.position + length * direction


def cell_sides(partition: Partition) -> Float[np.ndarray, "s 2 3"]:
    """The sides of the boxes of all cells, as pairs of points, world; twelve a block, in order."""
    boxes = []
    for block in range(partition.num_blocks):
        low = np.array([*partition.inner_lows[block], partition.low_z[block]])
        high = np.array([*partition.inner_highs[block], partition.high_z[block]])
        boxes.append((low + _CORNERS * (high - low))[_SIDES])
    return np.concatenate(boxes)


def mesh_in_world(mesh: Mesh, frame: SceneFrame) -> Mesh:
    """A mesh of the dataset's frame in the world."""
    normals = mesh.vertex_normals @ frame.rotation.T
    return Mesh(
        frame.to_world(mesh.vertices),
        mesh.triangles,
        mesh.vertex_colors,
        normals,
        vertex_confidence=mesh.vertex_confidence,
    )
