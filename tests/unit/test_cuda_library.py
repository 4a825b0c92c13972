"""What can be known of the CUDA library without a GPU: it is built, exports its calls, and programs lower to them."""

import collections
import importlib
import os
import re
import shutil

import jax
import jax.numpy as jnp
import pytest
from scenes import abstract_batch

from cosurfgs_jax import Camera, Surfels, raster, rasterize
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.raster import ffi
from cosurfgs_jax.settings import Settings, SurfelSettings
from cosurfgs_jax.training.state import abstract_state
from cosurfgs_jax.training.step import StepShape, train_step


@pytest.fixture(scope="module")
def build():
    """What this installation was built with; skips where there was no nvcc to build the CUDA library with."""
    info = importlib.import_module("cosurfgs_jax._build_info")
    has_nvcc = shutil.which("nvcc") or os.path.exists("/usr/local/cuda/bin/nvcc")
    if not info.CUDA and (not has_nvcc or os.environ.get("COSURFGS_CUDA") == "OFF"):
        pytest.skip(f"the CUDA library was not built: {info.WHY_NO_CUDA}")
    return info


def test_the_library_is_built_and_exports_its_calls(build):
    assert build.CUDA, build.WHY_NO_CUDA
    assert "sm_80" in build.CUDA and "sm_90" in build.CUDA
    library = ffi.load_cuda_library()  # looks up every symbol
    assert library.CosurfgsCudaRasterForward and library.CosurfgsCudaRasterBackward
    assert library.CosurfgsCudaPhotometricLosses and library.CosurfgsCudaAdam


def test_without_a_gpu_cuda_says_why(build):
    if jax.default_backend() != "cpu":
        pytest.skip("there is a GPU here")
    assert ffi.cuda_problem()


def _surfels(count: int) -> Surfels:
    return Surfels(jnp.zeros((count, 3)), jnp.ones((count, 4)), jnp.zeros((count, 2)), jnp.zeros(count),
                   jnp.zeros((count, 4, 3)), jnp.ones(count, bool))


@pytest.fixture
def as_on_gpus(monkeypatch):
    """The package takes what it would take on a GPU with its library."""
    monkeypatch.setattr(ffi, "is_cuda", lambda: True)
    monkeypatch.setattr(ffi, "why_no_cuda_library", lambda: "")
    monkeypatch.setattr(ffi, "load_cuda_library", lambda: None)


def _calls(text: str) -> dict[str, int]:
    """Our calls in a lowered program, and how often each is there."""
    return collections.Counter(re.findall(r"@(cosurfgs_\w+)\(", text))


def test_a_render_with_gradients_lowers_for_cuda_to_the_same_calls(as_on_gpus):
    """From a machine without a GPU: the program of a GPU machine has the targets that the CUDA library registers."""
    def loss(surfels, camera):
        out = rasterize(surfels, camera, image_size=(20, 30), near=0.1, deterministic=False)
        return out.color.sum() + out.distortion.sum() + out.plane_depth.sum()

    camera = Camera(jnp.stack([jnp.eye(4)] * 2), jnp.stack([jnp.eye(3)] * 2))
    step = jax.jit(jax.value_and_grad(loss, allow_int=True))
    text = step.trace(_surfels(7), camera).lower(lowering_platforms=("cuda",)).as_text()
    assert _calls(text) == {"cosurfgs_raster_forward": 1, "cosurfgs_raster_backward": 1}
    assert "deterministic = false" in text and "height = 20" in text


def _lower_training_step(channels: int = 3) -> str:
    """The project's own step with all losses, as a GPU gets it."""
    settings = Settings(surfels=SurfelSettings(sh_degree=1))

    def step(state, batch):
        return train_step(state, batch, settings, StepShape(is_densifying=True, has_geometry=True))

    batch = abstract_batch((32, 48))
    batch = batch._replace(photo=jax.ShapeDtypeStruct((32, 48, channels), batch.photo.dtype))
    with jax.default_matmul_precision("highest"):
        return jax.jit(step, donate_argnums=0).trace(abstract_state(256, 4, settings), batch).lower(
            lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("channels", [3, 4])
def test_the_training_step_lowers_for_cuda_with_our_kernels_in_it(as_on_gpus, channels):
    """Both views are drawn, and only the first one goes back; one call for the photometric losses, one of Adam for each field."""
    text = _lower_training_step(channels)
    assert _calls(text) == {"cosurfgs_raster_forward": 2, "cosurfgs_raster_backward": 1, "cosurfgs_photometric_losses": 1,
                            "cosurfgs_adam": 5}
    assert set(_calls(text)) <= set(ffi._CUDA_TARGETS)
    for line in text.splitlines():
        if "@cosurfgs_adam(" in line:  # values and moments in place
            assert line.count("output_operand_alias<") == 3
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_without_its_library_a_gpu_trains_in_plain_jax(as_on_gpus, monkeypatch):
    monkeypatch.setattr(ffi, "why_no_cuda_library", lambda: "it was not built")  # said once in each process
    assert not _calls(_lower_training_step())


def test_who_has_a_native_target(as_on_gpus, monkeypatch):
    numbers = jnp.zeros(3)
    assert ffi.has_native("cosurfgs_adam", numbers) and not ffi.has_native("cosurfgs_plane_depth", numbers)
    assert not ffi.has_native("cosurfgs_adam", numbers.astype(jnp.int32))
    assert ffi.choose_native("Adam", "cosurfgs_adam", "cuda") and not ffi.choose_native("Adam", "cosurfgs_adam", "reference")
    with pytest.raises(InputError, match='"cpu" was asked for, but JAX does not compute on the CPU here'):
        ffi.choose_native("Adam", "cosurfgs_adam", "cpu")
    with pytest.raises(InputError, match='backend: expected None, "cpu" or "reference" for plane depth, got \'cuda\''):
        ffi.choose_native("plane depth", "cosurfgs_plane_depth", "cuda")
    monkeypatch.setattr(ffi, "why_no_cuda_library", lambda: "the moon is full")
    assert not ffi.has_native("cosurfgs_adam", numbers)
    with pytest.raises(InputError, match='"cuda" was asked for, but the moon is full'):
        ffi.choose_native("Adam", "cosurfgs_adam", "cuda")
    monkeypatch.setattr(ffi, "is_cuda", lambda: False)
    assert ffi.has_native("cosurfgs_adam", numbers) and ffi.has_native("cosurfgs_plane_depth", numbers)


def test_the_backend_follows_the_platform(monkeypatch, caplog):
    monkeypatch.setattr(ffi, "is_cuda", lambda: True)
    monkeypatch.setattr(ffi, "why_no_cuda_library", lambda: "")
    assert raster.choose_backend(None) == raster.choose_backend("cuda") == "cuda"
    monkeypatch.setattr(ffi, "why_no_cuda_library", lambda: "the moon is full")
    with pytest.raises(InputError, match="'cuda' is not available: the moon is full"):
        raster.choose_backend("cuda")
    assert raster.choose_backend(None) == "portable" and "the moon is full" in caplog.text


def test_a_missing_library_is_one_sentence_that_helps(monkeypatch):
    monkeypatch.setattr(ffi, "is_cuda", lambda: True)
    monkeypatch.setattr(ffi, "_library_path", lambda name: f"/nowhere/{name}")
    for function in (ffi.load_cuda_library, ffi.cuda_problem, ffi.why_no_cuda_library):
        monkeypatch.setattr(ffi, function.__name__, function.__wrapped__)  # without what they remember
    why = ffi.why_no_cuda_library()
    assert "/nowhere/libcosurfgs_cuda.so" in why and "COSURFGS_CUDA=ON pip install ." in why


def test_on_a_cpu_cuda_says_what_to_install():
    if jax.default_backend() != "cpu":
        pytest.skip("there is a GPU here")
    with pytest.raises(InputError, match=r"'cuda' is not available: JAX computes on cpu here.*cosurfgs_jax\[cuda13\]"):
        raster.choose_backend("cuda")
