"""A place is kept in the workdir as it was opened, and read anew where the dataset has changed."""

import dataclasses
import os
import shutil
import types

import numpy as np
import pytest
from scenes import SMALL, town_folder

from cosurfgs_jax.outputs import fused_mesh
from cosurfgs_jax.settings import DataSettings, PartitionSettings, Settings
from cosurfgs_jax.training import kept_place
from cosurfgs_jax.training.partners import BlockPartners
from cosurfgs_jax.workdir import Workdir


@pytest.fixture
def settings(tmp_path):
    """Of a copy of the town, in three blocks."""
    shutil.copytree(town_folder(SMALL), tmp_path / "copy")
    return Settings(
        data=DataSettings(path=str(tmp_path / "copy")),
        partition=PartitionSettings(num_blocks=3, min_views=1, min_points=1),
    )


@pytest.fixture
def workdir(settings):
    """In the dataset's folder, where some have it: what is written there is not of the dataset."""
    return Workdir(kept_place.Path(settings.data.path) / "run")


@pytest.fixture
def opened(monkeypatch):
    """How often a dataset is read."""
    calls = []
    read = kept_place.open_partitioned_scene

    def count(*given):
        calls.append(given)
        return read(*given)

    monkeypatch.setattr(kept_place, "open_partitioned_scene", count)
    return calls


def test_what_is_kept_is_the_place_as_it_was_opened(settings, workdir, opened):
    assert not kept_place.is_kept(settings, workdir)
    first = kept_place.open_place(settings, workdir, keeps=True)
    assert kept_place.is_kept(settings, workdir)
    kept = kept_place.open_place(settings, workdir)
    assert len(opened) == 1 and kept.identity() == first.identity()
    assert first.identity() == first._replace(known_identity=None).identity()
    clouds = (first.scene.cloud, kept.scene.cloud)
    assert not np.array_equal(clouds[0].points, clouds[1].points), "they are by cells"
    np.testing.assert_array_equal(clouds[0].points, clouds[1].points_in_order)
    partners = [BlockPartners(place, settings.loss) for place in (first, kept)]
    for block, same in zip(first.blocks, kept.blocks, strict=True):
        assert block._replace(points=same.points, views=same.views) == same
        assert np.array_equal(block.views, same.views) and block.views.dtype == same.views.dtype
        for lists in (
            (block.points, same.points),
            [p.partition.points[block.number] for p in (first, kept)],
        ):
            for name in ("points", "colors"):
                values = [
                    getattr(cloud, name)[own] for cloud, own in zip(clouds, lists, strict=True)
                ]
                np.testing.assert_array_equal(*values)
        for view, own in partners[0].of(block.number).items():
            np.testing.assert_array_equal(own.views, partners[1].of(block.number)[view].views)
            np.testing.assert_array_equal(
                own.cumulative, partners[1].of(block.number)[view].cumulative
            )
    for name in ("home", "lows", "inner_highs", "high_z", "lengths", "edge_of_block"):
        np.testing.assert_array_equal(getattr(first.partition, name), getattr(kept.partition, name))
    assert (first.partition.coverage != kept.partition.coverage).nnz == 0
    assert first.partition.nodes == kept.partition.nodes
    assert first.frame.to_dict() == kept.frame.to_dict()
    for name in (
        "name",
        "path",
        "image_names",
        "image_paths",
        "distortion",
        "mask_paths",
        "orientations",
    ):
        assert getattr(first.scene, name) == getattr(kept.scene, name), name
    for name in ("photo_sizes", "shrink_factors", "is_test", "up"):
        np.testing.assert_array_equal(getattr(first.scene, name), getattr(kept.scene, name))
    for name, values in vars(first.scene.views).items():
        np.testing.assert_array_equal(values, getattr(kept.scene.views, name))


def _touch(path):
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize(
    "change",
    [
        lambda root, data: next((root / "images").iterdir()).unlink(),
        lambda root, data: _touch(next(root.glob("sparse/0/points3D.*"))),
        lambda root, data: (root / "masks").mkdir(),
        lambda root, data: setattr(data, "split", "every4"),
    ],
)
def test_a_change_is_noticed(settings, workdir, opened, change):
    kept_place.open_place(settings, workdir, keeps=True)
    settings.data.host_memory_mb += 1
    assert kept_place.is_kept(settings, workdir), "nothing follows from it"
    change(kept_place.Path(settings.data.path), settings.data)
    assert not kept_place.is_kept(settings, workdir)
    kept_place.open_place(settings, workdir, keeps=True)
    assert len(opened) == 2 and len(list(workdir.place.iterdir())) == 1


def test_what_others_may_see_otherwise_is_not_kept(settings, workdir, opened):
    """A photograph that is missing here may be elsewhere."""
    next((kept_place.Path(settings.data.path) / "images").iterdir()).unlink()
    kept_place.open_place(settings, workdir, keeps=True)
    kept_place.open_place(settings, workdir, keeps=True)
    assert len(opened) == 2 and not workdir.place.exists()


def test_damaged_files_are_read_over(settings, workdir, opened, caplog):
    kept_place.open_place(settings, workdir, keeps=True)
    (array,) = workdir.place.glob("*/points.npy")
    array.write_bytes(b"")
    again = kept_place.open_place(settings, workdir, keeps=True)
    assert len(opened) == 2 and "deleted meanwhile, or damaged" in caplog.text
    assert dataclasses.is_dataclass(again.scene) and array.stat().st_size > 0


def test_the_plan_of_a_mesh_is_kept_with_the_place(settings, workdir, monkeypatch):
    kept_place.open_place(settings, workdir, keeps=True)
    kept = kept_place.open_place(settings, workdir)
    plan_of = getattr(fused_mesh.plan_of, "__wrapped__", fused_mesh.plan_of)
    trained = types.SimpleNamespace(partitioned=kept, settings=settings)
    first = plan_of(trained)
    monkeypatch.setattr(fused_mesh, "plan_mesh", None)
    again = plan_of(trained)
    assert len(first.areas) == len(again.areas) > 0 and first.grid.voxel_size > 0
    for area, same in zip(first.areas, again.areas, strict=True):
        assert area.index == same.index and np.array_equal(area.views, same.views)
    for name in ("numbers", "limits"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.grid.origin.tolist() == again.grid.origin.tolist()
    assert first.grid[1:] == again.grid[1:] and first.settings == again.settings
    for view in range(len(first.numbers)):
        assert first.onlookers.of(view).tolist() == again.onlookers.of(view).tolist()
    settings.surface.voxel_size = 2 * first.grid.voxel_size
    with pytest.raises(TypeError):  # another plan
        plan_of(trained)
