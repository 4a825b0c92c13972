#!/usr/bin/env bash
# Trains the blocks of a run as tasks of a SLURM array, each alone on one GPU, then the rest of the
# run in one job that begins when all of them are done. The flags are those of `cosurfgs train`.
#   deploy/slurm_blocks.sh PARTS --config=configs/aerial.py --config.data.path=DATASET --workdir=DIR ...
# PARTS: tasks of the array; part i of PARTS trains the blocks i, i + PARTS, ... Give the number of
# blocks for a task each. The workdir and the dataset lie on a file system that all nodes share.
# BLOCK_OPTIONS and REST_OPTIONS are options of sbatch, for a task and for the job after them, e.g.
#   BLOCK_OPTIONS="--partition=gpu --gpus=1 --time=4:00:00"
#   REST_OPTIONS="--partition=gpu --nodes=2 --ntasks-per-node=4 --gpus-per-task=1"
# With several tasks in REST_OPTIONS the rest runs as that many processes (srun). The same command
# again goes on after a failure: what is finished is not done again.
set -euo pipefail

if ! [[ "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
  echo "deploy/slurm_blocks.sh: expected the number of parts first, got '${1:-}'" >&2
  exit 2
fi
parts="$1"
shift
flags="$(printf ' %q' "$@")"
read -ra block_options <<<"${BLOCK_OPTIONS:---gpus=1 --cpus-per-task=8 --time=4:00:00}"
read -ra rest_options <<<"${REST_OPTIONS:---gpus=1 --cpus-per-task=8 --time=4:00:00}"

# SIGTERM two minutes before the end of the time: a block saves its state and ends with 143. The
# shell becomes the program, so that the signal reaches it.
blocks="$(sbatch --parsable --job-name=cosurfgs-blocks --array="0-$((parts - 1))" --requeue \
  --signal=B:TERM@120 "${block_options[@]}" \
  --wrap "exec cosurfgs train --blocks=\$SLURM_ARRAY_TASK_ID/$parts$flags")"
blocks="${blocks%%;*}" # of several clusters it is NUMBER;CLUSTER
rest="$(sbatch --parsable --job-name=cosurfgs-rest --dependency="afterok:$blocks" \
  --kill-on-invalid-dep=yes "${rest_options[@]}" --wrap "exec srun cosurfgs train$flags")"
echo "blocks: job $blocks, $parts tasks; the rest: job ${rest%%;*}, after them"
