"""Scores of a render with other colours, and of LPIPS where its weights are given."""

import json

import numpy as np
import pytest
from helpers import bare_scene
from lpips_networks import ALEX, states_of

from cosurfgs_jax import metrics, pictures
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.outputs import evaluation
from cosurfgs_jax.outputs.view_scores import MoreScores, nearest_exposures, scores_of_view
from cosurfgs_jax.workdir import Workdir

SIZE = (36, 40)
EXPOSURE = np.array([[0.5, 0.1, 0.0, 0.1], [0.0, 0.6, 0.0, 0.05], [0.1, 0.0, 0.7, 0.0]])


def _scene(places, axes, is_test):
    """Cameras on a line, looking along z or -z."""
    poses = np.tile(np.eye(4), (len(places), 1, 1))
    for pose, place, axis in zip(poses, places, axes, strict=True):
        if axis < 0:
            pose[:3, :3] = np.diag([-1.0, 1.0, -1.0])
        pose[:3, 3] = pose[:3, :3] @ [-place, 0.0, 0.0]
    intrinsics = np.tile(np.array([[30.0, 0, 20], [0, 30, 18], [0, 0, 1]]), (len(places), 1, 1))
    views = Views(poses, intrinsics, np.full((len(places), 2), SIZE))
    return bare_scene(views, is_test=np.array(is_test))


def test_the_nearest_training_view_that_looks_the_same_way_gives_its_exposure():
    exposures = np.arange(5.0)[:, None, None] * np.ones((5, 3, 4))
    scene = _scene([0, 1, 1.5, 4, 9], [1, 1, -1, 1, 1], [False, True, False, False, True])
    chosen = nearest_exposures(scene, exposures)
    assert chosen[:, 0, 0].tolist() == [0, 0, 2, 3, 3]
    scene = _scene([0, 1, 1.5], [-1, 1, -1], [False, True, False])
    assert nearest_exposures(scene, exposures[:3])[1, 0, 0] == 2  # none looks the same way


def _picture():
    return np.random.default_rng(0).integers(20, 200, (*SIZE, 3)).astype(np.uint8)


def test_a_render_with_the_exposure_of_the_photograph_is_like_it(tmp_path):
    render = _picture()
    shown = render / 255 @ EXPOSURE[:, :3].T + EXPOSURE[:, 3]
    photo = pictures.to_uint8(shown.astype(np.float32))
    scene = _scene([0, 1], [1, 1], [False, True])

    class Store:
        def load(self, view):
            return photo

    workdir = Workdir(tmp_path)
    rows = evaluation.score_views(
        lambda view: {"color": render / np.float32(255), "alpha": np.ones(SIZE, np.float32)},
        scene,
        Store(),
        pictures_of=evaluation.pictures_of_views(scene.test_views),
        folder=workdir.test(7),
        more=MoreScores(transforms=np.stack([EXPOSURE, EXPOSURE])),
    )
    scores = evaluation.summarize(rows, scene, workdir, 7)
    assert scores["psnr"] < 20 and scores["psnr_nearest_view"] > 50
    assert scores["ssim_nearest_view"] == pytest.approx(1, abs=1e-5)
    results = json.loads((tmp_path / "results.json").read_text())["ours_7"]
    assert results["PSNR_nearest_view"] > 50 and "LPIPS" not in results


def test_lpips_is_there_with_its_weights_alone():
    weights = metrics.weights_of(list(states_of(ALEX)), "here")
    render = _picture()
    photo = render[::-1].copy()
    without = scores_of_view(render, photo, None, None, None)
    found = scores_of_view(render, photo, None, None, weights)
    names = {"lpips", "lpips_unscaled"}
    names |= {f"{name}_color_corrected" for name in names}
    assert set(found) - set(without) == names
    direct = metrics.lpips(render / np.float32(255), photo / np.float32(255), weights)
    assert found["lpips"] == pytest.approx(float(direct), rel=1e-4) and found["lpips"] > 0.01
    assert found["lpips_unscaled"] != pytest.approx(found["lpips"], rel=0.01)
