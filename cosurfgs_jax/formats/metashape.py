"""Cameras of Metashape: the XML file of File > Export > Export Cameras.

Source: appendix "Camera models" of the Metashape manual: the axes of the camera (x right, y down, z
    forward), the formulas of distortion, and the principal point relative to the middle of the
    picture. P1 is there the coefficient of r^2 + 2 x^2 in x, which OpenCV calls p2.
"""

import collections
import dataclasses
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosurfgs_jax import files
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.posed_photos import BrownLens, PosedPhoto, PoseFile, rigid

PROGRAM = "Metashape"
_EXPORT = "export the cameras again (File > Export > Export Cameras, Agisoft XML)"
_FRAMES = {"frame": False, "fisheye": True, "equidistant_fisheye": True}


class _Placed(NamedTuple):
    """A transform of a chunk or component: world = scale * rotation @ local + translation."""

    scale: float
    rotation: np.ndarray
    translation: np.ndarray
    is_given: bool

    @property
    def matrix(self) -> np.ndarray:
        matrix = np.eye(4)
        matrix[:3, :3] = self.scale * self.rotation
        matrix[:3, 3] = self.translation
        return matrix


def read_metashape(path: Path) -> PoseFile:
    """Reads the cameras of a chunk.

    Of several components that are placed each by itself, the one with the most cameras is taken.
    Cameras that are switched off, or not aligned, are left out.

    Raises:
        InputError: damaged, another XML file, no aligned cameras, a lens of no picture that a
            pinhole camera can replace (spherical, cylindrical), or coefficients that are not known
            here (P3, P4).
    """
    with files.reading(path, "a file of cameras of Metashape", _EXPORT):
        root = ElementTree.fromstring(path.read_bytes())
        chunk = root if root.tag == "chunk" else root.find("chunk")
        if chunk is None or chunk.find("sensors") is None or chunk.find("cameras") is None:
            raise InputError(
                f"{path}: expected a chunk with sensors and cameras, as Metashape exports it, got "
                f"a document of <{root.tag[:40]}>; {_EXPORT}"
            )
        return _read_chunk(chunk, path)


def _read_chunk(chunk: ElementTree.Element, path: Path) -> PoseFile:
    sensors = {sensor.get("id"): sensor for sensor in chunk.iter("sensor")}
    lenses: dict[str | None, BrownLens] = {}
    photos: dict[str | None, list[PosedPhoto]] = collections.defaultdict(list)
    left_out = []
    for camera in required_child(chunk, "cameras", path).iter("camera"):
        label = camera.get("label") or ""
        transform = camera.find("transform")
        if transform is None or camera.get("enabled") in ("0", "false"):
            left_out.append(label)
            continue
        where = f"{path}: camera {label}"
        number = camera.get("sensor_id")
        if number not in sensors:
            raise InputError(f"{where}: expected a sensor of the file, got {number}; {_EXPORT}")
        if number not in lenses:
            lenses[number] = _lens(sensors[number], f"{path}: sensor {number}")
        local_from_camera = numbers(transform, 16, where).reshape(4, 4)
        pose = rigid(local_from_camera[:3, :3].T, local_from_camera[:3, 3], where)
        photos[camera.get("component_id")].append(PosedPhoto(label, pose, lenses[number]))
    if not photos:
        raise InputError(f"{path}: expected aligned cameras, got {len(left_out)} without a pose")
    component = max(photos, key=lambda number: len(photos[number]))
    for number, others in photos.items():
        if number != component:
            left_out += [photo.name for photo in others]
    placed = _placed(chunk, component, path)
    system = (chunk.findtext("reference") or "").strip()
    is_local = not system or system.upper().startswith(("LOCAL_CS", "ENGCRS", "ENGINEERINGCRS"))
    found = PoseFile(
        PROGRAM,
        path,
        photos[component],
        left_out,
        has_vertical=placed.is_given,
        system_from_local=placed.matrix,
    )
    if not placed.is_given or is_local:
        return found
    return dataclasses.replace(found, system=system, is_geocentric=True)


def required_child(parent: ElementTree.Element, name: str, path: Path) -> ElementTree.Element:
    """A child element.

    Raises:
        InputError: there is none.
    """
    child = parent.find(name)
    if child is None:
        raise InputError(f"{path}: expected <{name}> in <{parent.tag}>, got none; {_EXPORT}")
    return child


def numbers(element: ElementTree.Element, count: int, where: str) -> np.ndarray:
    """The numbers of an element, f64[count].

    Raises:
        InputError: others than numbers, or another count.
    """
    words = (element.text or "").split()
    if len(words) != count:
        raise InputError(
            f"{where}: expected {count} numbers in <{element.tag}>, got {len(words)}; {_EXPORT}"
        )
    return np.array([files.number(word) for word in words])


def _placed(chunk: ElementTree.Element, component: str | None, path: Path) -> _Placed:
    """The transform of a component, or of the chunk; the identity where there is none."""
    wanted = [item for item in chunk.iter("component") if item.get("id") == component]
    for parent in (*wanted, chunk):
        transform = parent.find("transform")
        if transform is None:
            continue
        where = f"{path}: <{parent.tag}>"
        parts = {"rotation": np.eye(3).reshape(-1), "translation": np.zeros(3), "scale": np.ones(1)}
        for name, default in parts.items():
            element = transform.find(name)
            if element is not None:
                parts[name] = numbers(element, len(default), where)
        rotation = rigid(parts["rotation"].reshape(3, 3), np.zeros(3), where)[:3, :3]
        is_given = transform.find("rotation") is not None
        scale = float(parts["scale"][0])
        if not 0 < scale < np.inf:
            raise InputError(f"{where}: expected a positive scale, got {scale}; {_EXPORT}")
        return _Placed(scale, rotation, parts["translation"], is_given)
    return _Placed(1.0, np.eye(3), np.zeros(3), False)


def _lens(sensor: ElementTree.Element, where: str) -> BrownLens:
    """The lens of a sensor: of its adjusted calibration, where there is one."""
    found = sensor.findall("calibration")
    adjusted = [item for item in found if item.get("class") == "adjusted"]
    if not found:
        raise InputError(f"{where}: expected a calibration, got none; {_EXPORT}")
    calibration = (adjusted or found)[-1]
    kind = calibration.get("type") or sensor.get("type") or "frame"
    if kind not in _FRAMES:
        raise InputError(
            f"{where}: expected a camera of type {', '.join(_FRAMES)}, got {kind}; convert its "
            "pictures to frame cameras in Metashape"
        )
    size = calibration.find("resolution")
    if size is None:
        size = required_child(sensor, "resolution", Path(where))
    width, height = (files.whole_number(size.get(side) or "") for side in ("width", "height"))
    values: dict[str, float] = collections.defaultdict(float)
    for item in calibration:
        if item.text and item.text.strip() and not len(item):
            values[item.tag] = files.number(item.text.strip())
    unknown = [name for name in ("p3", "p4") if values[name]]
    if unknown:
        raise InputError(
            f"{where}: expected a calibration without {' and '.join(unknown)}, got "
            f"{values[unknown[0]]:.3g}; optimize the cameras again without them, then {_EXPORT}"
        )
    focal_y = values["f"] or values["fy"]
    focal_x = values["fx"] or focal_y + values["b1"]
    principal = (values["cx"], values["cy"])
    if values["f"]:  # older files have fx, fy, and the principal point from the corner
        principal = (width / 2 + values["cx"], height / 2 + values["cy"])
    return BrownLens(
        size=(height, width),
        focal=(focal_x, focal_y),
        principal=principal,
        radial=(values["k1"], values["k2"], values["k3"], values["k4"]),
        tangential=(values["p2"], values["p1"]),
        skew=values["b2"] or values["skew"],
        is_fisheye=_FRAMES[kind],
    )
