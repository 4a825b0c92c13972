"""What can be known of the CUDA library without a GPU: it is built, exports its calls, and programs
lower to them.
"""

import collections
import importlib
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from scenes import abstract_batch

from cosurfgs_jax import Camera, Surfels, doctor, raster, rasterize
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.native import ffi
from cosurfgs_jax.settings import Settings, SurfelSettings
from cosurfgs_jax.training.state import abstract_state
from cosurfgs_jax.training.step import StepShape, train_step


@pytest.fixture(scope="module")
def build():
    """What this installation was built with; skips where there was no nvcc to build the CUDA
    library with.
    """
    info = importlib.import_module("cosurfgs_jax._build_info")
    has_nvcc = shutil.which("nvcc") or os.path.exists("/usr/local/cuda/bin/nvcc")
    if not info.CUDA and (not has_nvcc or os.environ.get("COSURFGS_CUDA") == "OFF"):
        pytest.skip(f"the CUDA library was not built: {info.WHY_NO_CUDA}")
    return info


def test_the_library_is_built_and_exports_its_calls(build):
    assert build.CUDA, build.WHY_NO_CUDA
    library = ffi.load_cuda_library()  # looks up every symbol
    assert library.CosurfgsCudaRasterForward and library.CosurfgsCudaRasterBackward
    assert library.CosurfgsCudaRasterRemoval
    assert library.CosurfgsCudaPhotometricLosses and library.CosurfgsCudaAdam


@pytest.mark.parametrize(
    "capability, code",
    [
        ("7.5", ""),
        ("8.0", "machine code"),
        ("8.6", "machine code"),
        ("8.7", "machine code"),
        ("8.9", "machine code"),
        ("9.0", "machine code"),
        ("10.0", "machine code"),
        ("10.3", "machine code"),
        ("11.0", "PTX"),
        ("12.0", "machine code"),
        ("12.1", "machine code"),
        ("13.0", "PTX"),
    ],
)
def test_what_a_gpu_runs_of_the_whole_library(capability, code):
    """Machine code runs on its own generation from its own version on; PTX is compiled for what is
    as new or newer.
    """
    assert ffi.cuda_code(capability, ["80", "86", "89", "90", "100", "120"], ["90"]) == code


@pytest.mark.parametrize(
    "capability, code", [("8.9", ""), ("9.0", "machine code"), ("8.6", ""), ("10.0", "PTX")]
)
def test_what_a_gpu_runs_of_a_quick_build(capability, code):
    assert ffi.cuda_code(capability, ["90"], ["90"]) == code
    assert ffi.cuda_code("8.0", ["86"], []) == ffi.cuda_code("12.0", ["86"], []) == ""


PTX = 1
MACHINE_CODE = 2


def fat_binary_content(path: Path) -> dict[int, set[str]]:
    """PTX and MACHINE_CODE -> versions ("90") that EVERY fat binary of a library holds, as nvcc
    embeds them: a header of magic number, version, its size and that of the entries; each entry
        with a kind, its header's size, its size, and the
    version at byte 28."""
    data = path.read_bytes()
    found = []
    for match in re.finditer(re.escape(struct.pack("<I", 0xBA55ED50)), data):
        _, version, header, size = struct.unpack_from("<IHHQ", data, match.start())
        if version != 1 or header != 16:
            continue
        content = {PTX: set(), MACHINE_CODE: set()}
        place = match.start() + header
        while place < match.start() + header + size:
            kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", data, place)
            content[kind].add(str(struct.unpack_from("<I", data, place + 28)[0]))
            place += entry_header + entry_size
        found.append(content)
    assert found, "no fat binary"
    return {
        kind: set.intersection(*(content[kind] for content in found))
        for kind in (PTX, MACHINE_CODE)
    }


def test_the_library_holds_what_the_build_says(build):
    """And so all that doctor calls usable: what the build says decides that."""
    path = Path(ffi._library_path("libcosurfgs_cuda.so"))
    content = fat_binary_content(path)
    assert content == {PTX: set(build.CUDA_PTX), MACHINE_CODE: set(build.CUDA_MACHINE_CODE)}
    usable = doctor.runs_on(build)
    assert usable and all(
        ffi.cuda_code(name, sorted(content[MACHINE_CODE]), sorted(content[PTX])) for name in usable
    )
    if not os.environ.get("COSURFGS_CUDA_ARCHITECTURES") and "100" in build.CUDA_MACHINE_CODE:
        assert usable == [name for name in doctor.CAPABILITIES if name != "7.5"]
    cuobjdump = shutil.which("cuobjdump")
    if cuobjdump:
        for option, kind in (("--list-elf", MACHINE_CODE), ("--list-ptx", PTX)):
            listed = subprocess.run(
                [cuobjdump, option, path], capture_output=True, text=True, check=True
            ).stdout
            assert set(re.findall(r"\.sm_(\d+)\.", listed)) == content[kind]


@pytest.mark.parametrize(
    "wanted, expected",
    [
        ("", "80;86;89;90;100;120|90|"),
        ("90", "90|90|"),
        ("80;100", "80;100|80|"),
        ("120, 100", "100;120|100|"),
        (
            "90a",
            "||COSURFGS_CUDA_ARCHITECTURES: expected native or a list of compute capabilities as "
            "80;90, got 90a",
        ),
        (
            "75",
            "||COSURFGS_CUDA_ARCHITECTURES: compute capability 8.0 (Ampere) or newer is needed, "
            "got 75",
        ),
        (
            "103",
            "||COSURFGS_CUDA_ARCHITECTURES: this nvcc does not know 103; a newer one is needed",
        ),
        ("native", "86;90|90|"),
    ],
)
def test_architectures_to_compile_for(tmp_path, wanted, expected):
    """With an nvcc that does not know 10.3, and "native" on a machine with three GPUs."""
    _assert_architectures(tmp_path, wanted, expected, "printf '9.0\\n8.6\\n9.0\\n'")


def test_native_architectures_without_a_gpu(tmp_path):
    _assert_architectures(
        tmp_path,
        "native",
        "||COSURFGS_CUDA_ARCHITECTURES=native, but nvidia-smi finds no GPU",
        "exit 9",
    )


def _assert_architectures(folder, wanted, expected, query):
    cmake = shutil.which(
        "cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if not cmake:
        pytest.skip("cmake is not here")
    known = (
        "\n".join(f"sm_{number}" for number in ("75", "80", "86", "89", "90", "90a", "100", "120"))
        + "\n"
    )
    (folder / "smi").write_text(f"#!/bin/sh\n{query}\n")
    (folder / "smi").chmod(0o755)
    (folder / "ask.cmake").write_text(f"""
include("{Path(__file__).parents[2]}/cmake/cuda_architectures.cmake")
cosurfgs_cuda_architectures("{wanted}" "{known}" "{folder}/smi")
message("${{CUDA_MACHINE_CODE}}|${{CUDA_PTX}}|${{CUDA_PROBLEM}}")
""")
    result = subprocess.run(
        [cmake, "-P", folder / "ask.cmake"], capture_output=True, text=True, check=True
    )
    assert result.stderr.startswith(expected), result.stderr


def test_doctor_says_what_a_gpu_runs(monkeypatch):
    class Device:
        compute_capability = "10.3"

    class Build:
        COMPILER = CUDA = WHY_NO_CUDA = "GNU, nvcc, none"
        VARIANTS = ["v3"]
        CUDA_MACHINE_CODE = ["86", "90"]
        CUDA_PTX = ["90"]

    monkeypatch.setattr(doctor, "_build_info", lambda: Build)
    assert "compute capability 10.3: the CUDA library has PTX" in doctor._cuda_code(Device)
    Device.compute_capability = "8.0"
    assert "no code for it: COSURFGS_CUDA_ARCHITECTURES=80 pip install ." in doctor._cuda_code(
        Device
    )
    Device.compute_capability = "7.5"
    assert "no code for it: 8.0 (Ampere) or newer is needed" in doctor._cuda_code(Device)
    assert doctor._cuda_code(object()) == ""
    text = (
        "machine code of 8.6 9.0 and PTX of 9.0, which runs on GPUs of compute capability 8.6 "
        "8.7 8.8 8.9 9.0 10.0"
    )
    assert text in doctor._build()


def test_without_a_gpu_cuda_says_why(build):
    if jax.default_backend() != "cpu":
        pytest.skip("there is a GPU here")
    assert ffi.cuda_problem()


def _surfels(count: int) -> Surfels:
    return Surfels(
        jnp.zeros((count, 3)),
        jnp.ones((count, 4)),
        jnp.zeros((count, 2)),
        jnp.zeros(count),
        jnp.zeros((count, 4, 3)),
        jnp.ones(count, bool),
    )


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
    """From a machine without a GPU: the program of a GPU machine has the targets that the CUDA
    library registers.
    """

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
        return (
            jax.jit(step, donate_argnums=0)
            .trace(abstract_state(256, 4, settings), batch)
            .lower(lowering_platforms=("cuda",))
            .as_text()
        )


@pytest.mark.parametrize("channels", [3, 4])
def test_the_training_step_lowers_for_cuda_with_our_kernels_in_it(as_on_gpus, channels):
    """Both views are drawn, and only the first one goes back; one call for the photometric losses,
    one of Adam for each field.
    """
    text = _lower_training_step(channels)
    assert _calls(text) == {
        "cosurfgs_raster_forward": 2,
        "cosurfgs_raster_backward": 1,
        "cosurfgs_photometric_losses": 1,
        "cosurfgs_adam": 5,
    }
    assert set(_calls(text)) <= set(ffi._CUDA_TARGETS)
    for line in text.splitlines():
        if "@cosurfgs_adam(" in line:  # values and moments in place
            assert line.count("output_operand_alias<") == 3
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_without_its_library_a_gpu_trains_in_plain_jax(as_on_gpus, monkeypatch):
    monkeypatch.setattr(
        ffi, "why_no_cuda_library", lambda: "it was not built"
    )  # said once in each process
    assert not _calls(_lower_training_step())


def test_who_has_a_native_target(as_on_gpus, monkeypatch):
    numbers = jnp.zeros(3)
    assert ffi.has_native("cosurfgs_adam", numbers) and not ffi.has_native(
        "cosurfgs_plane_depth", numbers
    )
    assert not ffi.has_native("cosurfgs_adam", numbers.astype(jnp.int32))
    assert ffi.choose_native("Adam", "cosurfgs_adam", "cuda") and not ffi.choose_native(
        "Adam", "cosurfgs_adam", "reference"
    )
    with pytest.raises(
        InputError, match='"cpu" was asked for, but JAX does not compute on the CPU here'
    ):
        ffi.choose_native("Adam", "cosurfgs_adam", "cpu")
    with pytest.raises(
        InputError,
        match='backend: expected None, "cpu" or "reference" for plane depth, got \'cuda\'',
    ):
        ffi.choose_native("plane depth", "cosurfgs_plane_depth", "cuda")
    monkeypatch.setattr(ffi, "why_no_cuda_library", lambda: "the moon is full")
    assert not ffi.has_native("cosurfgs_adam", numbers)
    with pytest.raises(InputError, match='"cuda" was asked for, but the moon is full'):
        ffi.choose_native("Adam", "cosurfgs_adam", "cuda")
    monkeypatch.setattr(ffi, "is_cuda", lambda: False)
    assert ffi.has_native("cosurfgs_adam", numbers) and ffi.has_native(
        "cosurfgs_plane_depth", numbers
    )


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
    for function in (ffi.load_cuda_library, ffi.why_no_cuda_library):
        monkeypatch.setattr(
            ffi, function.__name__, function.__wrapped__
        )  # without what they remember
    why = ffi.why_no_cuda_library()
    assert "/nowhere/libcosurfgs_cuda.so" in why and "COSURFGS_CUDA=ON pip install ." in why


def test_only_the_gpus_that_jax_uses_are_asked(monkeypatch):
    """The others may be those of other processes."""
    monkeypatch.setattr(ffi, "is_cuda", lambda: True)
    monkeypatch.setattr(ffi, "cuda_problem", lambda devices: f"asked {len(devices)}")
    assert (
        ffi.why_no_cuda_library.__wrapped__()
        == f"the native CUDA library cannot run: asked {len(jax.local_devices())}"
    )


def test_on_a_cpu_cuda_says_what_to_install():
    if jax.default_backend() != "cpu":
        pytest.skip("there is a GPU here")
    with pytest.raises(
        InputError,
        match=r"'cuda' is not available: JAX computes on cpu here.*cosurfgs_jax\[cuda13\]",
    ):
        raster.choose_backend("cuda")
