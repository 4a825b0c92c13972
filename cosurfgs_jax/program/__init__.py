"""What all programs share: flags to `Settings`, a workdir, devices and processes, exit codes, and
one sentence instead of a traceback for a user's mistake. The only reader of flags and environment.
"""

from cosurfgs_jax.program.config_file import load_config_file
from cosurfgs_jax.program.options import Options, declare_shard, no_flags, shard_of
from cosurfgs_jax.program.platform_environment import set_environment
from cosurfgs_jax.program.processes import MAX_VIRTUAL_DEVICES, start_devices
from cosurfgs_jax.program.wrapper import run

__all__ = [
    "MAX_VIRTUAL_DEVICES",
    "Options",
    "declare_shard",
    "load_config_file",
    "no_flags",
    "run",
    "set_environment",
    "shard_of",
    "start_devices",
]
