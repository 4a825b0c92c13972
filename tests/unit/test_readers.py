"""Dataset formats by registration: a new one is read like those that are built in."""

import dataclasses
import json

import dataset_files
import numpy as np
import pytest

from cosurfgs_jax.data import Reader, load_scene, register_reader
from cosurfgs_jax.data.capture import Capture
from cosurfgs_jax.data.colmap import read_model
from cosurfgs_jax.data.readers import unregister_reader
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.views import PointCloud
from cosurfgs_jax.settings import DataSettings, GeneratedSettings

INDEX = "survey.json"


def detect_survey(source):
    path = source.root / INDEX
    return path if path.is_file() else None


def read_survey(path):
    """A format whose index names the poses, and whose lenses and points are those of a model."""
    model = read_model(path.parent / "sparse" / "0")
    table = json.loads(path.read_text())
    return Capture(
        source=str(path),
        image_names=list(table),
        image_files=list(table),
        image_paths=[str(path.parent / "images" / name) for name in table],
        lenses=model.lenses,
        camera_from_dataset=np.array(list(table.values())),
        cloud=PointCloud.without_tracks(model.cloud.points, model.cloud.colors),
        mask_paths=[None] * len(table),
    )


@pytest.fixture
def survey_reader():
    register_reader(Reader("survey", detect_survey, read_survey, "a survey.json"))
    yield
    unregister_reader("survey")


def write_survey(folder):
    dataset_files.write_dataset(folder, dataset_files.make_model())
    model = read_model(folder / "sparse" / "0")
    poses = model.camera_from_dataset.copy()
    poses[:, 2, 3] += 1.5
    poses = dict(zip(model.image_names, poses.tolist(), strict=True))
    (folder / INDEX).write_text(json.dumps(poses))
    return poses


def load(folder, **data):
    settings = DataSettings(path=str(folder), **data)
    return load_scene(settings, GeneratedSettings(), folder.parent / "cache")


def test_a_registered_reader_is_asked_first(tmp_path, survey_reader):
    folder = tmp_path / "place"
    poses = write_survey(folder)
    scene = load(folder)
    assert scene.name == "place" and scene.path == str(folder)
    assert scene.image_names == sorted(poses)
    np.testing.assert_array_equal(
        scene.views.camera_from_dataset, [poses[name] for name in scene.image_names]
    )
    assert not scene.cloud.has_tracks and len(scene.cloud) > 0


def test_without_it_the_built_in_readers_are_asked(tmp_path):
    folder = tmp_path / "place"
    poses = write_survey(folder)
    scene = load(folder)
    assert scene.cloud.has_tracks
    shift = poses[scene.image_names[0]][2][3] - 1.5
    assert scene.views.camera_from_dataset[0, 2, 3] == pytest.approx(shift)


def test_what_nobody_reads_is_refused_with_all_that_is_known(tmp_path, survey_reader):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing")
    expected = r"that is a survey.json or .* a COLMAP model .* or transforms.json, got notes.txt"
    with pytest.raises(InputError, match=expected):
        load(folder)
    with pytest.raises(InputError, match="expected a dataset folder, got .*, which is not there"):
        load(tmp_path / "none")


def test_a_name_is_of_one_reader(tmp_path, survey_reader):
    folder = tmp_path / "place"
    poses = write_survey(folder)

    def shifted(path):
        capture = read_survey(path)
        moved = capture.camera_from_dataset.copy()
        moved[:, 0, 3] += 2.0
        return dataclasses.replace(capture, camera_from_dataset=moved, name="moved")

    register_reader(Reader("survey", detect_survey, shifted, "a survey.json"))
    scene = load(folder)
    assert scene.name == "moved"
    shift = poses[scene.image_names[0]][0][3] + 2.0
    assert scene.views.camera_from_dataset[0, 0, 3] == shift
    with pytest.raises(InputError, match="that is a survey.json or .* a COLMAP"):
        load(tmp_path)
