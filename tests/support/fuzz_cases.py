"""What the mutation tests and scripts/fuzz.py share: small valid files for every reader, and what
was read of spoilt ones.
"""

import json
import logging
import os
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import scene_layouts
from PIL import Image
from spoil import spoil_bytes, spoil_json, spoil_text

from cosurfgs_jax import files, report, settings_file
from cosurfgs_jax.collab.teachers import Teachers
from cosurfgs_jax.data import split
from cosurfgs_jax.data.ground_truth import load_ground_truth
from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.data.loading import load_scene
from cosurfgs_jax.formats import ply
from cosurfgs_jax.formats.splat_ply import read_surfels_ply
from cosurfgs_jax.formats.torch_file import read_torch
from cosurfgs_jax.model import compact
from cosurfgs_jax.run_status import PlannedStage, status_lines, write_plan
from cosurfgs_jax.settings import DataSettings, GeneratedSettings, Settings
from cosurfgs_jax.surface.mesh import read_mesh_ply
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.run_log import read_history
from cosurfgs_jax.types import SurfelParams, param_shapes
from cosurfgs_jax.workdir import BLOCK, Workdir

WIDTH = 64
HEIGHT = 48
FOCAL = 60.0
NUM_VIEWS = 6
NUM_POINTS = 40
DISC_PX = 2.5  # radius of a point in photographs
NOISE_PX = 0.1  # of features, along each side
MAX_SHIFT_PX = 0.1
NEGLIGIBLE = "a shift of less than 0.1 pixels"


class Reader(NamedTuple):
    """A reader of files of others.

    | field   |                                                                                    |
    |---------|------------------------------------------------------------------------------------|
    | `name`  |                                                                                    |
    | `write` | (folder) -> the files to be spoilt; others may lie beside them                     |
    | `read`  | (folder) -> what was read, as a flat dict of arrays and texts, to be compared with |
    |         | the truth                                                                          |
    | `spoil` | (random numbers, bytes) -> other bytes                                             |
    """

    name: str
    write: Callable[[Path], list[Path]]
    read: Callable[[Path], dict]
    spoil: Callable[[np.random.Generator, bytes], bytes]


class Heard(logging.Handler):
    """Whether the package said anything of the file while it was read."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _poses() -> tuple[np.ndarray, np.ndarray]:
    """Quaternions wxyz and shifts of cameras in a row that look along z."""
    turns = 0.05 * np.arange(NUM_VIEWS)
    quats = np.stack(
        [np.cos(turns / 2), np.zeros(NUM_VIEWS), np.sin(turns / 2), np.zeros(NUM_VIEWS)], axis=-1
    )
    return quats, np.stack(
        [-0.5 * np.arange(NUM_VIEWS), np.zeros(NUM_VIEWS), np.full(NUM_VIEWS, 4.0)], axis=-1
    )


def _rotations() -> np.ndarray:
    """camera_from_dataset, turned about y."""
    quats, _ = _poses()
    cos = quats[:, 0] ** 2 - quats[:, 2] ** 2
    sin = 2 * quats[:, 0] * quats[:, 2]
    rows = [[cos, 0 * cos, sin], [0 * cos, 1 + 0 * cos, 0 * cos], [-sin, 0 * cos, cos]]
    return np.moveaxis(np.array(rows), -1, 0)


def _points() -> tuple[np.ndarray, np.ndarray]:
    """Points in the pictures of all views in turn."""
    rng = np.random.default_rng(3)
    views = np.arange(NUM_POINTS) % NUM_VIEWS
    size = np.array([WIDTH, HEIGHT])
    pixels = rng.uniform(0.2, 0.8, (NUM_POINTS, 2)) * size
    rays = np.concatenate([(pixels - size / 2) / FOCAL, np.ones((NUM_POINTS, 1))], axis=1)
    points = rays * rng.uniform(2.5, 5.5, (NUM_POINTS, 1)) - _poses()[1][views]
    return (
        np.einsum("pji,pj->pi", _rotations()[views], points),
        rng.integers(0, 256, (NUM_POINTS, 3)),
    )


class _Features(NamedTuple):
    """Where the points are seen: as far from where they project as features are found."""

    views: np.ndarray  # i64[T], ordered by points
    points: np.ndarray  # i64[T]
    places: np.ndarray  # i64[T], among the features of the view
    pixels: np.ndarray  # f64[T,2]
    errors: np.ndarray  # f64[P], mean distances


def _features() -> _Features:
    points = np.einsum("vij,pj->pvi", _rotations(), _points()[0]) + _poses()[1]
    pixels = FOCAL * points[..., :2] / points[..., 2:] + np.array([WIDTH, HEIGHT]) / 2
    is_seen = ((pixels > 0) & (pixels < [WIDTH, HEIGHT])).all(axis=-1) & (points[..., 2] > 0)
    owners, views = np.nonzero(is_seen)
    noise = np.random.default_rng(5).normal(0, NOISE_PX, (len(views), 2))
    distances = np.hypot(*noise.T)
    return _Features(
        views,
        owners,
        (np.cumsum(is_seen, axis=0) - 1)[is_seen],
        pixels[is_seen] + noise,
        np.bincount(owners, distances) / np.bincount(owners),
    )


def _names(ending: str = "png") -> list[str]:
    return [f"flight/IMG_{number:04d}.{ending}" for number in range(NUM_VIEWS)]


def _picture(number: int, mode: str = "RGB") -> Image.Image:
    waves = np.sin(
        np.arange(HEIGHT)[:, None, None] * 0.3
        + np.arange(WIDTH)[:, None] * 0.2
        + np.arange(3)
        + number
    )
    return Image.fromarray((127 + 100 * waves).astype(np.uint8)).convert(mode)


def _write_pictures(folder: Path, ending: str = "png", **choices) -> list[Path]:
    paths = []
    for number, name in enumerate(_names(ending)):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _picture(number).save(path, **choices)
        paths.append(path)
    return paths


def _write_binary(folder: Path, ending: str = "png") -> list[Path]:
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    quats, shifts = _poses()
    points, colors = _points()
    features = _features()
    data = struct.pack("<QIiQQ4d", 1, 1, 1, WIDTH, HEIGHT, FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2)
    (model / "cameras.bin").write_bytes(data)
    data = struct.pack("<Q", NUM_VIEWS)
    for number, name in enumerate(_names(ending)):
        data += (
            struct.pack("<I7dI", number + 1, *quats[number], *shifts[number], 1)
            + name.encode()
            + b"\0"
        )
        chosen = np.flatnonzero(features.views == number)
        data += struct.pack("<Q", len(chosen) + 1)
        for pixel, point in zip(features.pixels[chosen], features.points[chosen], strict=True):
            data += struct.pack("<ddq", *pixel, point + 1)
        data += struct.pack("<ddq", 1.5, 2.5, -1)
    (model / "images.bin").write_bytes(data)
    data = struct.pack("<Q", NUM_POINTS)
    for number in range(NUM_POINTS):
        track = np.flatnonzero(features.points == number)
        color = colors[number].tolist()
        head = (number + 1, *points[number], *color, features.errors[number], len(track))
        data += struct.pack("<Q3d3BdQ", *head)
        for entry in track:
            data += struct.pack("<II", 1 + features.views[entry], features.places[entry])
    (model / "points3D.bin").write_bytes(data)
    return sorted(model.iterdir())


def _write_text(folder: Path) -> list[Path]:
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    quats, shifts = _poses()
    points, colors = _points()
    features = _features()
    (model / "cameras.txt").write_text(
        f"# Camera list\n# Number of cameras: 1\n1 PINHOLE {WIDTH} {HEIGHT} {FOCAL} {FOCAL} "
        f"{WIDTH / 2} {HEIGHT / 2}\n"
    )
    lines = [
        "# Image list with two lines of data per image:",
        f"# Number of images: {NUM_VIEWS}, mean observations: 2",
    ]
    for number, name in enumerate(_names()):
        lines.append(
            " ".join(map(repr, [number + 1, *quats[number].tolist(), *shifts[number].tolist(), 1]))
            + f" {name}"
        )
        chosen = np.flatnonzero(features.views == number)
        pairs = zip(features.pixels[chosen].tolist(), features.points[chosen], strict=True)
        lines.append(" ".join(f"{x!r} {y!r} {point + 1}" for (x, y), point in pairs) + " 3.5 4 -1")
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    lines = [
        "# 3D point list with one line of data per point:",
        f"# Number of points: {NUM_POINTS}, mean track length: 3",
    ]
    for number in range(NUM_POINTS):
        chosen = np.flatnonzero(features.points == number)
        pairs = zip(features.views[chosen], features.places[chosen], strict=True)
        track = " ".join(f"{1 + view} {place}" for view, place in pairs)
        values = [number + 1, *points[number].tolist(), *colors[number].tolist()]
        error = float(features.errors[number])
        lines.append(" ".join(map(repr, [*values, error])) + f" {track}")
    (model / "points3D.txt").write_text("\n".join(lines) + "\n")
    return sorted(model.iterdir())


def _with(*writers: Callable[[Path], list[Path]], spoilt: int = 0) -> Callable[[Path], list[Path]]:
    """Writes with all of them; the files of the one of this number are spoilt."""

    def write(folder: Path) -> list[Path]:
        return [writer(folder) for writer in writers][spoilt]

    return write


def _write_transforms(folder: Path) -> list[Path]:
    _, shifts = _poses()
    frames = []
    for number, name in enumerate(_names()):
        rotation = _rotations()[number]
        pose = np.eye(4)
        pose[:3, :3] = rotation.T @ np.diag([1, -1, -1])
        pose[:3, 3] = -rotation.T @ shifts[number]
        frames.append(
            {
                "file_path": f"images/{name}",
                "transform_matrix": pose.tolist(),
                "mask_path": f"masks/{number}.png",
            }
        )
        (folder / "masks").mkdir(exist_ok=True)
        Image.new("L", (WIDTH, HEIGHT), 255).save(folder / "masks" / f"{number}.png")
    table = {
        "camera_model": "OPENCV",
        "fl_x": FOCAL,
        "fl_y": FOCAL,
        "cx": WIDTH / 2,
        "cy": HEIGHT / 2,
        "w": WIDTH,
        "h": HEIGHT,
        "k1": 0.0,
        "k2": 0.0,
        "p1": 0.0,
        "p2": 0.0,
        "is_fisheye": False,
        "ply_file_path": "points.ply",
        "applied_transform": np.eye(4)[:3].tolist(),
        "test_filenames": [f"images/{_names()[0]}"],
        "frames": frames,
    }
    (folder / "transforms.json").write_text(json.dumps(table))
    _write_points(folder)
    return [folder / "transforms.json"]


def _photograph(number: int) -> Image.Image:
    """What the camera of this number sees of the points: discs, near ones over the others."""
    points, colors = _points()
    points = points @ _rotations()[number].T + _poses()[1][number]
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    for point in np.argsort(-points[:, 2]):
        x, y = FOCAL * points[point, :2] / points[point, 2] + np.array([WIDTH, HEIGHT]) / 2
        picture[np.hypot(columns - x, rows - y) < DISC_PX] = colors[point]
    return Image.fromarray(picture)


def _write_views(folder: Path) -> list[Path]:
    paths = _write_pictures(folder)
    for number, path in enumerate(paths):
        _photograph(number).save(path)
    return paths


def _write_points(folder: Path, form: str = "ascii") -> list[Path]:
    points, colors = _points()
    if form != "ascii":
        table = ply.table_of(("x y z", "f4", points), ("red green blue", "u1", colors))
        ply.write_ply(folder / "points.ply", table)
        return [folder / "points.ply"]
    lines = [
        "ply",
        "format ascii 1.0",
        f"element vertex {NUM_POINTS}",
        "property double x",
        "property double y",
        "property double z",
        "property uchar red",
        "property uchar green",
        "property uchar blue",
        "end_header",
    ]
    lines += [
        " ".join(map(repr, [*point, *color]))
        for point, color in zip(points.tolist(), colors.tolist(), strict=True)
    ]
    (folder / "points.ply").write_text("\n".join(lines) + "\n")
    return [folder / "points.ply"]


def _write_mesh(folder: Path) -> list[Path]:
    points, colors = _points()
    table = ply.table_of(("x y z", "f4", points), ("red green blue", "u1", colors))
    triangles = np.random.default_rng(0).integers(0, NUM_POINTS, (30, 3)).astype(np.int32)
    ply.write_ply(folder / "mesh.ply", table, triangles)
    return [folder / "mesh.ply"]


def _write_surfels(folder: Path) -> list[Path]:
    names = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 rot_0 rot_1 rot_2 rot_3"
    values = np.random.default_rng(0).normal(size=(20, 16))
    ply.write_ply(folder / "surfels.ply", ply.table_of((names, "f4", values)))
    return [folder / "surfels.ply"]


def _write_truth(folder: Path) -> list[Path]:
    root = folder / "ground_truth"
    root.mkdir()
    points, _ = _points()
    ply.write_ply(
        root / "points.ply", ply.table_of(("x y z", "f8", points), ("nx ny nz", "f8", points))
    )
    _write_mesh(root)
    return [root / "points.ply", root / "mesh.ply"]


def _write_teachers(folder: Path) -> list[Path]:
    path = folder / "teachers" / "edge" / "0000" / "000002.npz"
    path.parent.mkdir(parents=True)
    size = (HEIGHT, WIDTH)
    np.savez(
        path,
        color=np.zeros((*size, 3), np.uint8),
        flags=np.ones(size, np.uint8),
        depth=np.ones(size, np.float32),
        plane_depth=np.ones(size, np.float32),
        normal=np.zeros((*size, 3), np.int8),
    )
    return [path]


def _write_compact(folder: Path) -> list[Path]:
    rng = np.random.default_rng(4)
    shapes = param_shapes(NUM_POINTS, 4)
    values = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    path = folder / "compact" / "device.npz"
    compact.write(path, SurfelParams(**values), {"numbers": np.ones(3, np.float32)})
    return [path]


def _write_plan(folder: Path) -> list[Path]:
    workdir = Workdir(folder)
    stages = [PlannedStage("device", 40, True, True), PlannedStage("cloud", 4, False, True)]
    write_plan(workdir, 2, stages)
    paths = [workdir.plan]
    for number, step in ((0, 40), (1, 20)):
        block = workdir.block(number)
        paths.append(block.checkpoints("device") / str(step) / "meta" / "metadata")
        files.write_json(paths[-1], {"seconds": 2.0})
        paths.append(block.lock(BLOCK.name))
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": "2026-01-02 03:04:05"}
        files.write_json(paths[-1], owner)
    return paths


def _saved(step: int) -> tuple[dict, dict]:
    """A state in the two parts of a checkpoint."""
    means = np.arange(30, dtype=np.float32).reshape(10, 3) + step
    return {"means": means, "alive": np.ones(10, bool)}, {"moments": 2 * means}


def _write_checkpoint(folder: Path) -> list[Path]:
    stage = Workdir(folder).checkpoints("device")
    with Checkpoints(stage) as checkpoints:
        state, training = _saved(10)
        checkpoints.save(10, state, {"num": 10, "seconds": 1.5}, training)
    return sorted(path for path in (stage / "10").rglob("*") if path.is_file())


def _write_masks(folder: Path) -> list[Path]:
    paths = []
    for number, name in enumerate(_names()):
        path = folder / "masks" / (name + ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
        mask[: 8 + number] = 0
        Image.fromarray(mask).save(path)
        paths.append(path)
    return paths


def _write_config(folder: Path) -> list[Path]:
    settings_file.save(Settings(), folder / "config.json")
    return [folder / "config.json"]


def _write_workdir(folder: Path) -> list[Path]:
    stages = [
        {
            "name": "device",
            "steps": 10,
            "seconds": 1.5,
            "num_surfels": [3, 4],
            "psnr_test": 20.0,
            "ssim_test": 0.5,
            "psnr_seam": None,
            "peak_bytes_per_device": 1000,
        }
    ]
    thresholds = [{"tau": 0.1, "kind": "absolute", "precision": 0.5, "recall": 0.5, "f1": 0.5}]
    geometry = {"thresholds": thresholds, "accuracy": 0.1, "completeness": 0.2, "unit": "m"}
    scores = {
        "psnr": 20.0,
        "ssim": 0.5,
        "psnr_color_corrected": 21.0,
        "num_test_views": 1,
        "num_surfels": 7,
    }
    files.write_json(
        folder / "metrics.json",
        {"format": 1, "stages": stages, "final": scores, "geometry": geometry},
    )
    files.write_json(folder / "per_view.json", {"ours_10": {"PSNR": {"00000.png": 20.0}}})
    shown = folder / "test" / "ours_10"
    for kind in ("renders", "gt"):
        (shown / kind).mkdir(parents=True)
        _picture(0).save(shown / kind / "00000.png")
    files.write_json(shown / "views.json", {"00000.png": "a.jpg"})
    rows = [{"stage": "device", "step": step, "block": 0, "loss": 0.5} for step in (5, 10)]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _write_config(folder)
    return [
        folder / "metrics.json",
        folder / "per_view.json",
        shown / "views.json",
        folder / "history.jsonl",
    ]


def _write_list(folder: Path) -> list[Path]:
    (folder / "test.txt").write_text("# test views\n" + "\n".join(_names()[::3]) + "\n")
    return [folder / "test.txt"]


def _read_dataset(folder: Path, has_pixels: bool = False) -> dict:
    scene = load_scene(DataSettings(path=str(folder)), GeneratedSettings(), folder / "cache")
    found = {
        "names": scene.image_names,
        "poses": scene.views.camera_from_dataset,
        "points": scene.cloud.points,
        "intrinsics": scene.views.intrinsics,
        "sizes": scene.views.image_sizes,
        "photographs": scene.image_paths,
        "tests": scene.is_test,
    }
    if has_pixels:
        with ImageStore(scene, 64) as store:
            found["shapes"] = [store.load(view).shape for view in range(scene.num_views)]
    return found


def _read_photographs(folder: Path) -> dict:
    return _read_dataset(folder, has_pixels=True)


def _read_surfels(folder: Path) -> dict:
    return {"means": np.asarray(read_surfels_ply(folder / "surfels.ply").means)}


def _read_mesh(folder: Path) -> dict:
    mesh = read_mesh_ply(folder / "mesh.ply")
    return {"points": mesh.vertices, "triangles": mesh.triangles}


def _read_truth(folder: Path) -> dict:
    truth = load_ground_truth(folder)
    return {
        "points": truth.points,
        "vertices": truth.mesh_vertices,
        "triangles": truth.mesh_triangles,
    }


def _read_teachers(folder: Path) -> dict:
    return Teachers(SimpleNamespace(workdir=Workdir(folder)), "edge").load(0, 2)._asdict()


def _read_compact(folder: Path) -> dict:
    path = Workdir(folder).compact("device")
    params, others = compact.read(path, ("numbers",), "delete it")
    return params.by_name() | others


def _read_plan(folder: Path) -> dict:
    return {"lines": "\n".join(status_lines(Workdir(folder)))}


def _read_checkpoint(folder: Path) -> dict:
    def make_abstract(meta: dict) -> dict:
        state, training = _saved(0)
        whole = state | training
        shapes = {name: (meta["num"], *value.shape[1:]) for name, value in whole.items()}
        return {
            name: jax.ShapeDtypeStruct(shapes[name], value.dtype) for name, value in whole.items()
        }

    stage = Workdir(folder).checkpoints("device")
    with Checkpoints(stage, is_read_only=True) as checkpoints:
        restored = checkpoints.restore_latest(make_abstract)
    return {name: np.asarray(value) for name, value in restored.state.items()}


def _write_torch(folder: Path) -> list[Path]:
    value = {"H": HEIGHT, "c2w": np.eye(3, 4, dtype=np.float32), "names": {"a": 0.5}}
    scene_layouts.write_torch(folder / "a.pt", value)
    return [folder / "a.pt"]


def _read_workdir(folder: Path) -> dict:
    workdir = Workdir(folder)
    content = workdir.read_metrics()
    report.write_report(workdir, curves=report.curves_from_rows(read_history(workdir)))
    return {"metrics": json.dumps(content, default=str)}


def _read_list(folder: Path) -> dict:
    return {"tests": split.views_for_testing("test.txt", _names(), folder)}


def readers() -> list[Reader]:
    """All of them."""
    found = [
        Reader("colmap_binary", _with(_write_binary, _write_pictures), _read_dataset, spoil_bytes),
        Reader("colmap_text", _with(_write_text, _write_pictures), _read_dataset, spoil_text),
        Reader(
            "transforms_json", _with(_write_transforms, _write_views), _read_dataset, spoil_json
        ),
        Reader(
            "transforms_points",
            _with(_write_points, _write_transforms, _write_views),
            _read_dataset,
            spoil_text,
        ),
        Reader(
            "ply_binary",
            lambda folder: _write_points(folder, "binary"),
            lambda folder: {"points": ply.read_points_ply(folder / "points.ply")},
            spoil_bytes,
        ),
        Reader(
            "ply_ascii",
            _write_points,
            lambda folder: {"points": ply.read_points_ply(folder / "points.ply")},
            spoil_text,
        ),
        Reader("ply_mesh", _write_mesh, _read_mesh, spoil_bytes),
        Reader("ply_surfels", _write_surfels, _read_surfels, spoil_bytes),
        Reader("ground_truth", _write_truth, _read_truth, spoil_bytes),
        Reader("teachers", _write_teachers, _read_teachers, spoil_bytes),
        Reader("compact", _write_compact, _read_compact, spoil_bytes),
        Reader(
            "masks",
            _with(_write_masks, _write_binary, _write_pictures),
            _read_photographs,
            spoil_bytes,
        ),
        Reader(
            "config",
            _write_config,
            lambda folder: {"settings": repr(settings_file.load(folder / "config.json"))},
            spoil_json,
        ),
        Reader("workdir", _write_workdir, _read_workdir, spoil_json),
        Reader("plan", _write_plan, _read_plan, spoil_json),
        Reader("checkpoint", _write_checkpoint, _read_checkpoint, spoil_bytes),
        Reader("test_list", _write_list, _read_list, spoil_text),
        Reader(
            "torch",
            _write_torch,
            lambda folder: {"value": repr(read_torch(folder / "a.pt"))},
            spoil_bytes,
        ),
    ]
    kinds = {
        "jpg": {"quality": 90},
        "png": {},
        "tif": {},
        "tiff": {"compression": "tiff_lzw"},
        "webp": {},
        "bmp": {},
        "jp2": {},
        "ppm": {},
    }
    for ending, choices in kinds.items():

        def write(folder: Path, ending=ending, choices=choices) -> list[Path]:
            _write_binary(folder, ending)
            return _write_pictures(folder, ending, **choices)

        found.append(Reader(f"photograph_{ending}", write, _read_photographs, spoil_bytes))
    return found


def _pixels(scene: dict) -> np.ndarray:
    """Where the points are in the pictures, NaN where they are behind the camera."""
    poses = scene["poses"]
    points = np.einsum("vij,pj->vpi", poses[:, :3, :3], scene["points"]) + poses[:, None, :3, 3]
    with np.errstate(all="ignore"):
        rays = np.where(points[..., 2:] > 0, points / points[..., 2:], np.nan)
        return np.einsum("vij,vpj->vpi", scene["intrinsics"], rays)[..., :2]


def _is_negligible(wrong: list[str], found: dict, truth: dict) -> bool:
    """Whether poses, cameras and points are the same to a tenth of a pixel: no calibration is
    better.
    """
    of_pixels = {"poses", "intrinsics", "points"}
    if not set(wrong) <= of_pixels or not of_pixels <= truth.keys():
        return False
    shift = np.abs(_pixels(found) - _pixels(truth))
    return bool(np.all((shift < MAX_SHIFT_PX) | np.isnan(_pixels(truth))))


def differences(found: dict, truth: dict) -> list[str]:
    """The names of what was read otherwise than it was written; "number of ..." where there is more
    or less of it; NEGLIGIBLE alone where that moves nothing in any picture.
    """
    wrong = []
    for name, expected in truth.items():
        got = found[name]
        if isinstance(expected, str):
            wrong += [name] if got != expected else []
        elif len(got) != len(expected):
            wrong.append(f"number of {name}")
        elif not np.array_equal(np.asarray(got), np.asarray(expected)):
            wrong.append(name)
    if wrong and _is_negligible(wrong, found, truth):
        return [NEGLIGIBLE]
    return wrong


def _differing_views(found: dict, truth: dict) -> set[str]:
    """Names of views that are not there in one of the two, or are not the same."""
    names = set(found["names"]) ^ set(truth["names"])
    for name in set(found["names"]) & set(truth["names"]):
        here = found["names"].index(name)
        there = truth["names"].index(name)
        for kind in ("poses", "intrinsics", "sizes", "photographs", "tests"):
            if not np.array_equal(found[kind][here], truth[kind][there]):
                names.add(name)
    return names


def _is_of(text: str, wrong: list[str], views: set[str]) -> bool:
    """Whether a message is of what is wrong: it names one of the views, or speaks of points."""
    if any(name.endswith("points") for name in wrong) and "point" in text:
        return True
    return any(Path(name).name in text for name in views)


class Case:
    """A reader's valid files in a folder, of which one is spoilt at a time."""

    def __init__(self, reader: Reader, folder: Path):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.reader = reader
        self.folder = folder
        self.paths = reader.write(folder)
        self._contents = [path.read_bytes() for path in self.paths]
        self.truth, self._usual = self._read()

    def spoil(self, seed: int) -> tuple[Path, bytes]:
        """The file that this seed spoils, and its new content; it is written."""
        rng = np.random.default_rng(seed)
        number = int(rng.integers(len(self.paths)))
        # A file of one JSON object a line is none of JSON.
        spoil = spoil_text if self.paths[number].suffix == ".jsonl" else self.reader.spoil
        data = spoil(rng, self._contents[number])
        self.paths[number].write_bytes(data)
        return self.paths[number], data

    def read(self) -> tuple[list[str], list[str]]:
        """What was read otherwise than the truth, and what was said that is not said of
        valid files; of transforms.json, what names a view that is otherwise, or speaks of
        points that are.
        """
        found, heard = self._read()
        said = [text for text in heard if text not in self._usual]
        wrong = differences(found, self.truth)
        if wrong and self.reader.name.startswith("transforms"):
            views = _differing_views(found, self.truth)
            said = [text for text in said if _is_of(text, wrong, views)]
        return wrong, said

    def _read(self) -> tuple[dict, list[str]]:
        heard = Heard()
        logger = logging.getLogger("cosurfgs_jax")
        level = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(heard)
        try:
            return self.reader.read(self.folder), heard.texts
        finally:
            logger.removeHandler(heard)
            logger.setLevel(level)

    def restore(self) -> None:
        """Makes all files valid again."""
        for path, data in zip(self.paths, self._contents, strict=True):
            path.write_bytes(data)
