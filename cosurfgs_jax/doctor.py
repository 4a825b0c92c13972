"""Lists what this machine has: Python, JAX, devices, rasterizers, memory, optional packages and
programs. Always exits with 0.

python -m cosurfgs_jax.doctor
"""

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys

from cosurfgs_jax import host_memory, program

_NEEDED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "pillow")
# Compute capabilities of NVIDIA's GPUs since 2018 that nvcc 13 knows.
CAPABILITIES = (
    "7.5",
    "8.0",
    "8.6",
    "8.7",
    "8.8",
    "8.9",
    "9.0",
    "10.0",
    "10.3",
    "11.0",
    "12.0",
    "12.1",
)
_OPTIONAL = (
    ("open3d", "mesh", "extract_mesh and scores of a surface"),
    ("trimesh", "mesh", "meshes as OBJ and GLB"),
    ("pycolmap", "sfm", "prepare"),
    ("pyproj", "sfm", "prepare with GPS"),
    ("rasterio", "geo", "export --format=dsm and dtm"),
    ("pyogrio", "geo", "export --format=contours"),
    ("laspy", "geo", "export --format=las"),
    ("lazrs", "geo", "export --format=laz"),
    ("viser", "view", "view"),
    ("matplotlib", "report", "charts and maps of the report"),
    ("ray", "ray", "launch"),
)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _splat_transform() -> str:
    """Where the program is that no Python package brings along."""
    missing = (
        "not on the PATH; for export --format=html, spz or sog: npm install -g "
        "@playcanvas/splat-transform"
    )
    return shutil.which("splat-transform") or missing


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


def _memory() -> str:
    page = os.sysconf("SC_PAGE_SIZE")
    text = (
        f"{_gib(os.sysconf('SC_PHYS_PAGES') * page)}, "
        f"{_gib(os.sysconf('SC_AVPHYS_PAGES') * page)} free"
    )
    limit = host_memory.container_limit()
    if limit is not None:  # a container may have less than the machine
        text += f"; this container's limit is {_gib(limit)}"
    return text


def _devices() -> list[str]:
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:  # a GPU or TPU plugin that is installed but does not start
        return [f"none: {str(error).splitlines()[0]}"]
    lines = []
    for device in devices:
        stats = device.memory_stats() or {}
        memory = ""
        if "bytes_limit" in stats:
            memory = f", {_gib(stats['bytes_limit'])} of memory"
        lines.append(
            f"{device.platform}:{device.id} {device.device_kind}{memory}{_cuda_code(device)}"
        )
    return lines


def _build_info():
    """What CMake wrote when the native libraries were built; None where the package is imported
    from a folder of sources without a build.
    """
    try:
        return importlib.import_module("cosurfgs_jax._build_info")
    except ImportError:
        return None


def _cuda_code(device) -> str:
    """The code in the CUDA library for a GPU, by what the build wrote; whether it runs is checked
    on the device (`_backends`).
    """
    from cosurfgs_jax.native import ffi

    info = _build_info()
    capability = getattr(device, "compute_capability", "")
    is_known = isinstance(capability, str) and capability.replace(".", "", 1).isdigit()
    if not info or not info.CUDA or not is_known:
        return ""
    found = ffi.cuda_code(capability, info.CUDA_MACHINE_CODE, info.CUDA_PTX)
    remedy = "8.0 (Ampere) or newer is needed"
    if float(capability) >= 8:
        remedy = f"COSURFGS_CUDA_ARCHITECTURES={capability.replace('.', '')} pip install ."
    what = {
        "machine code": "the CUDA library has machine code for it",
        "PTX": "the CUDA library has PTX for it, which the driver compiles at the first call",
        "": f"the CUDA library has no code for it: {remedy}",
    }
    return f", compute capability {capability}: {what[found]}"


def runs_on(info) -> list[str]:
    """The compute capabilities that the CUDA library of a build runs on, of those that are known
    today.
    """
    from cosurfgs_jax.native import ffi

    return [
        name for name in CAPABILITIES if ffi.cuda_code(name, info.CUDA_MACHINE_CODE, info.CUDA_PTX)
    ]


def _dotted(codes: list[str]) -> str:
    return " ".join(f"{code[:-1]}.{code[-1]}" for code in codes)


def _build() -> str:
    info = _build_info()
    if not info:
        return "unknown: the package is imported from a folder that holds no build"
    if not info.COMPILER:
        return (
            "no: CMake found no C++ compiler; install one (apt-get install g++) and the package "
            "again"
        )
    cuda = f"without CUDA: {info.WHY_NO_CUDA}"
    if info.CUDA:
        cuda = (
            f"with CUDA by {info.CUDA}: machine code of {_dotted(info.CUDA_MACHINE_CODE)} and PTX "
            f"of {_dotted(info.CUDA_PTX)}, which runs on GPUs of compute capability "
            f"{' '.join(runs_on(info))}"
        )
        if info.CUDA_PTX:
            cuda += " and newer"
    return f"with {info.COMPILER} for {', '.join(info.VARIANTS)}; {cuda}"


def _backends() -> list[tuple[str, str]]:
    from cosurfgs_jax import raster
    from cosurfgs_jax.native import ffi

    lines = []
    for name, reason in raster.available_backends().items():
        text = "available"
        if reason:
            text = f"not available: {reason}"
        if name == "cpu" and not reason:
            text += f", instruction set {ffi.cpu_instruction_set()}"
        if name == "portable":
            text += f": plain JAX, {raster.portable_cost()}"
        if name == raster.best_backend():
            text += "; what is used here unless raster.backend is set"
        lines.append((f"rasterizer {name}", text))
    return lines


def main(options: program.Options) -> None:
    """Prints one line per fact."""
    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    lines = [
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("system", platform.platform()),
        ("cosurfgs_jax", _version("cosurfgs_jax") or "not installed, only importable"),
    ]
    lines += [(name, _version(name) or "MISSING: pip install cosurfgs_jax") for name in _NEEDED]
    lines += [("devices", text) for text in _devices()]
    lines += [("native libraries built", _build()), *_backends()]
    lines += [
        ("cpu cores", str(cores)),
        ("memory", _memory()),
        ("free disk here", _gib(shutil.disk_usage(".").free)),
    ]
    lines += [
        (name, _version(name) or f'not installed; for {use}: pip install "cosurfgs_jax[{extra}]"')
        for name, extra, use in _OPTIONAL
    ]
    lines += [("splat-transform", _splat_transform())]
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        print(f"{name:<{width}}  {text}")


if __name__ == "__main__":
    sys.exit(program.run(main))
