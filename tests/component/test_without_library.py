"""Where the native library cannot be loaded: what is chosen, what is said, and that training goes
on in plain JAX.
"""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from scenes import town_place

from cosurfgs_jax.data.images import ImageStore
from cosurfgs_jax.distributed.layout import make_layout
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.losses.inputs import SecondView
from cosurfgs_jax.native import ffi
from cosurfgs_jax.raster import backends
from cosurfgs_jax.settings import AppearanceSettings, LossSettings, Settings, SurfelSettings
from cosurfgs_jax.training.compiled_steps import compile_blocks
from cosurfgs_jax.training.first_state import first_state
from cosurfgs_jax.training.partitioned_scene import Photographs
from cosurfgs_jax.training.step import Batch, StepShape

ABSENT = "the native CPU library cannot be loaded (for this test)"


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setattr(ffi, "why_no_cpu_library", lambda: ABSENT)
    backends._warn_portable.cache_clear()
    yield
    backends._warn_portable.cache_clear()


def test_the_native_library_is_chosen_where_it_is():
    assert backends.choose_backend(None) == backends.choose_backend("") == "cpu"
    assert backends.choose_backend("portable") == "portable"


def test_without_it_the_portable_rasterizer_is_and_says_so_once(absent, caplog):
    with caplog.at_level(logging.WARNING):
        assert backends.choose_backend(None) == backends.choose_backend("") == "portable"
    (message,) = [record.getMessage() for record in caplog.records]
    assert ABSENT in message and backends.PORTABLE_COST in message
    with pytest.raises(
        InputError, match="backend 'cpu' is not available: the native CPU library cannot be loaded"
    ):
        backends.choose_backend("cpu")
    assert not ffi.has_native("cosurfgs_adam", jnp.zeros(3))


CHILD = """
import sys
from cosurfgs_jax.losses.inputs import SecondView
from cosurfgs_jax.native import ffi
ffi._library_path = lambda name: sys.argv[1] + "/" + name
import cosurfgs_jax.doctor as doctor
doctor.main(None)
"""


def test_doctor_says_it_in_a_sentence(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    lines = {line.split("  ")[0]: line for line in result.stdout.splitlines()}
    assert "not available: the native CPU library cannot be loaded" in lines["rasterizer cpu"]
    assert (
        backends.PORTABLE_COST in lines["rasterizer portable"]
        and "what is used here" in lines["rasterizer portable"]
    )


def test_the_package_installs_without_a_compiler(tmp_path):
    cmake, ninja = (
        shutil.which(
            name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        )
        for name in ("cmake", "ninja")
    )
    if not cmake or not ninja:
        pytest.skip("cmake and ninja are not here")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ninja").symlink_to(ninja)
    environment = {"PATH": str(tmp_path / "bin")}
    build = [
        cmake,
        "-G",
        "Ninja",
        "-S",
        str(Path(__file__).parents[2]),
        "-B",
        str(tmp_path / "build"),
    ]
    result = subprocess.run(build, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and "no C++ compiler" in result.stderr, result.stderr
    subprocess.run(
        [cmake, "--install", str(tmp_path / "build"), "--prefix", str(tmp_path / "to")],
        env=environment,
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert 'COMPILER = ""' in (tmp_path / "to" / "cosurfgs_jax" / "_build_info.py").read_text()


def _losses(partitioned) -> list[float]:
    """Of a few steps with all losses and the exposure model, on one device."""
    layout = make_layout(np.zeros(1, np.int64), num_devices=1)
    settings = Settings(
        surfels=SurfelSettings(sh_degree=1),
        appearance=AppearanceSettings(start=0.0),
        loss=LossSettings(remember_depth=False),
    )
    state = layout.put(lambda _: first_state(partitioned, partitioned.blocks[0], settings, 2048))
    with ImageStore(partitioned.scene, 64) as images:
        first, second = (Photographs(partitioned, images).load(0, view) for view in (1, 2))
    index = np.int32(np.searchsorted(partitioned.blocks[0].views, 1))
    other = SecondView(
        partitioned.views.camera_arrays(2), second, np.bool_(True), np.zeros(2, np.int32)
    )
    batch = layout.put(
        lambda _: Batch(
            partitioned.views.camera_arrays(1), first, index, np.float32(0.5), np.int32(1), other
        )
    )
    steps = compile_blocks(settings, layout)
    losses = []
    for _ in range(3):
        state, report = steps.train(
            state, batch, shape=StepShape(is_densifying=True, has_geometry=True)
        )
        losses.append(float(layout.get(report, 0).loss))
    return losses


def test_training_is_the_same_without_it(absent, monkeypatch):
    """The rasterizer, SSIM, the exposure model and the patches of MV-Reg, all in plain JAX, under
    shard_map.
    """
    partitioned = town_place()
    without = _losses(partitioned)
    monkeypatch.undo()
    assert not ffi.why_no_cpu_library()
    with_library = _losses(partitioned)
    assert with_library[-1] < with_library[0]
    np.testing.assert_allclose(without, with_library, rtol=2e-4)
