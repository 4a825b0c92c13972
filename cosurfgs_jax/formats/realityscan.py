"""Cameras of RealityScan (RealityCapture): its list "Internal/External camera parameters" and its
XMP files beside the photographs.

Source: "RealityCapture XMP camera math" of its support: x = R (X - position), the matrix row by
    row, focal lengths as of a picture whose longer side is 36 mm, the principal point from the
    middle as a fraction of the longer side. The angles of the list are documented nowhere; they are
    those that give the rotation of the XMP file of the same camera, of which its forum has a pair:
    camera from local = diag(1, -1, -1) (Rz(-heading) Rx(pitch) Ry(roll))^T. Of the tangential
    coefficients t1 goes with r^2 + 2 x^2 in x, as programs that import them have it.
"""

import csv
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.posed_photos import BrownLens, PosedPhoto, PoseFile, rigid

PROGRAM = "RealityScan"
_FILM_MM = 36.0
_NEEDED = ("name", "x", "y", "alt", "heading", "pitch", "roll", "f")
_ADVICE = "export it again (Export Registration, Internal/External camera parameters)"
_XMP_ADVICE = "export the XMP files again (Export, XMP files)"
_XCR = "{http://www.capturingreality.com/ns/xcr/1.1#}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_MODELS = ("perspective", "brown3", "brown4", "brown3t2", "brown4t2")
# Latitudes and longitudes of a flight differ by less than this, and heights by more.
_DEGREES = 0.05


def read_list(path: Path) -> PoseFile:
    """Reads "Internal/External camera parameters".

    Its coordinates are those of the system that was chosen at the export, which the file does not
    name.

    Raises:
        InputError: damaged, another list, or latitudes and longitudes in place of x and y.
    """
    with files.reading(path, "a list of camera parameters of RealityScan", _ADVICE):
        rows = list(csv.reader(line for line in files.iter_lines(path) if line.strip()))
        head = [word.strip().lstrip("#").strip().lower() for word in rows[0]] if rows else []
        missing = [name for name in _NEEDED if name not in head]
        if missing:
            raise InputError(
                f"{path}: expected a first line with {', '.join(_NEEDED)}, got none of "
                f"{', '.join(missing)}; {_ADVICE}"
            )
        photos = [_row(dict(zip(head, row, strict=True)), path) for row in rows[1:]]
    if not photos:
        raise InputError(f"{path}: expected a line for each photograph, got none; {_ADVICE}")
    centers = np.array([-pose[:3, :3].T @ pose[:3, 3] for pose in _poses(photos)])
    extents = np.ptp(centers, axis=0)
    if extents[:2].max() < _DEGREES and np.abs(centers[:, 2]).max() > 1:
        raise InputError(
            f"{path}: expected x and y in metres, got them within {extents[:2].max():.2g} of each "
            "other, which are degrees; export it again in a projected coordinate system"
        )
    return PoseFile(PROGRAM, path, photos)


def _poses(photos: list[PosedPhoto]) -> list[np.ndarray]:
    return [photo.camera_from_local for photo in photos]


def _row(row: dict[str, str], path: Path) -> PosedPhoto:
    name = row.pop("name").strip()
    known = ("px", "py", "k1", "k2", "k3", "k4", "t1", "t2", *_NEEDED[1:])
    value = {key: files.number(row.get(key, "").strip() or "0") for key in known}
    heading, pitch, roll = np.deg2rad([value["heading"], value["pitch"], value["roll"]])
    turned = _about(2, -heading) @ _about(0, pitch) @ _about(1, roll)
    rotation = np.diag([1.0, -1, -1]) @ turned.T
    center = np.array([value["x"], value["y"], value["alt"]])
    lens = _lens(
        value["f"],
        (value["px"], value["py"]),
        [value[key] for key in ("k1", "k2", "k3", "k4", "t1", "t2")],
    )
    return PosedPhoto(name, rigid(rotation, center, f"{path}: {name}"), lens)


def _about(axis: int, angle: float) -> np.ndarray:
    """The rotation about an axis, f64[3,3]; radians, counter-clockwise seen from its end."""
    rotation = np.eye(3)
    first = (axis + 1) % 3
    second = (axis + 2) % 3
    rotation[first, first] = rotation[second, second] = np.cos(angle)
    rotation[first, second] = -np.sin(angle)
    rotation[second, first] = np.sin(angle)
    return rotation


def _lens(focal_mm: float, principal: tuple[float, float], values: list[float]) -> BrownLens:
    """Of the six coefficients k1, k2, k3, k4, t1, t2."""
    k1, k2, k3, k4, t1, t2 = values
    focal = focal_mm / _FILM_MM
    return BrownLens(
        size=None,
        focal=(focal, focal),
        principal=principal,
        radial=(k1, k2, k3, k4),
        tangential=(t2, t1),
    )


def read_xmp_folder(folder: Path) -> PoseFile:
    """Reads the XMP files of a folder, each named after its photograph.

    Raises:
        InputError: none has a pose, one is damaged, or a lens is of another model than Brown's.
    """
    photos = []
    left_out = []
    for path in sorted(folder.rglob("*.xmp")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        with files.reading(path, "an XMP file of RealityScan", _XMP_ADVICE):
            root = ElementTree.fromstring(path.read_bytes())
            found = next((item for item in root.iter(f"{_RDF}Description")), None)
            position = None if found is None else _xmp_text(found, "Position")
            if found is None or not position:  # of another program, or without a pose
                left_out.append(name)
                continue
            photos.append(_xmp_photo(found, name, path))
    if not photos:
        raise InputError(
            f"{folder}: expected XMP files with poses, got {len(left_out)} without; {_XMP_ADVICE}"
        )
    return PoseFile(PROGRAM, folder, photos, left_out)


def _xmp_text(description: ElementTree.Element, name: str) -> str:
    """A value, which is an attribute in some versions and an element in others."""
    return (description.get(_XCR + name) or description.findtext(_XCR + name) or "").strip()


def _xmp_photo(description: ElementTree.Element, name: str, path: Path) -> PosedPhoto:
    def numbers(key: str, count: int, default: str = "") -> np.ndarray:
        words = (_xmp_text(description, key) or default).split()
        if len(words) != count:
            raise InputError(
                f"{path}: expected {count} numbers as xcr:{key}, got {len(words)}; {_XMP_ADVICE}"
            )
        return np.array([files.number(word) for word in words])

    model = _xmp_text(description, "DistortionModel") or "perspective"
    if model not in _MODELS:
        raise InputError(
            f"{path}: expected a distortion model of {', '.join(_MODELS)}, got {model[:40]}; "
            f"choose Brown3 in the alignment settings, align again, and {_XMP_ADVICE}"
        )
    if numbers("Skew", 1, "0")[0] != 0 or abs(numbers("AspectRatio", 1, "1")[0] - 1) > 1e-9:
        raise InputError(f"{path}: expected a skew of 0 and an aspect ratio of 1; {_XMP_ADVICE}")
    coefficients = numbers("DistortionCoeficients", 6, "0 0 0 0 0 0")
    principal = (
        float(numbers("PrincipalPointU", 1, "0")[0]),
        float(numbers("PrincipalPointV", 1, "0")[0]),
    )
    lens = _lens(float(numbers("FocalLength35mm", 1)[0]), principal, coefficients.tolist())
    rotation = numbers("Rotation", 9).reshape(3, 3)
    return PosedPhoto(name, rigid(rotation, numbers("Position", 3), str(path)), lens)
