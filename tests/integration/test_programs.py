"""The programs as a user runs them: from photographs to scores, stopped and resumed, and with wrong
input.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from run_programs import (
    FAST_TO_COMPILE,
    STARTER,
    command_of,
    expect_sentence,
    run,
    run_anew,
    run_until,
    start,
)
from scenes import TINY, town_folder
from shard_runs import compare_shards

from cosurfgs_jax.formats import geo_json
from cosurfgs_jax.formats.geo_json import GeoReference, read_geo, write_geo
from cosurfgs_jax.formats.place_json import read_places
from cosurfgs_jax.formats.splat_ply import read_surfels_ply
from cosurfgs_jax.workdir import EXPORTS, TRAINING, Workdir

SHORT = [
    "--config.train.steps=80",
    "--config.train.checkpoint_every=20",
    "--config.train.log_every=10",
    "--config.surfels.sh_degree=1",
    "--config.density.min_slots=1",  # so that arrays grow on the way
]
GEO = GeoReference(32633, (500_000.0, 4_649_770.0, 0.0), True)


@pytest.fixture(scope="module", autouse=True)
def _starter_ends():
    yield
    STARTER.close()


def _model(workdir: Path):
    return read_surfels_ply(workdir / "point_cloud" / "iteration_80" / "point_cloud.ply")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("town") / "town"
    shutil.copytree(town_folder(TINY), folder)
    write_geo(folder / geo_json.NAME, GEO)
    return folder


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    result = run_anew("train", workdir, f"--config.data.path={dataset}", *SHORT)
    assert result.returncode == 0, result.stderr
    return workdir


def test_training_improves_the_render_and_writes_what_users_read(trained):
    rows = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 80
    # The loss has more terms from a quarter of the steps on; it can be compared among those, the
    # render from the start.
    losses, psnr = ([row[key] for row in rows] for key in ("loss", "psnr/train"))
    assert np.mean(losses[-3:]) < 0.85 * losses[2]
    assert np.mean(psnr[-3:]) > psnr[0] + 5
    terms = {
        "geometry/single_view",
        "geometry/multi_view_geometric",
        "geometry/multi_view_photometric",
        "seen_in_neighbor",
    }
    assert (
        not terms & set(rows[0]) and terms < set(rows[-1]) and 0 < rows[-1]["seen_in_neighbor"] <= 1
    )
    assert (
        rows[-1]["surfels"]
        <= json.loads((trained / "metrics.json").read_text())["stages"][0]["num_slots"]
    )
    metrics = json.loads((trained / "metrics.json").read_text())
    stage = metrics["stages"][0]
    assert stage["name"] == "device" and stage["steps"] == 80 and stage["psnr_test"] > 15
    assert stage["num_surfels"] == [int(np.asarray(_model(trained).alive).sum())]
    assert json.loads((trained / "config.json").read_text())["train"]["steps"] == 80
    assert any((trained / "tensorboard").iterdir())
    assert read_geo(trained / "geo.json") == GEO  # that of the dataset


def test_the_same_command_again_says_that_it_is_finished(trained, dataset):
    model = trained / "point_cloud" / "iteration_80" / "point_cloud.ply"
    before = model.stat().st_mtime_ns
    result = run("train", trained, f"--config.data.path={dataset}", *SHORT)
    assert result.returncode == 0 and "finished already" in result.stderr
    assert model.stat().st_mtime_ns == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_ends_in_the_same_bits(number, trained, dataset, tmp_path):
    workdir = tmp_path / "run"
    process = start("train", workdir, f"--config.data.path={dataset}", *SHORT)
    deadline = time.monotonic() + 240
    while not any(
        path.name in ("20", "40", "60") for path in (workdir / "checkpoints" / "device").glob("*")
    ):
        assert process.poll() is None and time.monotonic() < deadline, process.printed()
        time.sleep(0.02)
    process.send_signal(number)
    code, text = process.finish(timeout=120)
    if number == signal.SIGTERM and code == 143:
        assert "the same command goes on" in text
    assert code in (-signal.SIGKILL, 143, 0)
    result = run("train", workdir, f"--config.data.path={dataset}", *SHORT)
    assert result.returncode == 0, result.stderr
    expected = _model(trained)
    got = _model(workdir)
    for name in ("means", "quats", "log_scales", "logit_opacities", "sh"):
        np.testing.assert_array_equal(
            np.asarray(getattr(got, name)), np.asarray(getattr(expected, name)), err_msg=name
        )


def test_from_model_to_mesh_scores_and_files(trained, tmp_path):
    pytest.importorskip("open3d")
    result = run_anew("extract_mesh", trained, "--format=glb")
    assert result.returncode == 0, result.stderr
    names = {"mesh.ply", "mesh.glb", "mesh.json", "place.json"}
    assert {path.name for path in (trained / "mesh").iterdir()} == names
    places = read_places(trained / "mesh")
    assert sorted(places) == ["mesh.glb", "mesh.ply"]
    for place in places.values():
        assert place.offset.tolist() == list(GEO.offset) and place.epsg == GEO.epsg
    result = run_anew("evaluate", trained)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["final"]["num_test_views"] == 1 and metrics["final"]["psnr"] > 15
    assert len(metrics["geometry"]["thresholds"]) >= 3 and metrics["geometry"]["unit"] == "m"
    assert (trained / "report.html").stat().st_size > 10_000
    assert "ours_80" in json.loads((trained / "results.json").read_text())
    for name, flags in (("render", ["--views=all"]), ("export", ["--format=ply"])):
        result = run_anew(name, trained, *flags)
        assert result.returncode == 0, result.stderr
    assert len(list((trained / "renders").glob("*_color.png"))) == TINY.num_views
    names = {"point_cloud_2d.ply", "point_cloud_3dgs.ply", "place.json"}
    assert {path.name for path in (trained / "export").iterdir()} == names
    compare_shards(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize(
    "form, package, names",
    [
        ("points", "numpy", {"points.ply", "place.json"}),
        ("las", "laspy", {"points.las"}),
        ("dsm", "rasterio", {"dsm.tif", "orthophoto.tif", "dsm.json"}),
    ],
)
def test_exports_for_maps(trained, tmp_path, form, package, names):
    pytest.importorskip(package)
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "export", ignore_errors=True)
    flags = ["--config.geo.offset=100,200,3", "--config.geo.pixel_size=0.5"]
    if form == "points":  # las has those of the mesh
        flags.append("--config.points.source=surfels")
    result = run("export", workdir, f"--format={form}", *flags)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (workdir / "export").iterdir()} == names
    if form == "dsm":
        found = json.loads((workdir / "export" / "dsm.json").read_text())
        assert (
            found["offset"] == [100, 200, 3]
            and found["epsg"] == 0  # an offset of one's own is not geo.json's place
            and found["pixel_size"] == 0.5
            and found["covered_share"] > 0.3
        )
        assert found["agreement"]["visible_points"]["median_absolute_pixels"] < 3
        for flags, words in (
            (["--config.geo.epsg=25832"], ["config.geo.epsg: expected 32633"]),
            (
                ["--config.geo.epsg=4326", "--config.geo.offset=0,0,0"],
                ["config.geo.epsg", "4326"],
            ),
            (["--config.geo.pixel_size=0.0001"], ["config.geo.pixel_size="]),
        ):
            expect_sentence(run("export", workdir, "--format=dsm", *flags), *words)


def test_wrong_input_is_one_sentence_and_exit_code_2(dataset, trained, tmp_path):
    workdir = tmp_path / "run"
    expect_sentence(
        run("train", workdir, "--config.data.path=/nowhere/at/all"),
        "config.data.path",
        "/nowhere/at/all",
    )
    expect_sentence(
        run("train", workdir, "--config.train.stepz=3"), "config.train.stepz", "config.train.steps"
    )
    expect_sentence(
        run("train", workdir, "--config.train.steps=many"),
        "config.train.steps",
        "whole number",
        "many",
    )
    expect_sentence(
        run("train", workdir, f"--config.data.path={dataset}", "--config.raster.backend=gpu9"),
        "gpu9",
    )
    expect_sentence(run("evaluate", workdir), "train")
    assert not (workdir / "config.json").exists()  # nothing is half-begun
    assert not (workdir / "checkpoints").exists() or not any(
        (workdir / "checkpoints").glob("*/[0-9]*")
    )
    expect_sentence(run("render", trained, "--views=nobody.jpg"), "nobody.jpg")
    expect_sentence(run("export", trained, "--format=docx"), "docx", "ply")
    expect_sentence(run("extract_mesh", trained, "--format=docx"), "docx", "ply, obj, glb")
    expect_sentence(
        run("train", trained, f"--config.data.path={dataset}", *SHORT, "--config.optim.quats=0.5"),
        "config.optim.quats",
        "0.001",
        "0.5",
    )


def test_ground_truth_points_are_enough_to_score_the_surface(dataset, trained, tmp_path):
    pytest.importorskip("open3d")
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "mesh", ignore_errors=True)
    result = run("evaluate", workdir, f"--gt_points={dataset / 'ground_truth' / 'points.ply'}")
    assert result.returncode == 0, result.stderr
    geometry = json.loads((workdir / "metrics.json").read_text())["geometry"]
    assert geometry["thresholds"][0]["f1"] > 0 and geometry["unit"] == "dataset units"


def test_a_dataset_may_move(dataset, trained, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(dataset, moved)
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    result = run("train", workdir, f"--config.data.path={moved}")
    assert result.returncode == 0 and "finished already" in result.stderr, result.stderr


def test_a_damaged_or_other_dataset_is_refused(dataset, trained, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(dataset, broken)
    photo = sorted((broken / "images").iterdir())[0]
    content = photo.read_bytes()
    photo.write_bytes(content[: len(content) // 2])
    expect_sentence(
        run("train", tmp_path / "a", f"--config.data.path={broken}", *SHORT), photo.name
    )
    photo.unlink()  # a photograph that is not there is left out, with its name
    result = run("train", tmp_path / "b", f"--config.data.path={broken}", *SHORT)
    assert result.returncode == 0 and photo.name in result.stderr and "left out" in result.stderr, (
        result.stderr
    )
    other = tmp_path / "other"
    shutil.copytree(dataset, other)
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    config = json.loads((moved / "config.json").read_text())
    config["data"]["path"] = str(other)
    (moved / "config.json").write_text(json.dumps(config))
    images = other / "sparse" / "0"
    text = [path for path in images.iterdir() if path.name.startswith("points3D")][0]
    os.replace(text, text.with_suffix(".gone"))
    expect_sentence(run("train", moved, *SHORT), str(other))


def test_two_writers_of_one_workdir_are_told_and_readers_go_on(trained, dataset, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    with Workdir(workdir).writing(TRAINING):
        result = run("train", workdir, f"--config.data.path={dataset}", *SHORT)
        assert result.returncode == 2 and "Traceback" not in result.stderr
        assert f"a training run is under way there already (process {os.getpid()} on" in (
            result.stderr
        )
        result = run("export", workdir)
        assert result.returncode == 0, result.stderr
    with Workdir(workdir).writing(EXPORTS):
        result = run("export", workdir)
        assert result.returncode == 2 and "an export is under way there already" in result.stderr


def test_a_full_disk_is_a_sentence_and_leaves_nothing(trained, tmp_path):
    """A limit on the size of files stands for it; the same command goes on afterwards."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir, ignore=shutil.ignore_patterns("export"))
    # By the shell, as nothing may run between fork and exec of a process with threads; in blocks of
    # 1 KiB.
    limited = subprocess.run(
        ["bash", "-c", 'ulimit -f 5; exec "$@"', "bash", *command_of("export", workdir)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert limited.returncode == 2 and "Traceback" not in limited.stderr, limited.stderr
    assert "point_cloud" in limited.stderr and "File too large" in limited.stderr
    assert not [path for path in workdir.rglob("*") if path.name.startswith(".unfinished-")]
    assert not list((workdir / "export").iterdir())
    result = run("export", workdir)
    assert result.returncode == 0 and len(list((workdir / "export").iterdir())) == 3


def test_a_workdir_that_changes_under_a_run_is_a_sentence(trained, dataset, tmp_path):
    """Nothing is lost that was saved, and the same command goes on to the same bits."""
    workdir = tmp_path / "run"
    config = workdir / "config.json"
    command = ("train", workdir, f"--config.data.path={dataset}", *SHORT)
    result = run_until(
        (workdir / "checkpoints" / "device" / "20").exists,
        lambda: config.write_text(config.read_text().replace('"seed": 0', '"seed": 1')),
        *command,
    )
    expect_sentence(result, str(config), "they were changed while it ran")
    expect_sentence(run(*command), "config.seed", "was made with 0, got 1", "give the old value")
    config.write_text(config.read_text().replace('"seed": 1', '"seed": 0'))

    def is_begun_after(file_number: int) -> Callable[[], bool]:
        return lambda: config.exists() and config.stat().st_ino != file_number

    result = run_until(is_begun_after(config.stat().st_ino), config.unlink, *command)
    expect_sentence(result, str(config), "cannot be read any more")
    away = tmp_path / "away"

    def is_under_way() -> bool:
        history = workdir / "history.jsonl"
        return config.exists() and history.stat().st_mtime_ns > config.stat().st_mtime_ns

    result = run_until(is_under_way, lambda: workdir.rename(away), *command)
    expect_sentence(result, str(workdir))
    assert not workdir.exists()
    away.rename(workdir)
    result = run(*command)
    assert result.returncode == 0 and "going on from step" in result.stderr, result.stderr
    for name in ("means", "quats", "log_scales", "logit_opacities", "sh"):
        np.testing.assert_array_equal(
            getattr(_model(workdir), name), getattr(_model(trained), name)
        )


def test_a_folder_that_cannot_be_written_is_a_sentence(trained, dataset, tmp_path):
    """Permissions stand for a file system that is mounted read-only."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    for path in (workdir, *workdir.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    obeys = []  # root writes everywhere, unless it gives up that right
    if os.geteuid() == 0:
        obeys = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
        if not shutil.which("setpriv"):
            pytest.skip("root writes everywhere, and there is no setpriv")
    command = command_of("train", workdir, f"--config.data.path={dataset}", *SHORT)
    result = subprocess.run([*obeys, *command], capture_output=True, text=True, timeout=300)
    expect_sentence(result, f"--workdir={workdir}", "Permission denied", "choose another one")
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
    for path in (workdir, *workdir.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    result = run("train", workdir, f"--config.data.path={dataset}", *SHORT)
    assert result.returncode == 0 and "finished already" in result.stderr, result.stderr


def test_a_few_faults_at_random_lead_to_the_same_end(trained, tmp_path):
    """A short form of scripts/kill_test.py: the quickest program, after those that nothing
    disturbed.
    """
    calm = tmp_path / "calm-1"
    for name in ("render", "export"):
        shutil.copytree(trained, calm / name, ignore=shutil.ignore_patterns("export"))
    result = run("export", calm / "export", "--format=ply")
    assert result.returncode == 0, result.stderr
    for name in ("train", "mesh", "evaluate", "render", "export"):
        (calm / f"{name}.txt").write_text("0.5")  # seconds
    script = Path(__file__).parents[2] / "scripts" / "kill_test.py"
    report = tmp_path / "report.json"
    choices = ["--kills=3", "--programs=export", "--processes=1", f"--report={report}"]
    subprocess.run(
        [sys.executable, script, f"--workdir={tmp_path}", *choices],
        capture_output=True,
        timeout=300,
        env=FAST_TO_COMPILE,
    )
    found = json.loads(report.read_text())
    assert found["failures"] == [] and found["faults"] == 3 and found["ends_compared"] >= 1
