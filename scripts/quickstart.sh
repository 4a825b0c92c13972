#!/usr/bin/env bash
# From a fresh machine to a surface: installs the package in a virtual environment, makes the
# photographs of a small town whose shape is known exactly, trains on them, extracts a mesh, and
# scores both. The same command again goes on where it stopped.
#   scripts/quickstart.sh [WORKDIR] [--config.NAME=VALUE ...]
set -euo pipefail

start_folder="$PWD"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

workdir="runs/quickstart"
if [ "$#" -gt 0 ] && [ "${1#-}" = "$1" ]; then
  workdir="$(cd "$start_folder" && realpath -m "$1")"
  shift
fi

# Four virtual devices, also where a GPU is: this shows how blocks work together.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
say "1/3 training"
"$PYTHON" -m cosurfgs_jax.train --config=configs/quickstart.py --workdir="$workdir" "$@"
say "2/3 extracting the mesh"
"$PYTHON" -m cosurfgs_jax.extract_mesh --workdir="$workdir"
say "3/3 evaluating"
"$PYTHON" -m cosurfgs_jax.evaluate --workdir="$workdir"
say "done; open $(realpath "$workdir")/report.html"
