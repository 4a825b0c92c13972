"""The files of poses of MatrixCity: transforms.json of a block as the game engine wrote it, and the
transforms_train.json and transforms_test.json of its splits.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np

from cosurfgs_jax.data import transforms_json
from cosurfgs_jax.data.capture import Capture, Source
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.files import read_json, reading

# In the first bytes of a file: the engine's matrices, or photographs in the folders of blocks.
_SIGNS = re.compile(rb'"rot_mat"|"file_path"\s*:\s*"(\.\./)+(train|test)/block_')
_HEAD_BYTES = 2**16


def detects(source: Source) -> Path | None:
    """The dataset's folder, if its files of poses are MatrixCity's."""
    found = transforms_json.find_files(source.root)
    if not found:
        return None
    with reading(found[0], "a file of poses", "write it again"), open(found[0], "rb") as file:
        is_ours = _SIGNS.search(file.read(_HEAD_BYTES)) is not None
    return source.root if is_ours else None


def _usual_matrix(value) -> list | None:
    """A pose without the scale of the engine's matrix and of its last number; what is no matrix is
    left to `transforms_json`.
    """
    try:
        pose = np.array(value, np.float64)
    except (TypeError, ValueError):
        return value
    if pose.shape != (4, 4) or not np.isfinite(pose).all() or np.any(pose[3, :3]):
        return value
    scale = np.cbrt(np.linalg.det(pose[:3, :3]))
    if not scale > 0:
        return value
    pose[:3, :3] /= scale
    pose[3, 3] = 1.0
    return pose.tolist()


def _usual_frame(frame, folder: str, where: str) -> dict:
    """A frame as transforms.json has it: its file, and a pose without scale."""
    if not isinstance(frame, dict):
        raise InputError(f"{where}: expected an object, got {repr(frame)[:80]}")
    matrix = frame.get("transform_matrix", frame.get("rot_mat"))
    usual = frame | {"transform_matrix": _usual_matrix(matrix)}
    number = frame.get("frame_index")
    if "file_path" not in frame and isinstance(number, int):
        usual["file_path"] = f"{folder}{number:04d}.png"
    return usual


def _read_file(path: Path, is_for_testing: bool, folder: str = "") -> transforms_json.PoseFile:
    meta = read_json(path)
    if isinstance(meta, dict) and isinstance(meta.get("frames"), list):
        frames = [
            _usual_frame(frame, folder, f"{path}: frame {number}")
            for number, frame in enumerate(meta["frames"])
        ]
        meta = meta | {"frames": frames}
    return transforms_json.as_pose_file(path, meta, is_for_testing)


def read_matrix_city(root: Path) -> Capture:
    """Reads the poses of a block or of a split of MatrixCity.

    The poses of splits (`aerial/pose/block_A`) are in units of 100 m, those of a block as the
    engine wrote it (`aerial/train/block_1`) in metres; z is up in both, and output is in the unit
    of the file. The test photographs of such a block are those of `aerial/test/block_1_test`, if it
    is there. Points come from a COLMAP model in sparse/ or colmap/sparse/, of any frame.

    Args:
        root: the folder of transforms.json, or of transforms_train.json.
    Returns:
        A capture without tracks; `test_names` are the photographs of the test file.
    Raises:
        InputError: as `transforms_json.read_transforms`.
    Source: the scripts beside the dataset. The engine's matrices are those of the camera's axes in
        the world, right, up and back, times 0.01.
    """
    found = transforms_json.find_files(root)
    with reading(found[0], "a file of poses", "write it again"):
        files = [_read_file(path, path.name == "transforms_test.json") for path in found]
        test_folder = root.absolute().parent.parent / "test" / f"{root.absolute().name}_test"
        test_file = test_folder / transforms_json.FILE_NAME
        looked_for = ()
        if found[0].name.lower() == transforms_json.FILE_NAME:
            looked_for = (str(test_file),)
            if test_file.is_file():
                files.append(_read_file(test_file, True, f"../../test/{test_folder.name}/"))
        capture = transforms_json.read_files(root, files)
        return dataclasses.replace(capture, outside=(*(capture.outside or ()), *looked_for))
