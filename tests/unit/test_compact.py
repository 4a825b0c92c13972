"""The compact form: what comes back differs by no more than the steps say, and nothing else is
taken for it.
"""

import io

import numpy as np
import pytest

from cosurfgs_jax.collab import stage_bytes
from cosurfgs_jax.model import compact
from cosurfgs_jax.types import PARAM_NAMES, SurfelParams


def random_params(count: int, num_sh: int = 4, seed: int = 0) -> SurfelParams:
    rng = np.random.default_rng(seed)
    values = {
        "means": rng.normal(0, 3, (count, 3)),
        "quats": rng.normal(0, 1, (count, 4)) * rng.uniform(0.1, 5, (count, 1)),
        "log_scales": rng.normal(-5, 1.5, (count, 2)),
        "logit_opacities": rng.normal(0, 6, count),
        "sh": rng.normal(0, 0.3, (count, num_sh, 3)),
    }
    return SurfelParams(**{name: value.astype(np.float32) for name, value in values.items()})


def in_stored_order(params: SurfelParams, arrays: dict) -> np.ndarray:
    """Which surfel each stored one is: of the nearest position, of few surfels."""
    decoded = compact.decode(arrays).means.astype(np.float64)
    squared = ((decoded[:, None] - params.means[None].astype(np.float64)) ** 2).sum(axis=-1)
    order = squared.argmin(axis=1)
    assert sorted(order) == list(range(len(order))), "each surfel is stored once"
    return order


def rotations(quats: np.ndarray) -> np.ndarray:
    units = quats.astype(np.float64) / np.linalg.norm(quats, axis=1, keepdims=True)
    return units * np.where(units[:, :1] < 0, -1, 1)


@pytest.mark.parametrize("count, num_sh", [(1, 1), (63, 4), (64, 16), (500, 4)])
def test_errors_stay_within_half_a_step(count, num_sh):
    params = random_params(count, num_sh, seed=count)
    arrays = compact.encode(params)
    order = in_stored_order(params, arrays)
    expected = {name: value[order] for name, value in params.by_name().items()}
    got = compact.decode(arrays).by_name()
    rounding = 1 + 1e-5
    for name, step in (
        ("log_scales", compact.LOG_SCALE_STEP),
        ("logit_opacities", compact.LOGIT_STEP),
    ):
        assert np.abs(got[name] - expected[name]).max() <= step / 2 * rounding, name
    off = np.abs(got["sh"] - expected["sh"])
    assert off[:, 0].max() <= compact.SH_STEP / 2 * rounding
    assert off[:, 1:].max(initial=0) <= compact.HIGHER_SH_STEP / 2 * rounding
    sizes = np.exp(expected["log_scales"].max(axis=1))
    shift = np.abs(got["means"] - expected["means"]).max(axis=1)
    float32 = 1e-6 * np.abs(expected["means"]).max()
    assert (shift <= compact.MEAN_STEP / 2 * sizes * rounding + float32).all()
    cosines = np.abs((rotations(got["quats"]) * rotations(expected["quats"])).sum(axis=1))
    angles = 2 * np.arccos(np.minimum(cosines, 1))
    assert angles.max() < 4 * compact.QUAT_STEP, "radians"
    np.testing.assert_allclose(np.linalg.norm(got["quats"], axis=1), 1, rtol=1e-6)


def test_what_is_decoded_comes_back_unchanged():
    """As far as the steps of positions: they follow the scales, which have moved."""
    first = compact.decode(compact.encode(random_params(300)))
    again = compact.decode(compact.encode(first))
    for name in ("log_scales", "logit_opacities", "sh"):
        np.testing.assert_array_equal(
            np.sort(getattr(again, name), axis=0), np.sort(getattr(first, name), axis=0), name
        )


def test_no_surfel_is_a_model_too():
    empty = random_params(0)
    got = compact.decode(compact.encode(empty))
    for name, value in got.by_name().items():
        assert value.shape == getattr(empty, name).shape and value.dtype == np.float32


def test_surfels_that_are_not_finite_are_left_out():
    params = random_params(70)
    params.means[3, 1] = np.nan
    params.sh[9, 2, 0] = np.inf
    assert len(compact.decode(compact.encode(params)).means) == 68


def test_extreme_numbers_are_cut_and_stay_finite():
    params = random_params(70)
    params.means[0] = 1e8
    params.log_scales[1] = -80
    params.log_scales[2] = 80
    params.logit_opacities[3] = -3e38
    params.quats[4] = 0
    got = compact.decode(compact.encode(params))
    assert len(got.means) == 70
    assert np.abs(got.means).max() == pytest.approx(1e8, rel=1e-4)


def test_smooth_colours_and_near_positions_cost_little():
    """Where higher bands are below half a step they cost next to nothing."""

    def size(params):
        file = io.BytesIO()
        np.savez_compressed(file, **compact.encode(params))
        return file.tell()

    params = random_params(2000, 16)
    whole = sum(value.nbytes for value in params.by_name().values())
    plain = params.replace(sh=params.sh * (np.arange(16) < 1)[None, :, None].astype(np.float32))
    assert size(plain) < size(params) / 2 and size(params) < whole / 3


@pytest.mark.parametrize("name", compact.ARRAY_NAMES)
@pytest.mark.parametrize(
    "change",
    [
        lambda array: array[..., :-1],
        lambda array: array[None],
        lambda array: array.astype(np.float64),
        lambda array: array[:0],
        lambda array: np.concatenate([array] * 5),
    ],
)
def test_arrays_of_other_forms_are_refused(name, change):
    arrays = compact.encode(random_params(130))
    changed = change(arrays[name])
    with pytest.raises(ValueError, match="expected"):
        compact.decode(arrays | {name: changed})


def test_every_trained_field_is_stored():
    assert set(PARAM_NAMES) <= set(compact.decode(compact.encode(random_params(3))).by_name())


def test_the_size_of_many_surfels_is_that_of_a_sample(monkeypatch):
    params = random_params(9000)
    alive = np.arange(9000) % 3 > 0
    whole = stage_bytes.compact_bytes(params, alive)
    monkeypatch.setattr(stage_bytes, "_MOST", 2500)  # of 6,000: every third
    encoded = []
    encode = compact.encode
    monkeypatch.setattr(compact, "encode", lambda params: encoded.append(params) or encode(params))
    sample = stage_bytes.compact_bytes(params, alive)
    np.testing.assert_array_equal(encoded[0].means, params.means[alive][::3])
    assert abs(sample / whole - 1) < 0.1
    assert stage_bytes.compact_bytes(params, np.zeros(9000, bool)) > 0


def test_sizes_are_said_in_words_where_there_are_any():
    sizes = stage_bytes.StageBytes(3 << 20, 1 << 19, 0, 0, 0)
    few = "3.0 MB of parameters; 0.5 MB in the compact form"
    assert stage_bytes.summarize_bytes(sizes, 0) == few
    sizes = sizes._replace(bytes_checkpoint=9 << 20, bytes_checkpoint_model=3 << 20)
    sizes = sizes._replace(bytes_handed_over=1 << 20)
    assert stage_bytes.summarize_bytes(sizes, 5 << 20) == (
        f"{few}; 9.0 MB in its checkpoint, of which 3.0 stay; "
        "1.0 MB taken from blocks' own jobs; 5.0 MB sent by a device"
    )
