"""Shows a run in a browser: the model as it is drawn, cameras, cells and mesh. Only reads.

python -m cosurfgs_jax.view --workdir=DIR [--port=8080]

Open the address that it prints; Ctrl-C ends it. A run that is being trained is shown as it was
saved last, and followed. From another computer: ssh -L 8080:localhost:8080 MACHINE, and open
http://localhost:8080 there.
"""

import os
import sys

from absl import flags

from cosurfgs_jax import program


def declare(values: flags.FlagValues) -> None:
    """Declares this program's flags."""
    flags.DEFINE_integer(
        "port", 8080, "of this machine", lower_bound=1, upper_bound=65535, flag_values=values
    )
    flags.DEFINE_string(
        "host",
        "localhost",
        "the address that is listened on; 0.0.0.0 lets everybody in who reaches this machine",
        flag_values=values,
    )


def main(options: program.Options) -> None:
    """Serves the page until it is stopped."""
    # A run that is trained on the same GPU needs the memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from cosurfgs_jax import viewer

    viewer.serve(options.settings, options.workdir, options.flags.host, options.flags.port)


if __name__ == "__main__":
    sys.exit(program.run(main, declare, workdir="trained"))
