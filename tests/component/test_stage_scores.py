"""Scores of a stage: sums over test views, and the means that are made of them."""

import numpy as np
import pytest

from cosurfgs_jax.collab.stage_scores import score_view, scores_from_sums

SIZE = (24, 32)


def _photo() -> np.ndarray:
    return np.random.default_rng(0).integers(60, 180, (*SIZE, 3)).astype(np.uint8)


def test_an_error_of_known_size_gives_the_known_psnr_at_the_seam():
    photo = _photo()
    seam = np.zeros(SIZE, bool)
    seam[:, :5] = True
    color = photo.astype(np.float32) / 255
    color[seam] += 0.1  # elsewhere the render is the photograph
    scores = scores_from_sums(score_view(color, photo, seam))
    assert scores.psnr_seam == pytest.approx(20.0, abs=1e-3)
    expected = 20.0 + 10 * np.log10(seam.size / seam.sum())
    assert scores.psnr == pytest.approx(expected, abs=1e-3)
    assert scores.psnr < scores.psnr_fitted and scores.ssim < 1


def test_a_fit_takes_out_a_change_of_exposure():
    photo = _photo()
    color = 0.8 * photo.astype(np.float32) / 255 + 0.05
    scores = scores_from_sums(score_view(color, photo, np.ones(SIZE, bool)))
    assert scores.psnr_seam == pytest.approx(scores.psnr, abs=1e-3) and scores.psnr < 30
    assert scores.psnr_fitted > 50 and scores.psnr_seam_fitted > 50


def test_masked_pixels_are_not_at_the_seam_and_means_are_over_views():
    photo = np.concatenate([_photo(), np.full((*SIZE, 1), 255, np.uint8)], axis=-1)
    photo[:, :5, 3] = 0
    color = photo[..., :3].astype(np.float32) / 255
    color[:, :5] = 0.0  # wrong where nothing counts
    color[:, 5:] += 0.01
    seam = np.zeros(SIZE, bool)
    seam[:, :8] = True
    sums = score_view(color, photo, seam)
    assert sums[4] == 3 * SIZE[0]
    twice = scores_from_sums(2 * sums)
    assert twice.psnr == pytest.approx(40.0, abs=1e-2) and twice.psnr_seam == pytest.approx(
        40.0, abs=1e-2
    )


def test_nothing_scored_gives_no_numbers():
    assert set(scores_from_sums(np.zeros(7))) == {None}
