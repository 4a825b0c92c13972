"""Numbers that Python and C++ share: a constant is changed on both sides, or this fails."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

import cosurfgs_jax
from cosurfgs_jax.metrics import images
from cosurfgs_jax.raster import Maps, Removal

SOURCES = Path(cosurfgs_jax.__file__).parent / "native" / "csrc"

# Path of the Python object, header, name in C++.
SHARED = [
    ("raster.tile_backend.TILE", "common/constants.h", "kTile"),
    ("raster.reference.MIN_ALPHA", "common/constants.h", "kMinAlpha"),
    ("raster.reference.MAX_ALPHA", "common/constants.h", "kMaxAlpha"),
    ("raster.reference.MIN_TRANSMITTANCE", "common/constants.h", "kMinTransmittance"),
    ("raster.reference.MAX_LENGTH", "common/constants.h", "kMaxLength"),
    ("raster.reference.MAX_VALUE", "common/constants.h", "kMaxValue"),
    ("raster.reference.MIN_QUAT_SQUARED", "common/constants.h", "kMinQuat2"),
    ("raster.projection._BOX_MARGIN", "common/constants.h", "kBoxMargin"),
    ("losses.multi_view.MASKED_GRAY", "losses/patch_ncc.h", "kMaskedGray"),
    ("losses.multi_view.MIN_GRAY", "losses/patch_ncc.h", "kMinGray"),
    ("losses.multi_view.MIN_PATCH_WEIGHT", "losses/patch_ncc.h", "kMinPatchWeight"),
    ("losses.multi_view.SLOPE_REACH", "losses/patch_ncc.h", "kSlopeReach"),
    ("losses.multi_view.MAX_BEND", "losses/patch_ncc.h", "kMaxBend"),
    ("metrics.images.SSIM_WINDOW", "losses/ssim_window.h", "kSsimTaps"),
    ("metrics.images.SSIM_C1", "losses/ssim_window.h", "kSsimC1"),
    ("metrics.images.SSIM_C2", "losses/ssim_window.h", "kSsimC2"),
]
# Constants of the same headers that have no name in Python.
NATIVE_ALONE = {
    "kMedianTransmittance",  # written out in the definitions, as the middle
    "kMaxPatchRadius",  # the largest that is compiled; the radius is an argument
    "kSsimRadius",  # half of SSIM_WINDOW
    "kPhotoUnit",  # 1 / 255
}
HEADERS = sorted({header for _, header, _ in SHARED})


def _text(header: str) -> str:
    text = (SOURCES / header).read_text(encoding="utf-8")
    return re.sub(r"//.*", "", text)


def constants(text: str) -> dict[str, float]:
    """The numbers of `constexpr` lines of C++ without comments; one may be made of those before."""
    found: dict[str, float] = {}
    for line in re.findall(r"constexpr (?:float|int|int64_t) (k\w+ =[^;{]+);", text):
        for item in line.split(","):
            name, _, value = item.partition("=")
            number = re.sub(r"(?<=[\d.])f\b", "", value)
            found[name.strip()] = eval(number.strip(), {"__builtins__": {}}, dict(found))
    return found


def slots(text: str, enum: str) -> list[tuple[str, int]]:
    """Names without their k, and numbers, of an enum of C++."""
    (body,) = re.findall(rf"enum {enum} : int \{{(.*?)\}}", text, re.S)
    return [(name, int(number)) for name, number in re.findall(r"k(\w+) = (\d+)", body)]


def test_constants_are_read():
    text = "constexpr float kA = 1.0f / 4.0f, kB = -1e-4f;\nconstexpr int kC = 2 * kD + 1;\n"
    text = "constexpr int64_t kD =\n    5;\n" + text + "constexpr float kE[2] = {1.0f, 2.0f};\n"
    assert constants(text) == {"kA": 0.25, "kB": -1e-4, "kC": 11, "kD": 5}


@pytest.mark.parametrize(("path", "header", "name"), SHARED, ids=lambda value: value)
def test_a_constant_is_the_same_in_both_languages(path: str, header: str, name: str):
    module, _, attribute = path.rpartition(".")
    value = getattr(importlib.import_module(f"cosurfgs_jax.{module}"), attribute)
    assert np.float32(value) == np.float32(constants(_text(header))[name])


@pytest.mark.parametrize("header", HEADERS)
def test_every_constant_of_these_headers_is_compared(header: str):
    listed = {name for _, path, name in SHARED if path == header}
    assert set(constants(_text(header))) - NATIVE_ALONE == listed


def test_the_weights_of_the_window_are_those_of_the_definition():
    (numbers,) = re.findall(r"kHalf\[[^]]*\] = \{([^}]*)\}", _text("losses/ssim_window.h"))
    half = np.array([float(number.strip().rstrip("f")) for number in numbers.split(",")])
    distances = np.arange(images.SSIM_WINDOW // 2, -1, -1)
    weights = np.exp(-np.square(distances) / (2 * images.SSIM_SIGMA**2))
    weights /= 2 * weights.sum() - weights[-1]
    np.testing.assert_allclose(half, weights, rtol=1e-6)


def test_maps_are_those_of_the_kernels():
    levels = dict(slots(_text("raster/raster.h"), "Maps"))
    assert levels == {level.name.capitalize(): int(level) for level in Maps}


def test_sums_of_a_removal_are_in_the_order_of_the_kernels():
    names = [(f"Removal{name.capitalize()}", at) for at, name in enumerate(Removal._fields)]
    assert slots(_text("raster/raster.h"), "RemovalSlot") == [*names, ("Removal", len(names))]
