"""More readers for the mutation tests and scripts/fuzz.py: files of poses and points of other
programs, other layouts of datasets, and the small files of a workdir and of `prepare`.
"""

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import fuzz_cases
import numpy as np
import pose_writers
import scene_layouts
from control_survey import Survey
from fuzz_cases import Reader
from lpips_networks import ALEX, states_of
from posed_scene import Scene
from spoil import spoil_bytes, spoil_json, spoil_text

from cosurfgs_jax import files, run_record, settings_file
from cosurfgs_jax.data import checks, readers
from cosurfgs_jax.data.capture import Source
from cosurfgs_jax.errors import required
from cosurfgs_jax.formats.geo_json import GeoReference, read_geo, write_geo
from cosurfgs_jax.formats.transform_text import read_similarity
from cosurfgs_jax.outputs import commands
from cosurfgs_jax.outputs.shards import Shards
from cosurfgs_jax.part import Part
from cosurfgs_jax.report.curves import NO_CURVES
from cosurfgs_jax.report.provenance import provenance
from cosurfgs_jax.report.section import ReportInput
from cosurfgs_jax.run_record import note_seconds, read_timings
from cosurfgs_jax.settings import (
    DataSettings,
    GeneratedSettings,
    PartitionSettings,
    Settings,
)
from cosurfgs_jax.sfm import dataset_folder, phases
from cosurfgs_jax.training import kept_place, place_files
from cosurfgs_jax.training.checkpoints import Checkpoints
from cosurfgs_jax.training.partitioned_scene import bound_views
from cosurfgs_jax.workdir import SCORES, Workdir

_log = logging.getLogger("cosurfgs_jax")
FIRST_CAMERAS = 4  # whose files are spoilt where each photograph has one


def _colmap(folder: Path) -> Path:
    """A COLMAP dataset that other layouts are made from, beside them."""
    source = folder / "source"
    source.mkdir()
    fuzz_cases._write_binary(source)
    fuzz_cases._write_pictures(source)
    return source


def _layout(write: Callable, *patterns: str) -> Callable[[Path], list[Path]]:
    def written(folder: Path) -> list[Path]:
        root = folder / "data"
        root.mkdir()
        write(_colmap(folder), root)
        return [path for pattern in patterns for path in sorted(root.glob(pattern))]

    return written


def _read_layout(place: str, folder: Path) -> dict:
    root = folder / "data" / place
    data = DataSettings(path=str(root))
    found = readers.read_dataset(Source(root, data, GeneratedSettings(), folder / "cache"))
    order = np.argsort(found.image_names)
    found = checks.checked(found.of_views(order), needs_points=False)
    return {
        "names": list(found.image_names),
        "poses": found.camera_from_dataset,
        "intrinsics": np.array([lens.intrinsics for lens in found.lenses]),
        "tests": sorted(found.test_names or []),
    }


def _spoil_torch(rng: np.random.Generator, data: bytes) -> bytes:
    """Lists of photographs are text beside them."""
    return spoil_bytes(rng, data) if data[:2] == b"PK" else spoil_text(rng, data)


def _say(warnings: list[str]) -> None:
    """As `prepare` does of what its readers give back."""
    for text in warnings:
        _log.warning(text)


def _poses(name: str, write: Callable) -> Reader:
    def written(folder: Path) -> list[Path]:
        found = write(Scene(folder), folder / name)
        return sorted(found.iterdir())[:FIRST_CAMERAS] if found.is_dir() else [found]

    def read(folder: Path) -> dict:
        scene = Scene(folder)
        known = scene.read(folder / name)
        _say(known.warnings)
        return {
            "names": list(known.camera_from_local),
            "poses": list(known.camera_from_local.values()),
            "lenses": repr(known.lenses),
        }

    return Reader(name.partition(".")[0], written, read, spoil_text)


def _write_control(folder: Path) -> list[Path]:
    survey = Survey(folder)
    survey.write()
    return [survey.path]


@functools.cache
def _survey(folder: Path) -> Survey:
    return Survey(folder)


def _read_control(folder: Path) -> dict:
    control, _ = _survey(folder).read_as_it_is()
    _say(control.warnings)
    return {"points": [point.name for point in control.points], "content": repr(control.points)}


def _write_similarity(folder: Path) -> list[Path]:
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[:3, 3] = (5.5, -7, 0.25)
    np.savetxt(folder / "scan.txt", matrix)
    return [folder / "scan.txt"]


def _write_run_files(folder: Path) -> list[Path]:
    workdir = Workdir(folder)
    workdir.write_stage("device", steps=10, depth_step_expected=0.1, depth_step_rest=0.2)
    note_seconds(workdir, "mesh", 3.0)
    rows = [{"name": "surfels.capacity", "asked": 1000, "used": 500}]
    files.write_json(workdir.given_up, {"settings": rows})
    details = {"summary": ["placed by GPS"], "versions": {"pycolmap": "4"}}
    write_geo(workdir.geo, GeoReference(32615, (576720.0, 5188170.0, 160.5), True, details))
    files.write_json(workdir.partition, {"left_out": ["a.jpg"], "has_masks": False})
    with run_record.begin(workdir, "train", "0badcafe", "cpu").ending() as record:
        with record.stage("device", 0, block=1):
            pass
    return [
        workdir.metrics,
        workdir.timings,
        workdir.runs,
        workdir.given_up,
        workdir.geo,
        workdir.partition,
    ]


def _read_run_files(folder: Path) -> dict:
    workdir = Workdir(folder)
    found = {
        "metrics": repr(workdir.read_metrics()),
        "timings": repr(read_timings(workdir)),
        "given up": repr(settings_file.read_given_up(workdir)),
        "geo": repr(read_geo(workdir.geo)),
        "views": repr(bound_views(workdir)),
        "runs": provenance(ReportInput(workdir, {}, NO_CURVES, {}, None, 0)),
    }
    with run_record.begin(workdir, "evaluate", "0badcafe", "cpu").ending():
        pass
    workdir.write_stage("cloud", steps=4)
    note_seconds(workdir, "evaluate", 1.0)
    return found


def _write_prepared(folder: Path) -> list[Path]:
    photographs = {name: [1000, 10**18] for name in ("a.jpg", "b.jpg")}
    files.write_json(folder / "features.json", {"max_features": 9, "photographs": photographs})
    saved = {"key": "0f", "group_sizes": [4, 2], "keeps_focal": True, "tells_focal": False}
    files.write_json(folder / "mapped.json", saved | {"poses_of": "the mapper"})
    return [folder / "features.json", folder / "mapped.json"]


def _read_prepared(folder: Path) -> dict:
    features = folder / "features.json"
    key = {"max_features": 9, "photographs": dataset_folder.photographs_of(features)}
    saved = files.read_json_object(folder / "mapped.json")
    return {
        "features": repr((key, phases._extends(key, features))),
        "model": repr((saved.get("key"), phases._is_whole(saved))),
    }


def _shards(folder: Path) -> Shards:
    return Shards(Workdir(folder), SCORES, "evaluate", {"model": "cloud 1", "size": 0.5})


def _write_shards(folder: Path) -> list[Path]:
    for number in range(2):
        with _shards(folder).making(Part(number, 2)) as made:
            _, note = required(made, "a shard")
            note |= {"rows": {"a.png": {"psnr": 20.5}}, "seconds": 1.5, "num_surfels": 4}
    return sorted(folder.rglob("shard.json"))


def _read_shards(folder: Path) -> dict:
    return {"notes": repr([shard.note for shard in _shards(folder).collect()])}


def _write_weights(folder: Path) -> list[Path]:
    paths = [folder / "alexnet.pth", folder / "alex.pth"]
    for path, state in zip(paths, states_of(ALEX), strict=True):
        scene_layouts.write_torch(path, state)
    return paths


def _read_weights(folder: Path) -> dict:
    found = commands.read_lpips_weights([folder / "alexnet.pth", folder / "alex.pth"])
    arrays = required(found, "weights")
    leaves = [*arrays.kernels, *arrays.biases, *arrays.heads]
    return {"weights": np.concatenate([leaf.ravel() for leaf in leaves])}


def _place_settings(folder: Path) -> Settings:
    partition = PartitionSettings(num_blocks=1, min_views=1, min_points=1)
    return Settings(data=DataSettings(path=str(folder / "source")), partition=partition)


def _write_place(folder: Path) -> list[Path]:
    _colmap(folder)
    kept_place.open_place(_place_settings(folder), Workdir(folder / "run"), keeps=True)
    return sorted((folder / "run").rglob(place_files.TABLE))


def _read_place(folder: Path) -> dict:
    (table,) = (folder / "run").rglob(place_files.TABLE)
    found = place_files.read_place(_place_settings(folder), table.parent)
    scene = required(found, "a place").partitioned.scene
    return {"names": scene.image_names, "points": scene.cloud.points, "up": scene.up}


def _write_checkpoint_notes(folder: Path) -> list[Path]:
    fuzz_cases._write_checkpoint(folder)
    stage = Workdir(folder).checkpoints("device")
    with Checkpoints(stage) as checkpoints:
        state, training = fuzz_cases._saved(20)
        checkpoints.save(20, state, {"num": 10, "seconds": 1.5}, training)
    step = stage / "20"
    return [step / "_CHECKPOINT_METADATA", step / "checksums.json", step / "meta" / "metadata"]


def all_readers() -> list[Reader]:
    """Those of fuzz_cases.py, and these."""
    torch = _layout(scene_layouts.write_mega_nerf, "**/*.pt", "mappings.txt")
    city = _layout(scene_layouts.write_matrix_city, "pose/block_A/*.json")
    return [
        *fuzz_cases.readers(),
        _poses("metashape.xml", pose_writers.write_metashape),
        _poses("realityscan_list.csv", pose_writers.write_list),
        _poses("pix4d", pose_writers.write_pix4d),
        _poses("xmp", pose_writers.write_xmp),
        Reader("control_points", _write_control, _read_control, spoil_text),
        Reader(
            "similarity",
            _write_similarity,
            lambda folder: {"matrix": read_similarity(folder / "scan.txt")},
            spoil_text,
        ),
        Reader(
            "mvsnet",
            _layout(scene_layouts.write_mvsnet, "cams/*"),
            functools.partial(_read_layout, ""),
            spoil_text,
        ),
        Reader(
            "matrix_city",
            city,
            functools.partial(_read_layout, "pose/block_A"),
            spoil_json,
        ),
        Reader("mega_nerf", torch, functools.partial(_read_layout, ""), _spoil_torch),
        Reader("run_files", _write_run_files, _read_run_files, spoil_json),
        Reader("prepared", _write_prepared, _read_prepared, spoil_json),
        Reader("shards", _write_shards, _read_shards, spoil_json),
        Reader("lpips_weights", _write_weights, _read_weights, spoil_bytes),
        Reader("place", _write_place, _read_place, spoil_json),
        Reader(
            "checkpoint_notes", _write_checkpoint_notes, fuzz_cases._read_checkpoint, spoil_json
        ),
    ]
