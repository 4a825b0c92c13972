#!/usr/bin/env bash
# Trains the blocks of a run as tasks of a SLURM array, each alone on one GPU, then the rest of the
# run in one job that begins when all of them are done. The flags are those of `cosurfgs train`.
#   deploy/slurm_blocks.sh PARTS --config=configs/aerial.py --config.data.path=DATASET --workdir=DIR ...
# PARTS: tasks of the array; part i of PARTS trains the blocks i, i + PARTS, ... Give the number of
# blocks for a task each. The workdir and the dataset lie on a file system that all nodes share.
# BLOCK_OPTIONS and REST_OPTIONS are options of sbatch, for a task and for the job after them, e.g.
#   BLOCK_OPTIONS="--partition=gpu --gpus=1 --time=4:00:00"
#   REST_OPTIONS="--partition=gpu --nodes=2 --ntasks-per-node=4 --gpus-per-task=1"
# With several tasks in REST_OPTIONS the rest runs as that many processes (srun). Where a block fails
# or needs more time than it has, the rest is cancelled; submit again by the same command, which goes
# on: what is finished is not done again.
set -euo pipefail

if ! [[ "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
  echo "deploy/slurm_blocks.sh: expected the number of parts first, got '${1:-}'" >&2
  exit 2
fi
parts="$1"
shift
if ! (($#)); then
  echo "deploy/slurm_blocks.sh: expected the flags of train after the parts, got none" >&2
  exit 2
fi
flags="$(printf ' %q' "$@")" # for bash, which the scripts below ask for
read -ra block_options <<<"${BLOCK_OPTIONS:---gpus=1 --cpus-per-task=8 --time=4:00:00}"
read -ra rest_options <<<"${REST_OPTIONS:---gpus=1 --cpus-per-task=8 --time=4:00:00}"

# SIGTERM two minutes before the end of the time: a block saves its state and ends with 143, a failure
# for SLURM (--requeue is for nodes that fail). The shell becomes the program, so that the signal
# reaches it.
blocks="$(sbatch --parsable --job-name=cosurfgs-blocks --array="0-$((parts - 1))" --requeue \
  --signal=B:TERM@120 "${block_options[@]}" <<EOF
#!/usr/bin/env bash
exec cosurfgs train --blocks="\$SLURM_ARRAY_TASK_ID/$parts"$flags
EOF
)"
blocks="${blocks%%;*}" # of several clusters it is NUMBER;CLUSTER
# srun does not take the cores of a task from the job by itself.
rest="$(sbatch --parsable --job-name=cosurfgs-rest --dependency="afterok:$blocks" \
  --kill-on-invalid-dep=yes "${rest_options[@]}" <<EOF
#!/usr/bin/env bash
if [[ -n "\${SLURM_CPUS_PER_TASK:-}" ]]; then
  export SRUN_CPUS_PER_TASK="\$SLURM_CPUS_PER_TASK"
fi
exec srun cosurfgs train$flags
EOF
)"
echo "blocks: job $blocks, $parts tasks; the rest: job ${rest%%;*}, after them"
