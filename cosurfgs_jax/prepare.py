"""Finds the poses of a folder of photographs, and where they lie on the map: from photographs to a
dataset that `train` reads. The same command again skips what is finished.

python -m cosurfgs_jax.prepare --images=DIR --out=DATASET
python -m cosurfgs_jax.prepare --images=DIR --poses=MODEL --out=DATASET
python -m cosurfgs_jax.prepare --poses=DATASET_WITHOUT_POINTS --out=DATASET

The second keeps the poses, lenses, tracks and points of a COLMAP model or of a transforms.json, and
puts them on the map. The third finds points alone, for poses that come without any, and leaves
these as they are.

The photographs stay where they are. With GPS in their EXIF data, or with ground control points
(--gcp=FILE), the dataset is in metres and its geo.json says where on the map; without them z is up,
and the scale is unknown. Poses that another program has found are taken over with --cameras=FILE.
"""

import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from absl import flags

from cosurfgs_jax import program
from cosurfgs_jax.errors import InputError
from cosurfgs_jax.settings import PrepareSettings, declaration_of, type_of


def declare(values: flags.FlagValues) -> None:
    """Declares this program's flags."""
    flags.DEFINE_string("images", "", "folder of the photographs", flag_values=values)
    flags.DEFINE_string(
        "poses",
        "",
        "beside --images: a COLMAP model, a dataset or a transforms.json, which is put on the map; "
        "instead of --images: a dataset that has poses, but no points to start from",
        flag_values=values,
    )
    flags.DEFINE_string(
        "out", "", "folder of the dataset; the same one again goes on", flag_values=values
    )
    for field in dataclasses.fields(PrepareSettings):
        kinds: dict[type, Any] = {
            str: flags.DEFINE_string,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
        }
        define = kinds[type_of(field)]
        define(field.name, field.default, declaration_of(field).help_text, flag_values=values)


def main(options: program.Options) -> None:
    """Prepares a dataset, and says what to do next."""
    if not any((options.flags.out, options.flags.images, options.flags.poses)):
        raise InputError(
            "--images, --out: expected the folder of the photographs and a new one for the "
            "dataset, got neither; give --images=PHOTOS --out=DATASET"
        )
    if not options.flags.out:
        raise InputError("--out: expected a folder, got none; give --out=DIR")
    if not options.flags.images and not options.flags.poses:
        raise InputError("--images, --poses: expected one of them, got none; give --images=DIR")
    from cosurfgs_jax.training.run_log import Progress

    names = [field.name for field in dataclasses.fields(PrepareSettings)]
    settings = PrepareSettings(**{name: getattr(options.flags, name) for name in names})
    settings.gcp = os.path.expanduser(settings.gcp)
    settings.cameras = os.path.expanduser(settings.cameras)
    out = Path(options.flags.out).expanduser()
    images = Path(options.flags.images).expanduser()
    poses = Path(options.flags.poses).expanduser()
    if options.flags.images and options.flags.poses:
        from cosurfgs_jax.sfm import posed_sets

        summary = posed_sets.place_posed(images, poses, out, settings)
    elif options.flags.poses:
        from cosurfgs_jax.sfm import known_poses

        summary = known_poses.triangulate(poses, out, settings, Progress)
    else:
        from cosurfgs_jax.sfm import phases

        summary = phases.prepare(images, out, settings, Progress)
    split = "--config.data.split=folders " * summary.has_split
    print(*summary.lines(), sep="\n")
    print(
        f"next: cosurfgs train --preset=aerial --config.data.path={shlex.quote(str(out))} "
        f"--config.data.downscale={summary.downscale} {split}"
        f"--workdir={shlex.quote('runs/' + out.resolve().name)}"
    )


if __name__ == "__main__":
    sys.exit(program.run(main, declare))
