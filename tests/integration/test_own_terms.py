"""A term of the loss that a user gives from Python, in all stages of a run."""

import pytest

from cosurfgs_jax.collab import pipeline
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.losses.term import own_term
from cosurfgs_jax.raster import Maps
from cosurfgs_jax.settings import (
    GeneratedSettings,
    PartitionSettings,
    Settings,
    SurfelSettings,
    TrainSettings,
)
from cosurfgs_jax.training.run_log import read_history
from cosurfgs_jax.workdir import Workdir


def _is_gray(view):
    """How far colours are from grey. The variance: a standard deviation of 0 has no gradient."""
    return view.out.color.var(axis=-1).mean()


def test_a_run_with_a_term_of_its_own(tmp_path):
    settings = Settings(
        generated=GeneratedSettings(num_views=8, width=48, height=36, size_m=40.0),
        partition=PartitionSettings(num_blocks=2, num_edges=1),
        surfels=SurfelSettings(sh_degree=0, capacity=300),
        train=TrainSettings(steps=24, log_every=4),
    )
    term = own_term("gray", _is_gray, weight=100.0, maps=Maps.COLOR)
    workdir = Workdir(tmp_path)
    pipeline.train(settings, workdir, losses=[term])
    rows = read_history(workdir)
    assert all(row["loss/gray"] >= 0 for row in rows if "loss" in row)
    assert {row["stage"] for row in rows if "loss/gray" in row} == {"device", "lmc_device", "cloud"}
    values = [row["loss/gray"] for row in rows if row["stage"] == "device" and "loss" in row]
    assert values[-1] < 0.8 * values[0]
    for path in (tmp_path / "point_cloud").glob("*/*.ply"):
        path.unlink()  # else it is finished
    with pytest.raises(InputError, match=r"losses: .*began with \(gray\), got none"):
        pipeline.train(settings, workdir)
