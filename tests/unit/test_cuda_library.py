"""What can be known of the CUDA library without a GPU: it is built, exports its calls, and programs lower to them."""

import importlib
import os
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


def test_without_a_gpu_cuda_says_why(build):
    if jax.default_backend() != "cpu":
        pytest.skip("there is a GPU here")
    assert ffi.cuda_problem()


def _surfels(count: int) -> Surfels:
    return Surfels(jnp.zeros((count, 3)), jnp.ones((count, 4)), jnp.zeros((count, 2)), jnp.zeros(count),
                   jnp.zeros((count, 4, 3)), jnp.ones(count, bool))


def test_a_step_lowers_for_cuda_to_the_same_calls(monkeypatch):
    """From a machine without a GPU: the program of a GPU machine has the targets that the CUDA library registers."""
    monkeypatch.setattr(ffi, "has_native", lambda *operands: False)  # as on that machine

    def loss(surfels, camera):
        out = rasterize(surfels, camera, image_size=(20, 30), near=0.1, deterministic=False)
        return out.color.sum() + out.distortion.sum() + out.plane_depth.sum()

    camera = Camera(jnp.stack([jnp.eye(4)] * 2), jnp.stack([jnp.eye(3)] * 2))
    step = jax.jit(jax.value_and_grad(loss, allow_int=True))
    text = step.trace(_surfels(7), camera).lower(lowering_platforms=("cuda",)).as_text()
    for target in ffi._CUDA_TARGETS:
        assert f"@{target}(" in text
    assert "deterministic = false" in text and "height = 20" in text
    assert "cosurfgs_" not in text.replace("cosurfgs_raster_forward", "").replace("cosurfgs_raster_backward", "")


def test_the_training_step_lowers_for_cuda_with_our_kernels_in_it(monkeypatch):
    """The project's own step with all losses: both views are drawn, and only the first one goes back."""
    monkeypatch.setattr(ffi, "has_native", lambda *operands: False)
    settings = Settings(surfels=SurfelSettings(sh_degree=1))

    def step(state, batch):
        return train_step(state, batch, settings, StepShape(is_densifying=True, has_geometry=True))

    with jax.default_matmul_precision("highest"):
        text = jax.jit(step, donate_argnums=0).trace(abstract_state(256, 4, settings), abstract_batch((32, 48))).lower(
            lowering_platforms=("cuda",)).as_text()
    assert text.count("@cosurfgs_raster_forward(") == 2 and text.count("@cosurfgs_raster_backward(") == 1
    assert "cosurfgs_" not in text.replace("cosurfgs_raster_forward", "").replace("cosurfgs_raster_backward", "")
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)


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
