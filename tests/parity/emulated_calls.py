"""The CUDA rasterizer's custom calls on the host (tests/support/emulation.py): a fixture for the
tests that run them, and helpers that these share."""

import jax
import numpy as np
import pytest
import raster_cases as cases
from emulation import Knobs

RENDERERS = {
    "emulation": {},
    "emulation_atomic": {"deterministic": False},
    "emulation_alone": {"kept_bytes": 0},
}


@pytest.fixture
def emulation(library, monkeypatch):
    """Adds the emulation to the renderers. Sets its knobs, all others as they were, and returns
    them with the counters.
    """
    for name, options in RENDERERS.items():
        monkeypatch.setitem(
            cases.RENDERERS,
            name,
            cases.renderer(targets="emulated_raster", **options),
        )
    knobs = Knobs.of(library)
    untouched = knobs.numbers()

    def configure(**wanted):
        knobs.set(**{**untouched, **wanted})
        return knobs

    yield configure
    configure()


def cotangents_where_safe(case):
    """Random cotangents at pixels where no decision hangs on rounding."""
    _, margins = cases.reference_maps(case)
    return cases.random_cotangents(case, margins > cases.SAFE_MARGIN)


def assert_same(got, want):
    """The same bits in all leaves."""
    jax.tree.map(np.testing.assert_array_equal, got, want)
