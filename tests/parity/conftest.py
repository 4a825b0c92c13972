"""Which tests of the portable rasterizer run every time: those that share a compiled program;
`--slow` runs the others.

XLA takes 6 s to compile it, and 12 s with the backward pass: all of its tests take minutes.
"""

import pytest
from emulated_calls import emulation  # noqa: F401 - a fixture of test_cuda_*.py
from emulation import library  # noqa: F401 - likewise

SHARED_CASES = (
    "random_cloud",
    "off_centre",
    "far_crop",
    "edge_on",
    "exactly_edge_on",
    "extreme_scales",
    "ties",
    "opaque_stack",
    "alpha_threshold",
    "all_dead",
    "no_surfels",
    "parallel_cloud",
    "parallel_near_plane",
)
SHARED_TESTS = (
    "test_a_broken_surfel_is_as_if_dead_but_counted",
    "test_dead_surfels_may_hold_anything",
    "test_finite_extremes_stay_finite",
    "test_hostile_operands_give_finite_numbers",
    "test_exactly_edge_on_surfels_have_finite_gradients",
    "test_gradient_by_finite_differences",
    "test_vmap_over_cameras_and_over_surfels",
    "test_own_surfels_and_own_camera_per_device",
    "test_mistakes_are_named",
)
SHARED_TESTS_OF_CASES = (
    "test_forward",
    "test_contributions",
    "test_gradient",
    "test_gradient_probe",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        params = getattr(item, "callspec", None) and item.callspec.params
        if not params or "portable" not in (params.get("backend"), params.get("any_backend")):
            continue
        is_shared = item.originalname in SHARED_TESTS or (
            item.originalname in SHARED_TESTS_OF_CASES and params.get("name") in SHARED_CASES
        )
        if not is_shared:
            item.add_marker(pytest.mark.slow)
