"""The partition of a place into blocks: `build_partition` makes it, `Partition` holds it."""

from cosurfgs_jax.partition.build import build_partition
from cosurfgs_jax.partition.cells import FORMAT, Partition

__all__ = ["FORMAT", "Partition", "build_partition"]
