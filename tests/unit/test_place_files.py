"""The files of a kept place: whole, or refused."""

import dataclasses
import json

import numpy as np
import pytest
from scenes import SMALL, town_folder

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.geometry.views import Sightings
from cosurfgs_jax.settings import DataSettings, PartitionSettings, Settings
from cosurfgs_jax.surface.depth_filter import seen_points
from cosurfgs_jax.training.partitioned_scene import open_partitioned_scene
from cosurfgs_jax.training.place_files import TABLE, read_place, write_place
from cosurfgs_jax.workdir import Workdir


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    settings = Settings(
        data=DataSettings(path=str(town_folder(SMALL))),
        partition=PartitionSettings(num_blocks=3, min_views=1, min_points=1),
    )
    workdir = Workdir(tmp_path_factory.mktemp("run"))
    return open_partitioned_scene(settings, workdir), settings


@pytest.fixture
def kept(opened, tmp_path):
    """A place, its settings, and the folder that it is kept in."""
    write_place(*opened, tmp_path)
    return *opened, tmp_path


def _cut(folder):
    (folder / "points.npy").write_bytes(b"")


def _other_type(folder):
    """As many bytes, and others."""
    path = folder / "points.npy"
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"<f8", b"<i8", 1))


def _change_table(**parts):
    def change(folder):
        table = json.loads((folder / TABLE).read_text())
        (folder / TABLE).write_text(json.dumps(table | parts))

    return change


def _change_array(name, array):
    return lambda folder: np.save(folder / f"{name}.npy", array)


@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        _other_type,
        lambda folder: (folder / "numbers.npy").unlink(),
        lambda folder: (folder / TABLE).write_text("{"),
        _change_table(arrays=None),
        _change_table(blocks=3),
        _change_table(lenses=[[]]),
        _change_table(image_names=[3]),
        _change_array("starts_offsets", np.arange(9)),
    ],
)
def test_damaged_files_are_refused(kept, damage):
    _, settings, folder = kept
    assert read_place(settings, folder) is not None
    damage(folder)
    with pytest.raises(InputError, match=TABLE):
        read_place(settings, folder)


def test_other_files_beside_the_arrays_are_not_looked_at(kept):
    """Those that a killed writer has left, for example."""
    _, settings, folder = kept
    (folder / ".unfinished-points.npy").write_bytes(b"")
    assert read_place(settings, folder) is not None


def test_a_folder_without_a_table_is_none(kept):
    _, settings, folder = kept
    (folder / TABLE).unlink()
    assert read_place(settings, folder) is None


def test_views_of_few_points_compare_all_of_them_in_the_order_of_the_dataset(kept):
    first, settings, folder = kept
    clouds = [place.scene.cloud for place in (first, read_place(settings, folder).partitioned)]
    assert clouds[1].numbers is not None
    nothing = Sightings(np.zeros(1, np.int64), np.empty(0, np.int32))
    clouds = [dataclasses.replace(cloud, known_sightings=nothing) for cloud in clouds]
    views = first.scene.views
    one, other = ([*seen_points(cloud, views, np.arange(2))] for cloud in clouds)
    assert len(one[0]) > 10
    for points, same in zip(one, other, strict=True):
        np.testing.assert_array_equal(points, same)
