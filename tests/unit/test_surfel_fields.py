"""That every list of the fields of surfels follows from `SurfelParams`, or is compared with it."""

import dataclasses
import re
from pathlib import Path

import numpy as np

from cosurfgs_jax.settings import OptimSettings
from cosurfgs_jax.types import DRAWN_NAMES, PARAM_NAMES, blank_params, param_shapes

PACKAGE = Path(__file__).parents[2] / "cosurfgs_jax"
TYPES = (PACKAGE / "native/csrc/raster/surfel_types.h").read_text(encoding="utf-8")
# Where it matters what each field means.
NAME_ALL = {
    "types.py",
    "formats/points.py",
    "formats/splat_ply.py",
    "model/compact.py",  # which keeps fields that it does not know as they are
    "model/initialize.py",
    "raster/projection.py",
    "raster/reference.py",
    "native/csrc/raster/surfel_types.h",
}


def test_the_list_in_cpp_is_that_of_python():
    """The native rasterizer is given the fields in this order, the spherical harmonics apart."""
    lines = re.findall(r'visit\("(\w+)", arrays\.(\w+), numbers\.(\w+)\);', TYPES)
    names = [name for name in DRAWN_NAMES if name != "sh"]
    assert [name for name, _, _ in lines] == names
    assert [array for _, array, _ in lines] == names
    lengths = dict(re.findall(r"\b(\w+)\[(\d+)\]", TYPES.partition("struct SurfelParams")[2]))
    for name, _, numbers in lines:
        assert int(lengths[numbers]) == np.prod(param_shapes(1, 1)[name]), name


def test_every_field_has_a_learning_rate():
    rates = {field.name for field in dataclasses.fields(OptimSettings)}
    assert {"means_start", "means_end", "sh_dc", "sh_rest"} <= rates
    assert set(PARAM_NAMES) - {"means", "sh"} <= rates


def test_blank_slots():
    assert param_shapes("N", "K")["sh"] == ("N", "K", 3)
    blank = blank_params(5, 4).by_name()
    assert {name: values.shape for name, values in blank.items()} == param_shapes(5, 4)
    assert all(values.dtype == np.float32 for values in blank.values())
    np.testing.assert_array_equal(blank.pop("quats"), [[1, 0, 0, 0]] * 5)
    assert not any(values.any() for values in blank.values())


def test_no_other_file_names_all_fields():
    """What a new attribute would have to be added to is known, and short."""
    found = set()
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".h", ".cc", ".cu", ".cuh"):
            words = set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
            if words >= set(PARAM_NAMES) - {"means"}:
                found.add(str(path.relative_to(PACKAGE)))
    assert found == NAME_ALL
