"""Scores a trained model on its test views, and its mesh if the true surface is known; writes the
numbers and a report.

python -m cosurfgs_jax.evaluate --workdir=DIR [--gt_points=FILE.ply] [--gt_transform=FILE.txt]
    [--lpips_weights=FILE,FILE] [--with_nearest_exposure]

--shard=i/n scores a part of the test views alone, without the rest of the model. Such processes
need not run at the same time, nor on the same machine. The command without --shard then takes
their scores, and does the rest.
"""

import sys

from absl import flags

from cosurfgs_jax import host_memory, program


def declare(values: flags.FlagValues) -> None:
    """Declares this program's flags."""
    flags.DEFINE_string(
        "gt_points",
        "",
        "point cloud (PLY) of the true surface, in the dataset's frame",
        flag_values=values,
    )
    flags.DEFINE_string(
        "gt_transform",
        "",
        "text file of the 4 by 4 matrix that takes the dataset to the frame of --gt_points, where "
        "they have another",
        flag_values=values,
    )
    flags.DEFINE_string(
        "lpips_weights",
        "",
        "files of torch.save with the weights of AlexNet or VGG-16 and of the heads of LPIPS, with "
        "a comma between; without them it is not measured",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "with_nearest_exposure",
        False,
        "also score test views with the exposure of the nearest training view, as some papers do",
        flag_values=values,
    )
    program.declare_shard(values, "of the test views")


def main(options: program.Options) -> None:
    """Evaluates the run."""
    from cosurfgs_jax.outputs import commands

    part = program.shard_of(options.flags)
    if part is not None:
        host_memory.give_back_at_once()
    truth = commands.read_truth(options.flags.gt_points, options.flags.gt_transform)
    lpips_files = filter(None, options.flags.lpips_weights.split(","))
    lpips_weights = commands.read_lpips_weights(list(lpips_files))
    commands.evaluate(
        options.settings,
        options.workdir,
        truth,
        lpips_weights,
        with_nearest_exposure=options.flags.with_nearest_exposure,
        part=part,
    )


if __name__ == "__main__":
    sys.exit(program.run(main, declare, workdir="trained"))
