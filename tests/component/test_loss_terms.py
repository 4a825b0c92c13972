"""Terms of the loss: the list, its sum, and terms that a user gives."""

import jax.numpy as jnp
import numpy as np
import pytest
from scenes import town_place

from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.distributed.layout import make_layout
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.losses.inputs import LossView
from cosurfgs_jax.losses.term import LossTerm, Phase, TermValue, own_term
from cosurfgs_jax.raster.options import Maps
from cosurfgs_jax.settings import LossSettings, Settings, SurfelSettings
from cosurfgs_jax.training.compiled_steps import compile_blocks
from cosurfgs_jax.training.first_state import first_state
from cosurfgs_jax.training.loss_terms import (
    TERMS,
    check_own_terms,
    maps_of,
    total_loss,
    used_terms,
)
from cosurfgs_jax.training.partitioned_scene import Photographs
from cosurfgs_jax.training.saved_meta import check_own_terms as check_stage
from cosurfgs_jax.training.step import Batch, StepShape


def _names(settings: Settings, **phase) -> list[str]:
    return [term.name for term in used_terms(settings, Phase(**phase))]


def test_settings_and_the_phase_choose_the_terms():
    settings = Settings()
    assert _names(settings, has_geometry=False) == ["photometric", "exposure_identity"]
    assert _names(settings, has_geometry=True)[-1] == "geometric"
    distilled = _names(settings, has_geometry=True, is_distillation=True)
    assert "teacher_color" not in distilled  # photographs alone say what colours are
    settings.mas.teacher_weight = 0.5
    distilled = _names(settings, has_geometry=True, is_distillation=True)
    assert {"teacher_color", "teacher_depth", "teacher_normal"} < set(distilled)
    settings.loss.distortion_weight = 1.0
    assert "distortion" in _names(settings, has_geometry=False)
    assert "distortion" not in _names(settings, has_geometry=True, is_distillation=True)
    settings.loss = LossSettings(
        single_view_weight=0, multi_view_geometric_weight=0, multi_view_photometric_weight=0
    )
    assert "geometric" not in _names(settings, has_geometry=True)


def test_the_rasterizer_draws_what_the_terms_need():
    settings = Settings()
    assert maps_of(used_terms(settings, Phase(has_geometry=False))) == Maps.COLOR
    assert maps_of(used_terms(settings, Phase(has_geometry=True))) == Maps.GEOMETRY
    settings.loss.distortion_weight = 1.0
    assert maps_of(used_terms(settings, Phase(has_geometry=False))) == Maps.ALL


def test_the_loss_is_the_sum_of_the_totals_and_shows_all_names():
    def term(name, total):
        return LossTerm(name, lambda *_: True, lambda *_: TermValue(total, {name: total / 2}))

    view = LossView(out=None, surfels=None, camera=None, photo=None)
    terms = [term("a", jnp.float32(1)), term("b", jnp.float32(4))]
    loss, shown = total_loss(view, terms, Settings())
    assert loss == 5.0 and shown == {"a": 0.5, "b": 2.0}


def test_names_differ():
    own = own_term("flat", lambda view: 0.0)
    check_own_terms([own])
    for terms in ([own, own], [own_term(TERMS[0].name, lambda view: 0.0)]):
        with pytest.raises(InputError, match="names that differ.*twice"):
            check_own_terms(terms)


def test_a_weight_is_positive():
    with pytest.raises(InputError, match="flat: expected a positive weight, got -1"):
        own_term("flat", lambda view: 0.0, weight=-1)


def test_a_stage_goes_on_with_the_terms_that_it_began_with():
    own = [own_term("flat", lambda view: 0.0)]
    check_stage(own, {"own_loss_terms": ["flat"]})
    check_stage([], {})  # a checkpoint from before there were such terms
    with pytest.raises(InputError, match=r"began with \(flat\), got none; give the same ones"):
        check_stage([], {"own_loss_terms": ["flat"]})
    with pytest.raises(InputError, match=r"began with \(none\), got flat"):
        check_stage(own, {})


@pytest.fixture(scope="module")
def step_with():
    """own terms -> (the state after a step, its report), of one block under shard_map."""
    partitioned = town_place()
    settings = Settings(surfels=SurfelSettings(sh_degree=0))
    layout = make_layout(np.zeros(1, np.int64), num_devices=1)
    block = partitioned.blocks[0]
    with ImageStore(partitioned.scene, 64) as images:
        photo = Photographs(partitioned, images).load(0, 1)
    index = np.int32(np.searchsorted(block.views, 1))
    batch = Batch(partitioned.views.camera_arrays(1), photo, index, np.float32(0), np.int32(0))

    def step(*own_terms):
        state = layout.put(lambda _: first_state(partitioned, block, settings, 4096))
        train = compile_blocks(settings, layout, own_terms).train
        shape = StepShape(is_densifying=False)
        return layout.get(train(state, layout.put(lambda _: batch), shape=shape), 0)

    return step


def test_a_term_of_a_user_is_drawn_for_added_shown_and_moves_surfels(step_with):
    seen = {}

    def near(view):
        seen.update(view._asdict())
        return view.out.depth.mean() + jnp.exp(view.surfels.log_scales).mean()

    without, plain = step_with()
    state, report = step_with(own_term("near", near, weight=0.5))
    assert seen["out"].normal is not None and seen["out"].distortion is None
    assert seen["camera"].intrinsics.shape == (3, 3) and seen["photo"].dtype == np.uint8
    assert "loss/near" not in plain.shown and report.shown["loss/near"] > 0
    expected = plain.loss + 0.5 * report.shown["loss/near"]
    np.testing.assert_allclose(report.loss, expected, rtol=1e-5)
    assert (state.params.log_scales != without.params.log_scales).any()


def test_a_term_that_is_no_scalar_is_one_sentence(step_with):
    with pytest.raises(InputError, match="flat: expected a scalar, got an array of shape"):
        step_with(own_term("flat", lambda view: view.out.alpha))
