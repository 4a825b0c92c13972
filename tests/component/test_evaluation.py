"""Scores and files of an evaluation, on pictures and surfaces whose scores are known."""

import json
import types

import numpy as np
import pytest
from helpers import bare_scene

from cosurfgs_jax import pictures
from cosurfgs_jax.collab.stage_scores import score_view
from cosurfgs_jax.data.ground_truth import GroundTruth
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.formats.ply import table_of, write_ply
from cosurfgs_jax.geometry.scene_frame import rotation_to_z
from cosurfgs_jax.geometry.views import Views
from cosurfgs_jax.outputs import commands, evaluation
from cosurfgs_jax.outputs.trained import Trained
from cosurfgs_jax.settings import Settings
from cosurfgs_jax.workdir import Workdir

SIZE = (24, 32)


def evaluate_views(render, scene, store, views, workdir, step):
    """As `evaluate` does it in one process."""
    chosen = evaluation.pictures_of_views(views)
    rows = evaluation.score_views(render, scene, store, chosen, workdir.test(step))
    return evaluation.summarize(rows, scene, workdir, step)


class Store:
    """Photographs in memory."""

    def __init__(self, photos):
        self.photos = photos

    def load(self, view):
        return self.photos[view]


def make_scene(num=3, **changes):
    poses = np.tile(np.diag([1.0, -1.0, -1.0, 1.0]), (num, 1, 1))
    poses[:, 2, 3] = 5.0
    intrinsics = np.tile(np.array([[10.0, 0, 16], [0, 10, 12], [0, 0, 1]]), (num, 1, 1))
    return bare_scene(Views(poses, intrinsics, np.full((num, 2), SIZE)), **changes)


def make_truth(depth_paths=(), points=None, vertices=None, triangles=None):
    nothing = np.zeros((0, 3))
    return GroundTruth(
        points=nothing if points is None else points,
        normals=nothing,
        mesh_vertices=nothing if vertices is None else vertices,
        mesh_triangles=nothing.astype(int) if triangles is None else triangles,
        depth_paths=tuple(map(str, depth_paths)),
    )


def photo(view, channels=3):
    image = np.random.default_rng(view).integers(60, 190, (*SIZE, channels)).astype(np.uint8)
    if channels == 4:
        image[..., 3] = 255
    return image


def render_with_error(grey_levels):
    def render(view):
        color = (photo(view)[..., :3].astype(np.float32) + grey_levels) / 255
        return {
            "color": color,
            "alpha": np.ones(SIZE, np.float32),
            "depth": np.full(SIZE, 5.0, np.float32),
            "normal": np.tile(np.array([0, 0, 1.0], np.float32), (*SIZE, 1)),
        }

    return render


def test_known_error_gives_the_known_psnr_and_the_files_that_tools_read(tmp_path):
    store = Store([photo(v) for v in range(3)])
    # 5.2 grey levels are written as 5: the score is of the 8-bit image.
    scores = evaluate_views(
        render_with_error(5.2), make_scene(), store, np.array([0, 2]), Workdir(tmp_path), 700
    )
    expected = 20 * np.log10(255 / 5)
    assert scores["psnr"] == pytest.approx(expected, abs=1e-3)
    assert (
        scores["psnr_color_corrected"] > 50 and scores["ssim"] < scores["ssim_color_corrected"] <= 1
    )
    assert scores["num_test_views"] == 2 and set(scores["per_view"]) == {"a/0.jpg", "a/2.jpg"}
    results = json.loads((tmp_path / "results.json").read_text())
    assert (
        results["ours_700"]["PSNR"] == pytest.approx(expected, abs=1e-3)
        and "SSIM" in results["ours_700"]
    )
    assert "LPIPS" not in results["ours_700"]
    per_view = json.loads((tmp_path / "per_view.json").read_text())
    assert list(per_view["ours_700"]["SSIM"]) == ["00000.png", "00001.png"]
    folder = tmp_path / "test" / "ours_700"
    for kind in ("renders", "gt", "depth", "normal"):
        assert sorted(p.name for p in (folder / kind).iterdir()) == ["00000.png", "00001.png"]
    assert np.array_equal(pictures.read_image(folder / "gt" / "00001.png"), photo(2))
    assert json.loads((folder / "views.json").read_text()) == {
        "00000.png": "a/0.jpg",
        "00001.png": "a/2.jpg",
    }
    # A second evaluation of fewer views leaves no old pictures between the new ones.
    evaluate_views(render_with_error(0), make_scene(), store, np.array([1]), Workdir(tmp_path), 700)
    assert [p.name for p in (folder / "renders").iterdir()] == ["00000.png"]


def test_equal_pictures_have_a_psnr_that_json_can_hold(tmp_path):
    store = Store([photo(0)])
    scores = evaluate_views(
        render_with_error(0), make_scene(1), store, np.array([0]), Workdir(tmp_path), 1
    )
    assert scores["psnr"] == 100.0 and scores["ssim"] == pytest.approx(1, abs=1e-5)


def test_masked_pixels_do_not_count(tmp_path):
    image = photo(0, 4)
    image[:12, :, 3] = 0
    masked = image.copy()
    masked[:12, :, :3] = 0  # a wrong upper half, but masked
    render = {
        "color": image[..., :3].astype(np.float32) / 255 + 5 / 255,
        "alpha": np.ones(SIZE, np.float32),
    }
    scores = evaluate_views(
        lambda view: render, make_scene(1), Store([masked]), np.array([0]), Workdir(tmp_path), 1
    )
    assert scores["psnr"] == pytest.approx(20 * np.log10(255 / 5), abs=1e-3)
    assert not (tmp_path / "test" / "ours_1" / "depth").exists()


def test_exact_depth_gives_depth_and_normal_errors(tmp_path):
    depth = np.full(SIZE, 5.25, np.float32)
    normal = np.zeros((*SIZE, 3), np.float32)
    normal[:] = [0, np.sin(np.radians(10)), np.cos(np.radians(10))]
    depth[:3] = 0  # sky
    np.savez(tmp_path / "0.npz", depth=depth, normal=normal)
    normal[12:] = [1, 0, 0]  # a wall, which the render shows as ground
    truth = make_truth([tmp_path / "0.npz"])
    np.savez(tmp_path / "0.npz", depth=depth, normal=normal)
    alpha = np.ones(SIZE, np.float32)
    alpha[:, :8] = 0.4  # nothing solid in a quarter of the picture

    def render(view):
        maps = render_with_error(1)(view)
        # Right in all solid pixels, and wrong where nothing is solid.
        plane = np.where(alpha < 0.5, 50.0, 5.25).astype(np.float32)
        return maps | {
            "alpha": alpha,
            "median_depth": np.full(SIZE, 5.15, np.float32),
            "plane_depth": plane,
        }

    store = Store([photo(v) for v in range(2)])
    scores = evaluate_views(
        render, make_scene(2, ground_truth=truth), store, np.arange(2), Workdir(tmp_path / "out"), 1
    )
    assert scores["depth_error"] == pytest.approx(0.25)
    assert scores["normal_errors_deg"] == {
        "all": pytest.approx(90, abs=1e-3),
        "up_facing": pytest.approx(10, abs=1e-3),
        "walls": pytest.approx(90, abs=1e-3),
    }
    depth = scores["depth"]
    assert depth["unit"] == "m" and depth["expected"]["median"] == pytest.approx(0.25)
    assert depth["median"]["relative_median"] == pytest.approx(0.1 / 5.25, rel=1e-4)
    assert (
        depth["plane"]["p90"] == 0
        and depth["plane"]["covered"] == depth["plane"]["within_1_percent"] == 0.75
    )
    told = evaluation.summarize_geometry(scores)
    for words in (
        "half of the light",
        "expected 0.25 m",
        "plane 0 m",
        "10.0 deg on roofs and ground",
        "90.0 deg on walls",
    ):
        assert words in told
    per_view = json.loads((tmp_path / "out" / "per_view.json").read_text())["ours_1"]["geometry"]
    assert list(per_view) == ["00000.png"] and per_view["00000.png"]["depth"]["expected"][
        "median"
    ] == pytest.approx(0.25)
    assert "depth" in scores["per_view"]["a/0.jpg"] and "depth" not in scores["per_view"]["a/1.jpg"]


def test_mistakes_are_named(tmp_path):
    store = Store([photo(0)[:10]])
    with pytest.raises(InputError, match="expected the photograph's size"):
        evaluate_views(
            render_with_error(0), make_scene(1), store, np.array([0]), Workdir(tmp_path), 1
        )
    with pytest.raises(InputError, match="at least one"):
        evaluate_views(
            render_with_error(0), make_scene(1), store, np.array([], int), Workdir(tmp_path), 1
        )


def test_surface_scores_use_the_scene_s_truth_or_the_user_s():
    x, y = np.meshgrid(np.linspace(-3, 3, 121), np.linspace(-2, 2, 81))
    ground = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1)
    corners = np.array([[-3, -2, 0], [3, -2, 0], [3, 2, 0], [-3, 2, 0.0]])
    truth = make_truth((), ground, corners, np.array([[0, 1, 2], [0, 2, 3]]))
    raised = ground + np.array([0, 0, 0.1])
    scores = evaluation.compare_to_truth(
        raised, make_scene(ground_truth=truth), thresholds=(0.2,)
    ).scores
    assert scores["accuracy"] == pytest.approx(0.1) and scores["completeness"] == pytest.approx(0.1)
    assert (
        scores["unit"] == "m"
        and scores["thresholds"][0]["f1"] == 1.0
        and "2 images" in scores["crop"]
    )
    mesh = corners + np.array([0, 0, 0.1]), truth.mesh_triangles
    of_mesh = evaluation.compare_to_truth(
        mesh, make_scene(ground_truth=truth), thresholds=(0.2,), num_samples=2_000
    ).scores
    assert list(of_mesh["classes"]) == ["ground"]
    assert of_mesh["classes"]["ground"]["normal_deg"]["median"] == pytest.approx(0.0)
    assert evaluation.compare_to_truth(raised, make_scene()) is None
    of_user = evaluation.compare_to_truth(
        raised, make_scene(), raised, "ft", thresholds=(0.2,)
    ).scores
    assert (
        of_user["accuracy"] == 0
        and of_user["unit"] == "ft"
        and "other ground truth hides" in of_user["crop"]
    )


def test_of_a_user_s_points_those_count_that_the_exact_depth_does_not_hide(tmp_path):
    x, y = np.meshgrid(np.linspace(-3, 3, 61), np.linspace(-2, 2, 41))
    roof = np.stack([x.ravel(), y.ravel(), np.full(x.size, 1.0)], axis=1)
    np.savez(tmp_path / "depth.npz", depth=np.full(SIZE, 4.0, np.float32))  # the cameras are at 5
    truth = make_truth([tmp_path / "depth.npz"] * 3)
    points = np.concatenate([roof, roof - [0, 0, 1.0]])
    scores = evaluation.compare_to_truth(
        roof, make_scene(ground_truth=truth), points, "m", thresholds=(0.2,)
    ).scores
    assert (
        scores["thresholds"][0]["recall"] == 1.0 and "what the exact depth hides" in scores["crop"]
    )


def test_metrics_parts_are_merged(tmp_path):
    workdir = Workdir(tmp_path)
    path = workdir.metrics
    workdir.merge_metrics(stages=[{"name": "device"}])
    final = evaluation.final_part({"psnr": 20.0, "per_view": {"a": 1}}, 5)
    content = workdir.merge_metrics(final=final)
    assert (
        content
        == json.loads(path.read_text())
        == {
            "format": 1,
            "stages": [{"name": "device"}],
            "final": {"psnr": 20.0, "num_surfels": 5},
            "geometry": None,
        }
    )
    assert workdir.merge_metrics(geometry={"unit": "m"})["final"] == final
    with pytest.raises(InputError, match="expected the parts"):
        workdir.merge_metrics(finale={})
    path.write_text('{"format": 2}')
    with pytest.raises(InputError, match="expected format 1, got 2"):
        workdir.merge_metrics(final={})


def test_views_whose_mask_leaves_nothing_are_not_scored(tmp_path, caplog):
    photos = [
        np.concatenate([photo(view), np.full((*SIZE, 1), 255, np.uint8)], axis=-1)
        for view in range(3)
    ]
    photos[1][..., 3] = 0
    scores = evaluate_views(
        render_with_error(5.0), make_scene(), Store(photos), np.arange(3), Workdir(tmp_path), 7
    )
    assert scores["num_test_views"] == 2 and set(scores["per_view"]) == {"a/0.jpg", "a/2.jpg"}
    assert scores["psnr"] == pytest.approx(20 * np.log10(255 / 5), abs=1e-3)
    assert json.loads((tmp_path / "test/ours_7/views.json").read_text()) == {
        "00000.png": "a/0.jpg",
        "00002.png": "a/2.jpg",
    }
    assert "a/1.jpg: its mask leaves nothing" in caplog.text
    with pytest.raises(
        InputError, match="test views: expected one whose mask leaves something, got none"
    ):
        evaluate_views(
            render_with_error(5.0), make_scene(), Store(photos), np.array([1]), Workdir(tmp_path), 7
        )
    assert not score_view(np.zeros((*SIZE, 3), np.float32), photos[1], np.ones(SIZE, bool)).any()


def test_pictures_stay_below_their_folder_whatever_images_are_called(tmp_path, monkeypatch):
    names = ["../../up.jpg", "/abs/olute.png", "a/b.jpg", "a/b.png", "c.d.tif"]
    scene = make_scene(5, is_test=np.ones(5, bool))
    scene.image_names[:] = names  # as no reader would let them through
    maps = render_with_error(0)(0) | {"median_depth": np.ones(SIZE), "plane_depth": np.ones(SIZE)}
    workdir = Workdir(tmp_path / "run")
    place = types.SimpleNamespace(scene=scene)
    trained = Trained(Settings(), place, model=None, workdir=workdir)
    monkeypatch.setattr(Trained, "seen_by", lambda *_: types.SimpleNamespace(surfels=None))
    monkeypatch.setattr(Trained, "render_fn", lambda *_: lambda view: maps)
    monkeypatch.setattr(commands, "load_trained", lambda *_: trained)
    commands.render(Settings(), workdir)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*_color.png")}
    assert found == {
        f"run/renders/{name}_color.png" for name in ("up", "abs/olute", "a/b.jpg", "a/b.png", "c.d")
    }


def test_points_of_a_scan_come_into_the_dataset_s_frame(tmp_path):
    points = np.random.default_rng(0).normal(size=(9, 3))
    scan_from_dataset = np.eye(4)
    scan_from_dataset[:3, :3] = 12.5 * rotation_to_z(np.array([0.6, 0.0, 0.8]))
    scan_from_dataset[:3, 3] = [500_000, 4_000_000, -7]
    in_scan = points @ scan_from_dataset[:3, :3].T + scan_from_dataset[:3, 3]
    scan = tmp_path / "scan.ply"
    matrix = tmp_path / "transform.txt"
    write_ply(scan, table_of(("x y z", "f8", in_scan)))
    np.savetxt(matrix, scan_from_dataset, fmt="%.12f", header="scan from COLMAP")
    np.testing.assert_allclose(commands.read_truth(str(scan), str(matrix)), points, atol=1e-8)
    assert commands.read_truth("", "") is None
    with pytest.raises(InputError, match="expected --gt_points with it"):
        commands.read_truth("", str(matrix))
    for wrong, words in (
        (scan_from_dataset[:3], "expected 4 lines of 4 numbers"),
        (np.diag([1.0, 2, 1, 1]), "expected a rotation with a scale"),
        (np.diag([-1.0, 1, 1, 1]), "expected a rotation with a scale"),
        (np.diag([1.0, 1, 1, 2]), "a last row of 0 0 0 1"),
        (np.full((4, 4), np.nan), "expected a rotation with a scale"),
    ):
        np.savetxt(matrix, wrong)
        with pytest.raises(InputError, match=words):
            commands.read_truth(str(scan), str(matrix))
