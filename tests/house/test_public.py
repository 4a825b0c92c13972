"""The front door: what `import cosurfgs_jax` gives, and what it costs."""

import re
import subprocess
import sys

from package_tree import ROOT

import cosurfgs_jax

# What importing the package may not bring along.
HEAVY = {
    "absl",
    "contourpy",
    "flax",
    "laspy",
    "lazrs",
    "ml_collections",
    "open3d",
    "optax",
    "orbax",
    "pycolmap",
    "pyogrio",
    "rasterio",
    "scipy",
    "shapely",
    "tensorboardX",
    "tqdm",
    "trimesh",
    "viser",
}


def _run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_importing_the_package_is_light():
    code = "import sys, cosurfgs_jax; print(*{name.split('.')[0] for name in sys.modules})"
    assert not HEAVY & set(_run(code).split())


def test_importing_the_package_starts_no_backend():
    code = (
        "import cosurfgs_jax; from jax._src import xla_bridge; "
        "print(xla_bridge.backends_are_initialized())"
    )
    assert _run(code).strip() == "False"


def test_every_public_name_is_there_documented_and_in_the_docs():
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for name in cosurfgs_jax.__all__:
        thing = getattr(cosurfgs_jax, name)
        if name != "__version__":
            assert thing.__doc__ and len(thing.__doc__) > 40, name
        assert re.search(rf"\b{name}\b", page), f"docs/python.md: {name} is missing"


def test_no_name_leaks():
    listed = {name for name in dir(cosurfgs_jax) if not name.startswith("_")}
    assert listed == set(cosurfgs_jax._MODULES)


def test_the_list_of_names_is_the_table_of_their_modules():
    assert cosurfgs_jax.__all__ == ["__version__", *cosurfgs_jax._MODULES]


def test_an_unknown_name_is_an_attribute_error():
    code = "import cosurfgs_jax\ntry: cosurfgs_jax.nothing\nexcept AttributeError as e: print(e)"
    assert "nothing" in _run(code)
