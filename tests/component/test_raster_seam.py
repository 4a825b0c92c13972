"""The seam between the package and its rasterizer: one way to draw, one table of backends."""

import ast
import dataclasses
import importlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import cosurfgs_jax
from cosurfgs_jax import Camera, Surfels, raster, rasterize, settings
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.raster import Maps, RasterOptions, backends, outputs
from cosurfgs_jax.raster.options import LOW_PASS, Static

PACKAGE = Path(cosurfgs_jax.__file__).parent
SIZE = (24, 32)


def _surfels() -> Surfels:
    rng = np.random.default_rng(0)
    count = 20
    return Surfels(
        means=jnp.asarray(rng.uniform(-0.5, 0.5, (count, 3)) + [0, 0, 2], jnp.float32),
        quats=jnp.asarray(rng.normal(size=(count, 4)), jnp.float32),
        log_scales=jnp.full((count, 2), -1.5),
        logit_opacities=jnp.zeros(count),
        sh=jnp.asarray(rng.normal(size=(count, 4, 3)), jnp.float32),
        alive=jnp.ones(count, bool),
    )


CAMERA = Camera(jnp.eye(4), jnp.asarray([[30.0, 0, 16], [0, 30, 12], [0, 0, 1]]))


def test_the_backend_of_the_settings_is_one_of_the_table():
    assert backends.backend_of(settings.RasterSettings(backend="portable")) == "portable"
    assert backends.backend_of(settings.RasterSettings()) == backends.best_backend()
    names = ", ".join(backends.BACKENDS)
    words = rf"config\.raster\.backend: expected one of {names}, or nothing, got 'gpuu'"
    with pytest.raises(InputError, match=words):
        backends.backend_of(settings.RasterSettings(backend="gpuu"))
    with pytest.raises(InputError, match="backend 'tpu' is not available"):
        backends.backend_of(settings.RasterSettings(backend="tpu"))


@pytest.mark.parametrize("name", backends.BACKENDS)
def test_every_backend_has_a_module_that_renders(name):
    assert callable(backends.load_renderer(name))
    assert backends.BACKENDS[name].why_not() == raster.available_backends()[name]


def test_options_follow_from_the_settings():
    given = settings.RasterSettings(backend="portable", near=0.2, background=0.7)
    options = RasterOptions.from_settings(given)
    assert dataclasses.asdict(options) == dataclasses.asdict(given) | {"low_pass": LOW_PASS}
    assert options.on_black() == dataclasses.replace(options, background=0.0)
    assert hash(options) == hash(RasterOptions.from_settings(given))


def test_render_takes_all_options(monkeypatch):
    """Near plane, background and backend each change what is drawn."""
    surfels = _surfels()
    options = RasterOptions(near=1.9, background=0.4, backend="reference")
    out = raster.render(surfels, CAMERA, SIZE, options, maps=Maps.GEOMETRY)
    want = rasterize(
        surfels,
        CAMERA,
        image_size=SIZE,
        near=1.9,
        background=jnp.full((3,), 0.4),
        backend="reference",
        maps="geometry",
    )
    np.testing.assert_array_equal(out.color, want.color)
    np.testing.assert_array_equal(out.plane_depth, want.plane_depth)
    assert out.distortion is None and out.contributions is None  # nobody asked for them
    sums = raster.render_sums(surfels, CAMERA, SIZE, options)
    np.testing.assert_array_equal(sums.color, want.color)
    far = raster.render(surfels, CAMERA, SIZE, dataclasses.replace(options, near=0.1))
    assert (far.alpha > out.alpha).any()
    monkeypatch.setattr(backends, "why_not", lambda name: "the moon is full")
    for draw in (raster.render, raster.render_sums):
        with pytest.raises(InputError, match="'reference' is not available: the moon is full"):
            draw(surfels, CAMERA, SIZE, options)


def test_the_package_draws_with_the_options_of_a_run():
    """`rasterize` is for users: a call inside the package could forget one of its options."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE))
        if name in ("__init__.py", "raster/__init__.py", "raster/rasterizer.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and "rasterize" in [n.name for n in node.names]:
                found.append(name)
    assert not found, "call raster.render with RasterOptions"


def test_the_first_maps_of_a_draw_take_cotangents():
    assert outputs.Drawn._fields[: outputs.NUM_FLOAT_MAPS] == outputs.RawMaps._fields[:-2]
    assert outputs.Drawn._fields[outputs.NUM_FLOAT_MAPS] == "last_rank"


def test_levels_of_maps():
    static = Static(1, 1, 0.1, 0, Maps.COLOR, False, False)
    levels = [static._replace(maps=level) for level in Maps]
    assert [level.has_geometry for level in levels] == [False, True, True]
    assert [level.has_distortion for level in levels] == [False, False, True]


def test_modules_of_the_table_are_files_of_the_folder():
    for backend in backends.BACKENDS.values():
        module = importlib.import_module(f"cosurfgs_jax.raster.{backend.module}")
        assert Path(module.__file__).parent == PACKAGE / "raster"
