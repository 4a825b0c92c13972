"""A page in the browser that shows a run, by viser."""

from cosurfgs_jax.viewer.server import serve

__all__ = ["serve"]
