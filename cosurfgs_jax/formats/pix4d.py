"""Cameras of Pix4Dmapper: the folder `1_initial/params` of a project.

Read are `*_calibrated_camera_parameters.txt` (intrinsics and poses of each photograph), the offset
of its coordinates in `*_offset.xyz` and their system in `*_wkt.prj` beside it.

Source: the head of the file itself, m = K [R|-Rt] X, and "How are the Internal and External Camera
    Parameters defined?" of Pix4D's support for the distortion, which is OpenCV's.
"""

from pathlib import Path

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.posed_photos import BrownLens, PosedPhoto, PoseFile, rigid

PROGRAM = "Pix4D"
ENDING = "_calibrated_camera_parameters.txt"
_HEAD = "camera model m"
_LINES = 10  # of a photograph
_ADVICE = "process step 1 again with Camera Internals and Externals among the exports"


def find_parameters(path: Path) -> Path | None:
    """The file of parameters that is meant by it, by another file beside it or by their folder."""
    folder = path if path.is_dir() else path.parent
    if path.name.endswith(ENDING):
        return path
    is_of_pix4d = path.is_dir() or "_calibrated_" in path.name or path.suffix == ".xyz"
    if not is_of_pix4d:
        return None
    found = sorted(folder.glob(f"*{ENDING}"))
    return found[0] if len(found) == 1 else None


def read_pix4d(path: Path) -> PoseFile:
    """Reads the cameras of a project.

    Args:
        path: of `*_calibrated_camera_parameters.txt`.
    Raises:
        InputError: damaged, or no photographs in it.
    """
    with files.reading(path, "a file of calibrated camera parameters of Pix4D", _ADVICE):
        lines = [line.strip() for line in files.iter_lines(path)]
        begins = [number for number, line in enumerate(lines) if line.startswith(_HEAD)]
        if not begins:
            raise InputError(
                f"{path}: expected the line {_HEAD!r} in its head, got none; {_ADVICE}"
            )
        body = [line for line in lines[begins[0] + 1 :] if line]
        if not body or len(body) % _LINES:
            raise InputError(
                f"{path}: expected {_LINES} lines for each photograph, got {len(body)} in all; "
                f"{_ADVICE}"
            )
        photos = [
            _photo(body[start : start + _LINES], path) for start in range(0, len(body), _LINES)
        ]
    prefix = path.name.removesuffix(ENDING)
    offset = np.eye(4)
    offset_path = path.with_name(f"{prefix}_offset.xyz")
    if offset_path.is_file():
        with files.reading(offset_path, "three numbers", _ADVICE):
            offset[:3, 3] = _numbers(" ".join(files.read_lines(offset_path)), 3, str(offset_path))
    system_path = path.with_name(f"{prefix}_wkt.prj")
    system = ""
    if system_path.is_file():
        with files.reading(system_path, "a coordinate system as WKT", "remove it"):
            system = files.decode(system_path.read_bytes(), system_path).strip()
    return PoseFile(PROGRAM, path, photos, system=system, system_from_local=offset)


def _numbers(line: str, count: int, where: str) -> np.ndarray:
    words = line.split()
    if len(words) != count:
        raise InputError(f"{where}: expected {count} numbers, got {line[:60]!r}; {_ADVICE}")
    return np.array([files.number(word) for word in words])


def _photo(lines: list[str], path: Path) -> PosedPhoto:
    words = lines[0].rsplit(maxsplit=2)
    if len(words) != 3:
        raise InputError(
            f"{path}: expected the name of a photograph, its width and its height, got "
            f"{lines[0][:60]!r}; {_ADVICE}"
        )
    name = words[0]
    width, height = map(files.whole_number, words[1:])
    where = f"{path}: {name}"
    camera = np.array([_numbers(line, 3, where) for line in lines[1:4]])
    k1, k2, k3 = map(float, _numbers(lines[4], 3, where))
    p1, p2 = map(float, _numbers(lines[5], 2, where))
    center = _numbers(lines[6], 3, where)
    rotation = np.array([_numbers(line, 3, where) for line in lines[7:10]])
    lens = BrownLens(
        size=(height, width),
        focal=(float(camera[0, 0]), float(camera[1, 1])),
        principal=(float(camera[0, 2]), float(camera[1, 2])),
        radial=(k1, k2, k3, 0.0),
        tangential=(p1, p2),
        skew=float(camera[0, 1]),
    )
    return PosedPhoto(name, rigid(rotation, center, where), lens)
