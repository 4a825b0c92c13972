"""Large-scale surface reconstruction from photographs with collaborative surfel splatting, in JAX.

Names are loaded when they are first used: importing the package brings neither optional packages
nor a JAX backend along.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cosurfgs_jax.api import Model, load_model, load_scene, train_model
    from cosurfgs_jax.data.capture import Capture
    from cosurfgs_jax.data.readers import Reader, register_reader
    from cosurfgs_jax.data.scene import Scene
    from cosurfgs_jax.errors import InputError
    from cosurfgs_jax.formats.splat_ply import read_surfels_ply, write_surfels_ply
    from cosurfgs_jax.geometry.distortion import Lens
    from cosurfgs_jax.geometry.views import PointCloud
    from cosurfgs_jax.losses.inputs import LossView
    from cosurfgs_jax.losses.term import LossTerm, own_term
    from cosurfgs_jax.raster import Maps, rasterize
    from cosurfgs_jax.settings import Settings
    from cosurfgs_jax.surface import Mesh
    from cosurfgs_jax.types import Camera, RenderOutput, Surfels

__version__ = "0.1.0"

_MODULES = {
    # The model, and how it is drawn.
    "Surfels": "types",
    "Camera": "types",
    "RenderOutput": "types",
    "Maps": "raster",
    "rasterize": "raster",
    # From photographs to a surface.
    "Settings": "settings",
    "Scene": "data.scene",
    "load_scene": "api",
    "train_model": "api",
    "Model": "api",
    "load_model": "api",
    "Mesh": "surface",
    # Files.
    "read_surfels_ply": "formats.splat_ply",
    "write_surfels_ply": "formats.splat_ply",
    # Extending it.
    "own_term": "losses.term",
    "LossTerm": "losses.term",
    "LossView": "losses.inputs",
    "register_reader": "data.readers",
    "Reader": "data.readers",
    "Capture": "data.capture",
    "Lens": "geometry.distortion",
    "PointCloud": "geometry.views",
    # What a wrong input raises.
    "InputError": "errors",
}
__all__ = [
    "__version__",
    "Surfels",
    "Camera",
    "RenderOutput",
    "Maps",
    "rasterize",
    "Settings",
    "Scene",
    "load_scene",
    "train_model",
    "Model",
    "load_model",
    "Mesh",
    "read_surfels_ply",
    "write_surfels_ply",
    "own_term",
    "LossTerm",
    "LossView",
    "register_reader",
    "Reader",
    "Capture",
    "Lens",
    "PointCloud",
    "InputError",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    value = getattr(module, name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
