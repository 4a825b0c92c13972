#!/usr/bin/env bash
# Runs the rasterizer's tests on this machine's NVIDIA GPU; other arguments go to pytest.
#   scripts/test_gpu.sh [--python=PATH] [pytest's arguments]
#   scripts/test_gpu.sh --sanitize[=TOOL,...] [--program=FILE]
# --python=PATH takes that interpreter with what is installed in it, downloads and installs nothing:
# the package and JAX with CUDA must be there (an installation, or PYTHONPATH). Without it .venv (or
# the active environment) is made ready, which takes a network. --sanitize runs the stand-alone
# program under compute-sanitizer: memcheck, racecheck, synccheck, initcheck (or those that are
# named). It needs no Python; --program is one that scripts/build_gpu_program.sh has built, else it
# is built first. Ends with an error where nothing was tested: no GPU, every test skipped, or none
# chosen.
set -euo pipefail

start_folder="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="" TOOLS="" PROGRAM="" ARGUMENTS=()
TEMPORARY="$(mktemp -d)"
trap 'rm -rf "$TEMPORARY"' EXIT

say() { printf '%s\n' "$*" >&2; }

die() { say "error: $*"; exit 1; }

usage_error() { say "error: $*"; exit 2; }

pip_install() { "$PYTHON" -m pip install -q --disable-pip-version-check -c requirements.txt "$@"; }

# A hash of all that an installation in place is made from, with the names of its modules.
installed_content() {
  {
    cat requirements.txt pyproject.toml CMakeLists.txt
    find cmake cosurfgs_jax/native/csrc -type f | LC_ALL=C sort | xargs cat
    find cosurfgs_jax -name '*.py' ! -name _build_info.py | LC_ALL=C sort
  } | sha256sum
}

# The environment of the other scripts without what meshes need, and JAX with the CUDA that nvcc
# here is of.
ensure_environment() {
  local folder="${VIRTUAL_ENV:-$PWD/.venv}" cuda=cuda13 stamp wanted
  PYTHON="$folder/bin/python"
  if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
    say "making .venv with $(python3 --version)"
    python3 -m venv "$folder" >"$TEMPORARY/venv" 2>&1 \
      || die "python3 -m venv $folder fails: $(tail -n 1 "$TEMPORARY/venv")"
  fi
  if command -v nvcc >/dev/null && nvcc --version | grep -q 'release 12'; then cuda=cuda12; fi
  stamp="$folder/.cosurfgs_jax_gpu_installed"
  wanted="$(installed_content) $cuda $PWD"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
  say "installing Python packages and building (the first time takes some minutes)"
  # requirements.txt only says which versions: what open3d asks for stays away.
  pip_install scikit-build-core cmake ninja pathspec \
    && pip_install --no-build-isolation -e ".[$cuda,test]" \
    || die "pip could not install the package with JAX for $cuda;" \
      "with all of it there: scripts/test_gpu.sh --python=PATH"
  printf '%s' "$wanted" >"$stamp"
}

# Prints what JAX found; fails where the tests could not run.
show_devices() {
  "$PYTHON" - <<'END' || exit 1
import platform, sys
try:
    import jax
    from cosurfgs_jax.native import ffi
except ImportError as error:
    sys.exit(f"error: {sys.executable} lacks what the tests need: {error}")
try:
    found = ", ".join(f"{gpu.platform}:{gpu.id} {gpu.device_kind}" for gpu in jax.devices())
except RuntimeError as error:
    sys.exit(f"error: JAX {jax.__version__} finds no device: {str(error).splitlines()[0]}")
print(f"Python {platform.python_version()}, JAX {jax.__version__}: {found}", file=sys.stderr)
if reason := ffi.why_no_cuda_library():
    sys.exit(f"error: nothing was tested: {reason}")
END
}

sanitize() {
  local tool failed=""
  command -v compute-sanitizer >/dev/null \
    || die "compute-sanitizer is not on the PATH; it comes with the CUDA toolkit"
  if [ -z "$PROGRAM" ]; then
    PROGRAM="$TEMPORARY/program"
    scripts/build_gpu_program.sh "$PROGRAM"
  fi
  # No filter of kernels: initcheck must see what cub wrote. Without XLA's memory pool every
  # allocation has bounds of its own.
  for tool in ${TOOLS//,/ }; do
    say "compute-sanitizer --tool $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 3 "$PROGRAM" sanitize 2>&1 \
      | tee "$TEMPORARY/$tool" || failed+=" $tool"
    grep -q 'ERROR SUMMARY: 0 errors\|RACECHECK SUMMARY: 0 hazards' "$TEMPORARY/$tool" \
      || failed+=" $tool"
  done
  if [ -n "$failed" ]; then
    failed="$(printf '%s\n' $failed | uniq | paste -sd ' ')"
    die "$failed found something, or could not look (see above)"
  fi
  say "nothing found by ${TOOLS//,/, }"
}

# The path of an interpreter that was named relative to the caller's folder, or by a command.
find_interpreter() { (cd "$start_folder" && realpath -s "$(command -v "$1")" 2>/dev/null); }

for argument in "$@"; do
  case "$argument" in
    --python=*)
      PYTHON="$(find_interpreter "${argument#*=}")" \
        || usage_error "$argument: expected an interpreter, got none"
      ;;
    --sanitize) TOOLS="memcheck,racecheck,synccheck,initcheck" ;;
    --sanitize=*) TOOLS="${argument#*=}" ;;
    --program=*) PROGRAM="$(cd "$start_folder" && realpath -m "${argument#*=}")" ;;
    *) ARGUMENTS+=("$argument") ;;
  esac
done
if [ -n "$TOOLS" ]; then
  sanitize
  exit
fi
if [ -z "$PYTHON" ]; then ensure_environment; fi

# On the GPU; the CPU stays for what tests ask it for. XLA must not take all memory at once: other
# tests need some.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}" XLA_PYTHON_CLIENT_PREALLOCATE=false
show_devices
status=0
# Versions of packages that the project does not pin may warn.
"$PYTHON" -m pytest -q -W default tests/gpu "${ARGUMENTS[@]}" 2>&1 \
  | tee "$TEMPORARY/log" || status=$?
if [ "$status" = 0 ] && ! grep -Eq '[1-9][0-9]* passed' "$TEMPORARY/log"; then status=5; fi
if [ "$status" = 5 ]; then
  die "nothing was tested: every test was skipped, or none was chosen"
fi
exit "$status"
