"""Says what a run will need, before it runs: time, memory, disk, and whether this machine has them.
Takes the flags of `train`, and trains nothing.

python -m cosurfgs_jax.plan --preset=aerial --config.data.path=DATASET [--workdir=DIR]

The programs of the run are compiled for their largest shapes, and timed for some steps with
surfels that stand in for those of a trained model; --no-timing only compiles them. Where the run
does not fit, it says which settings to change.
"""

import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from cosurfgs_jax import files, host_memory, program
from cosurfgs_jax.workdir import Workdir

_NO_TIMING = "no-timing"


def declare(values: flags.FlagValues) -> None:
    """Declares this program's flags."""
    flags.DEFINE_boolean(
        _NO_TIMING,
        False,
        "only compile the programs: memory and disk, without the time of the stages",
        flag_values=values,
    )
    flags.DEFINE_string("json", "", "file that gets the figures, too", flag_values=values)


def main(options: program.Options) -> None:
    """Prints what a run will need."""
    host_memory.keep_freed()
    program.start_devices(options.settings.mesh.num_devices)
    import numpy as np

    from cosurfgs_jax import planning
    from cosurfgs_jax.training.partitioned_scene import open_partitioned_scene

    imported = time.process_time()
    folder = options.folder
    target = Path()
    if folder is not None:
        target = folder.root
    with tempfile.TemporaryDirectory(prefix="plan-") as scratch:
        place = Workdir(Path(scratch))
        if folder is not None and folder.data.exists():  # a generated dataset, notes of masks
            place = folder
        partitioned, opening_s = planning.timed(
            lambda: open_partitioned_scene(options.settings, place, compares_colors=False)
        )
        found = planning.make_forecast(
            options.settings,
            partitioned,
            is_timed=not options.flags[_NO_TIMING].value,
            opening_s=opening_s + np.full(2, imported),
            folder=target,
        )
        remedies = []
        if not found.fits:
            remedies = list(planning.find_remedies(found, place))
    print("\n".join(planning.lines_of(found, remedies)))
    if options.flags.json:
        files.write_json(Path(options.flags.json), planning.to_json(found, remedies))


if __name__ == "__main__":
    sys.exit(program.run(main, declare, workdir="optional"))
