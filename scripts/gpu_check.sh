#!/usr/bin/env bash
# The first minutes on a machine with an NVIDIA GPU, in one command: correctness first, then times.
# Nine minutes on 16 cores.
#   scripts/gpu_check.sh [--python=PATH] [--fixtures=DIR] [--work=DIR] [--out=DIR] [--seconds=540]
#                        [--only=STEP,...] [--skip=STEP,...] [--no_build] [--short]
# It needs bash, Python with JAX for CUDA, nvcc and cmake, no network and no root, and it installs
# nothing: the package is built into the work folder. Every step has a limit and a log of its own; a
# failure does not stop the next one. A table comes last. Exit code 0 if every step ran and passed.
# Without a GPU what needs none runs, and the exit code is 1.
#   --python    the interpreter; default .venv/bin/python if it is there, else python3
#   --fixtures  what `python scripts/make_gpu_fixtures.py DIR` made; default runs/gpu_fixtures
#   --work      folder for the build and the logs of the steps; default runs/gpu_check
#   --out       folder for summary.txt, log.txt (all logs) and results.json; default $OUT, else that
#               of --work
#   --seconds   for everything; default 540, without a GPU 290. What does not fit is not run
#   --only, --skip  names of steps
#   --no_build  the same as --skip=build: what an earlier run built into the work folder, else the
#               package as it is installed
#   --short     tiny sizes, seconds: to try the script itself
set -uo pipefail

# The steps in order: name, seconds that must be left for it to begin, seconds after which it is
# stopped, and what it needs: "any" runs everywhere (on a machine without a GPU with the CPU's
# kernels, or emulated), "gpu" needs one.
STEPS="
facts      5  60  any
build      20 120 any
first      10 45  any
small      15 60  any
large      15 75  any
program    5  40  any
memcheck   5  30  gpu
racecheck  5  30  gpu
synccheck  5  30  gpu
initcheck  5  30  gpu
times      5  30  gpu
tests      20 75  gpu
peers      20 120 gpu
kernels    15 45  any
parts      20 75  any
training   30 90  gpu
"

start_folder="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# Ends a step that has nothing to run on: its last line says why.
not_run() { echo "not run: $*"; exit 77; }

need_fixtures() {
  ls "$FIXTURES"/*.npz >/dev/null 2>&1 && return
  not_run "no stored results in $FIXTURES; make them: python scripts/make_gpu_fixtures.py $FIXTURES"
}

need_program() { [ -x "$PROGRAM" ] || not_run "the stand-alone program was not built"; }

# A tool beside the interpreter or on the PATH.
tool() { PATH="$(dirname "$PYTHON"):$PATH" command -v "$1"; }

has_gpu() { [ "$(cat "$WORK/device" 2>/dev/null)" = gpu ]; }

# Compute capabilities of the GPUs here as CMake and nvcc want them (90); one of them where there is
# none.
architectures() {
  local found
  found="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d '. ' \
    | grep -E '^[0-9]+$' | sort -u | paste -sd ';')"
  echo "${found:-90}"
}

# The steps ----------------------------------------------------------------------------------------

step_facts() {
  nvidia-smi 2>&1 || true
  nvcc --version 2>&1 | tail -n 2 || true
  for name in nvcc cmake ninja g++ compute-sanitizer ncu cuobjdump; do
    printf '%-19s%s\n' "$name" "$(tool "$name" || echo missing)"
  done
  "$PYTHON" scripts/gpu_facts.py --device_file="$WORK/device"
}

# The libraries with plain CMake, and links to the package beside them: an installation that needs
# no pip.
build_library() {
  local cmake generator=() cuda=AUTO site="$WORK/site" version info
  rm -rf "$site"  # if this fails, an older build must not pass for it
  cmake="$(tool cmake)" || { echo "cmake is missing (pip install cmake)"; return 1; }
  if tool ninja >/dev/null; then generator=(-G Ninja "-DCMAKE_MAKE_PROGRAM=$(tool ninja)"); fi
  if has_gpu; then cuda=ON; fi
  export COSURFGS_CUDA_ARCHITECTURES
  COSURFGS_CUDA_ARCHITECTURES="$(architectures)"
  "$cmake" -S . -B "$WORK/build" "${generator[@]}" \
    -DCMAKE_BUILD_TYPE=Release "-DPython_EXECUTABLE=$PYTHON" -DCOSURFGS_CUDA=$cuda \
    "-DCOSURFGS_CUDA_ARCHITECTURES=$COSURFGS_CUDA_ARCHITECTURES" || return 1
  "$cmake" --build "$WORK/build" --parallel "$(nproc)" || return 1
  mkdir -p "$site"
  cp -rs "$PWD/cosurfgs_jax" "$site/" || return 1
  rm -rf "$site/cosurfgs_jax/lib" "$site/cosurfgs_jax/_build_info.py"  # of another build
  "$cmake" --install "$WORK/build" --prefix "$site" || return 1
  version="$(sed -n 's/^__version__ = "\(.*\)"/\1/p' cosurfgs_jax/__init__.py)"
  info="$site/cosurfgs_jax-$version.dist-info"
  mkdir "$info"
  printf 'Metadata-Version: 2.1\nName: cosurfgs_jax\nVersion: %s\n' "$version" >"$info/METADATA"
}

build_program() {
  if has_gpu; then
    COSURFGS_CUDA_ARCHITECTURES="$(architectures)" scripts/build_gpu_program.sh "$PROGRAM"
  else
    scripts/build_gpu_program.sh "$PROGRAM" --emulated
  fi
}

step_build() {
  local failed="" both
  rm -f "$PROGRAM"
  build_program >"$WORK/steps/build_program.log" 2>&1 &
  both=$!
  build_library || failed="the package"
  if ! wait "$both"; then
    cat "$WORK/steps/build_program.log"
    failed="${failed:+$failed and }the stand-alone program"
  fi
  if [ -n "$failed" ]; then
    echo "could not build $failed"
    return 1
  fi
  local sources="$PWD"
  cd "$WORK/site" || return 1
  "$PYTHON" - "$sources" <<'END'
import importlib.util, pathlib, sys
found = pathlib.Path(importlib.util.find_spec("cosurfgs_jax").origin).parent
built = [pathlib.Path(folder, "cosurfgs_jax").resolve() for folder in (".", sys.argv[1])]
if found.resolve() not in built:
    raise SystemExit(f"{sys.executable} has an installation of its own, {found}, that goes before "
                     "what was built; take an interpreter without")
spec = importlib.util.spec_from_file_location("info", "cosurfgs_jax/_build_info.py")
info = importlib.util.module_from_spec(spec)
spec.loader.exec_module(info)
from cosurfgs_jax.native import ffi
if reason := ffi.why_no_cpu_library():
    raise SystemExit(reason)
cuda = f"CUDA by {info.CUDA}" if info.CUDA else f"no CUDA: {info.WHY_NO_CUDA}"
print(f"{info.COMPILER} for {', '.join(info.VARIANTS)}; {cuda}")
END
}

compare() { need_fixtures; "$PYTHON" scripts/compare_gpu_fixtures.py "$FIXTURES" "$@"; }

# About a hundred surfels, forward and backward.
step_first() { compare --only=random_cloud --out="$WORK/json/first.json"; }

step_small() { compare --only=whole --out="$WORK/json/small.json"; }

# On a CPU the large ones would take minutes, and they are its own.
step_large() {
  if has_gpu; then
    compare --only=large --out="$WORK/json/large.json" || return 1
    if [ -z "$SHORT" ]; then
      compare --only=town_100k_1080p --any_order --out="$WORK/json/any_order.json"
    fi
  elif [ -f "$FIXTURES/town_2k.npz" ]; then
    compare --only=town_2k --out="$WORK/json/large.json"
  else
    need_fixtures
    not_run "no town_2k.npz in $FIXTURES, the one that a CPU is verified against here"
  fi
}

step_program() {
  need_program
  if has_gpu; then "$PROGRAM" check; else "$PROGRAM" quick; fi
}

sanitize() {
  need_program
  tool compute-sanitizer >/dev/null \
    || not_run "compute-sanitizer is missing; it comes with the CUDA toolkit"
  scripts/test_gpu.sh --sanitize="$1" --program="$PROGRAM" && return
  # Some virtual machines let programs compute on a GPU and no tool look into it.
  if grep -qi 'device not supported' "$WORK/steps/$1.log"; then
    not_run "compute-sanitizer cannot look into this GPU"
  fi
  return 1
}

step_memcheck() { sanitize memcheck; }
step_racecheck() { sanitize racecheck; }
step_synccheck() { sanitize synccheck; }
step_initcheck() { sanitize initcheck; }

step_times() { need_program; "$PROGRAM" time; }

# Properties that stored results do not show, in several processes that share the GPU.
step_tests() {
  local workers=() cores
  cores="$(nproc)"
  if "$PYTHON" -c 'import xdist' 2>/dev/null; then workers=(-n "$((cores < 8 ? cores : 8))"); fi
  scripts/test_gpu.sh --python="$PYTHON" "${workers[@]}" -k "two_runs or a_batch or vmap or \
    jit_changes or probe_changes or probe_sums or broken or dead_surfels or extremes or \
    any_order or order_of_the_arrays or finite_differences or carry_no_gradient or \
    whole_photograph or adam"
}

step_peers() {
  local sizes=()
  if [ -n "$SHORT" ]; then sizes=(--surfels=1000,2000 --sizes=160x96 --runs=2); fi
  "$PYTHON" scripts/bench_peers.py --turns=1 --limit=55 --out="$WORK/json/peers.json" "${sizes[@]}"
}

step_kernels() {
  local sizes=()
  if [ -n "$SHORT" ] || ! has_gpu; then sizes=(--surfels=2000 --size=160x96 --runs=2); fi
  "$PYTHON" scripts/profile_kernels.py --out="$WORK/json/kernels.json" "${sizes[@]}"
}

# A small town, made on the spot.
make_town() {
  "$PYTHON" - "$WORK/town" "$@" <<'END'
import sys
from cosurfgs_jax.data.town.dataset import make_town
from cosurfgs_jax.settings import GeneratedSettings
views, width, height, size_m = map(int, sys.argv[2:])
settings = GeneratedSettings(num_views=views, width=width, height=height, size_m=size_m)
make_town(settings, f"{sys.argv[1]}_{views}x{width}")
END
}

step_parts() {
  local views=20 width=960 height=540 size_m=60 surfels=200000 repeats=20
  if [ -n "$SHORT" ]; then
    views=4 width=64 height=48 size_m=30 surfels=500 repeats=2
  elif ! has_gpu; then
    views=8 width=320 height=240 surfels=20000 repeats=5
  fi
  make_town $views $width $height $size_m || return 1
  "$PYTHON" scripts/bench_step.py --data="$WORK/town_${views}x$width" --surfels=$surfels \
    --steps=$repeats --out="$WORK/json/parts.json" || return 1
  "$PYTHON" - "$WORK/json/parts.json" $surfels ${width}x$height <<'END'
import json, sys
parts = json.load(open(sys.argv[1]))["parts_ms"]
with_terms = parts.get("whole step with geometric terms", float("nan"))
print(f"a step with {int(sys.argv[2]):,d} surfels at {sys.argv[3]}: {parts['whole step']:.2f} ms, "
      f"{with_terms:.2f} with SV-Reg and MV-Reg")
END
}

step_training() {
  local run="$WORK/training"
  "$PYTHON" -c 'import ml_collections, tensorboardX' 2>/dev/null \
    || not_run "ml_collections or tensorboardX is missing"
  rm -rf "$run"
  make_town 20 960 540 60 || return 1
  "$PYTHON" -m cosurfgs_jax.train --workdir="$run" --config.data.path="$WORK/town_20x960" \
    --config.train.steps=400 --config.train.log_every=100 || return 1
  "$PYTHON" - "$run/metrics.json" "$WORK/json/training.json" <<'END'
import json, shutil, sys
metrics = json.load(open(sys.argv[1]))
shutil.copy(sys.argv[1], sys.argv[2])
stage = metrics["stages"][0]
speed = stage["steps"] / stage["seconds"]
print(f"{stage['steps']} steps in {stage['seconds']:.1f} s with compilation, {speed:.1f} a second; "
      f"PSNR {stage['psnr_test']:.2f}, {sum(stage['num_surfels']):,d} surfels")
if stage["psnr_test"] < 21:  # 21.58 on a CPU
    sys.exit("PSNR of test views: expected at least 21 after 400 steps, got "
             f"{stage['psnr_test']:.2f}")
END
}

if [ "${1:-}" = --step ]; then
  "step_$2"
  exit
fi

# Options ------------------------------------------------------------------------------------------

usage_error() { echo "error: $*" >&2; exit 2; }

# A path as the caller meant it.
absolute() { (cd "$start_folder" && realpath -m "$1"); }

# Whether a step was asked for.
is_chosen() {
  case ",$SKIP," in *",$1,"*) return 1 ;; esac
  case ",${ONLY:-$1}," in *",$1,"*) return 0 ;; esac
  return 1
}

PYTHON="" TOTAL="" ONLY="" SKIP="" SHORT=""
FIXTURES="$PWD/runs/gpu_fixtures" WORK="$PWD/runs/gpu_check" RESULTS="${OUT:-}"
if [ -x .venv/bin/python ]; then PYTHON="$PWD/.venv/bin/python"; fi
for argument in "$@"; do
  value="${argument#*=}"
  case "$argument" in
    --python=*) PYTHON="$value" ;;
    --fixtures=*) FIXTURES="$(absolute "$value")" ;;
    --work=*) WORK="$(absolute "$value")" ;;
    --out=*) RESULTS="$value" ;;
    --seconds=*) TOTAL="$value" ;;
    --only=*) ONLY="$value" ;;
    --skip=*) SKIP="$SKIP,$value" ;;
    --no_build) SKIP="$SKIP,build" ;;
    --short) SHORT=yes ;;
    *) usage_error "$argument: expected one of the options at the top of scripts/gpu_check.sh" ;;
  esac
done
for name in ${ONLY//,/ } ${SKIP//,/ }; do
  grep -q "^$name " <<<"$STEPS" \
    || usage_error "$name: expected the name of a step, one of" $(awk '{ print $1 }' <<<"$STEPS")
done
case "$TOTAL" in *[!0-9]*) usage_error "--seconds=$TOTAL: expected a whole number" ;; esac
PYTHON="$(cd "$start_folder" && realpath -s "$(command -v "${PYTHON:-python3}")" 2>/dev/null)" \
  || usage_error "--python: expected an interpreter, got none"
RESULTS="$(absolute "${RESULTS:-$WORK}")"
PROGRAM="$WORK/gpu_program"
export PYTHON FIXTURES WORK PROGRAM SHORT PYTHONUNBUFFERED=1
mkdir -p "$WORK" "$RESULTS" || exit 1
rm -rf "$WORK/steps" "$WORK/json" "$WORK/rows" "$WORK/device"
mkdir "$WORK/steps" "$WORK/json" || exit 1
: >"$RESULTS/log.txt"

# One step after the other -------------------------------------------------------------------------

# The table so far: step, what became of it, seconds, why.
write_summary() {
  awk -F'\t' 'BEGIN { printf "%-11s%-9s%8s  %s\n", "step", "result", "seconds", "what" }
    { printf "%-11s%-9s%8s  %s\n", $1, $2, $3, $4 }' "$WORK/rows" >"$RESULTS/summary.txt"
}

note() {  # STEP RESULT SECONDS WHY
  local why
  why="$(printf '%s' "$4" | tr '\t\n' '  ' | cut -c 1-600)"
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$why" >>"$WORK/rows"
  write_summary
}

# Runs one step as a process of its own that a time limit can end, and notes what became of it.
run_step() {  # STEP SECONDS-TO-BEGIN LIMIT
  local name="$1" needs="$2" limit="$3" log="$WORK/steps/$1.log" begun="$SECONDS"
  local left status why result
  left=$((TOTAL - SECONDS))
  if [ "$left" -lt "$needs" ]; then
    if [ "$left" -lt 0 ]; then left=0; fi
    note "$name" "not run" 0 "no time left: it takes at least $needs s, and $left s were"
    return
  fi
  limit=$((limit < left ? limit : left))
  echo "--- $name (at most $limit s)"
  timeout -k 5 "$limit" bash scripts/gpu_check.sh --step "$name" >"$log" 2>&1
  status=$?
  why="$(grep -v '^[[:space:]]*$' "$log" | tail -n 1)"
  case "$status" in
    0) result="ok" ;;
    77) result="not run" why="${why#not run: }" ;;
    124 | 137) result="FAILED" why="stopped after $limit s; its last line: $why" ;;
    *) result="FAILED" why="${why:-exit code $status}" ;;
  esac
  note "$name" "$result" "$((SECONDS - begun))" "$why"
  {
    printf '===== %s: %s, %s s =====\n' "$name" "$result" "$((SECONDS - begun))"
    cat "$log"
    echo
  } >>"$RESULTS/log.txt"
  case "$result $name" in
    FAILED*) tail -n 25 "$log" ;;
    "ok times" | "ok peers" | "ok kernels" | "ok parts" | "ok training") tail -n 32 "$log" ;;
  esac
}

# The table, results.json, and the exit code.
finish() {
  local bad
  trap - INT TERM
  "$PYTHON" - "$WORK" "$RESULTS/results.json" <<'END'
import json, pathlib, sys
work = pathlib.Path(sys.argv[1])
names = ("step", "result", "seconds", "what")
lines = (work / "rows").read_text().splitlines()
rows = [dict(zip(names, line.split("\t"))) for line in lines]
measured = {}
for path in sorted((work / "json").glob("*.json")):
    try:
        measured[path.stem] = json.loads(path.read_text())
    except ValueError:  # a step was stopped while it wrote
        measured[path.stem] = None
text = json.dumps({"steps": rows, "measured": measured}, indent=1)
pathlib.Path(sys.argv[2]).write_text(text + "\n")
END
  echo
  cat "$RESULTS/summary.txt"
  bad="$(awk -F'\t' '$2 != "ok" { printf " %s", $1 }' "$WORK/rows")"
  echo
  echo "$SECONDS s; all logs in $RESULTS/log.txt"
  if [ -n "$bad" ]; then
    echo "failed or not run:$bad"
    exit 1
  fi
  if ! has_gpu; then
    echo "every chosen step passed, but there is no GPU here: nothing was checked on one"
    exit 1
  fi
  echo "every chosen step passed"
  exit 0
}

SECONDS=0
trap finish INT TERM
GIVEN_TOTAL="$TOTAL" TOTAL="${TOTAL:-540}"
run_step facts 5 60
if has_gpu; then
  export JAX_PLATFORMS=cuda,cpu
else
  export JAX_PLATFORMS=cpu
  TOTAL="${GIVEN_TOTAL:-290}"
fi
# The tests of other programs may be on the GPU at the same time; products of matrices as the
# programs make them.
export XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_DEFAULT_MATMUL_PRECISION=highest
export PYTHONPATH="$WORK/site${PYTHONPATH:+:$PYTHONPATH}"  # what the build makes
while read -r name needs limit device; do
  if [ -z "$name" ] || [ "$name" = facts ] || ! is_chosen "$name"; then continue; fi
  if [ "$device" = gpu ] && ! has_gpu; then
    why="$(cat "$WORK/device" 2>/dev/null || echo "unknown devices: see facts")"
    note "$name" "not run" 0 "$why"
    continue
  fi
  # The limits are for a machine with a GPU, which has many cores.
  if ! has_gpu; then limit=$((4 * limit)); fi
  run_step "$name" "$needs" "$limit" </dev/null
done <<<"$STEPS"
finish
