"""The interface from Python: what it refuses, and where it looks."""

import subprocess
import sys
from types import SimpleNamespace

import dataset_files
import pytest

from cosurfgs_jax import InputError, Settings, api, load_model, load_scene, train_model
from cosurfgs_jax.workdir import Workdir


@pytest.fixture
def dataset(tmp_path):
    dataset_files.write_dataset(tmp_path / "place", dataset_files.make_model())
    return tmp_path / "place"


def test_a_scene_leaves_no_file_behind_without_masks(dataset):
    before = sorted(dataset.rglob("*"))
    scene = load_scene(str(dataset), split="every2")
    assert scene.num_views == 4 and len(scene.test_views) == 2
    assert scene.views.intrinsics.shape == (4, 3, 3)
    assert sorted(dataset.rglob("*")) == before


def test_a_scene_of_the_home_folder(dataset, monkeypatch):
    monkeypatch.setenv("HOME", str(dataset.parent))
    assert load_scene("~/place").path == str(dataset)


def test_values_of_arguments_are_checked(dataset):
    expected = r"config.data.downscale: expected a whole number of at most 1024, got 2000"
    with pytest.raises(InputError, match=expected):
        load_scene(dataset, downscale=2000)


def test_a_folder_without_a_run_is_no_model(tmp_path):
    with pytest.raises(InputError, match=r"config.json: expected the settings of a run.*train"):
        load_model(tmp_path)


def test_a_function_is_no_term_before_anything_is_written(tmp_path):
    """Without the checker of types, which tests have and users have not."""
    code = f"""
import cosurfgs_jax
try:
    cosurfgs_jax.train_model(cosurfgs_jax.Settings(), {str(tmp_path / "run")!r}, [lambda view: 0.0])
except cosurfgs_jax.InputError as error:
    print(error)
"""
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert out.startswith("losses: expected terms as own_term") and "got function" in out
    assert not (tmp_path / "run").exists()


def test_settings_are_checked_first(tmp_path):
    settings = Settings()
    settings.train.steps = "many"
    with pytest.raises(InputError, match=r"config.train.steps: expected a whole number"):
        train_model(settings, tmp_path / "run")


def test_more_scores_are_measured_where_they_are_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(api.commands, "read_lpips_weights", lambda paths: ("weights of", *paths))
    monkeypatch.setattr(
        api.commands, "evaluate", lambda settings, workdir, **more: asked.append((workdir, more))
    )
    workdir = Workdir(tmp_path)
    partitioned = SimpleNamespace(scene=None)
    trained = SimpleNamespace(settings=Settings(), partitioned=partitioned, step=3)
    model = api.Model(trained, workdir)
    model.evaluate(lpips_weights=["trunk.pth", "heads.pth"], with_nearest_exposure=True)
    more = {"lpips_weights": ("weights of", "trunk.pth", "heads.pth")}
    assert asked == [(workdir, more | {"with_nearest_exposure": True})]
