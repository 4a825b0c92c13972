#!/usr/bin/env bash
# Builds the native CPU library with sanitizers and runs its tests with it, for every instruction
# set that this machine has. Counts the reports; exits with 1 if there is one, or a test fails.
#   scripts/sanitize.sh [--kinds=address,thread] [--sets=baseline,v3,v4] [--build=FOLDER]
#                       [PYTEST ARGUMENTS]
# address: AddressSanitizer and UndefinedBehaviorSanitizer; thread: ThreadSanitizer. By default the
# parity tests and those of losses and optimiser run, where they call a kernel. It needs g++ with
# its sanitizers, cmake, and the active virtual environment or .venv. Python and XLA are not
# instrumented, only what is ours; what XLA compiles is kept in FOLDER/cache for the next set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="$(realpath -s "${VIRTUAL_ENV:-.venv}/bin/python")"
KINDS=address,thread
SETS=baseline,v3,v4
BUILD="${TMPDIR:-/tmp}/cosurfgs-sanitize"
TESTS=(tests/parity/test_raster_parity.py tests/parity/test_orthographic.py
  tests/parity/test_raster_properties.py tests/parity/test_removal.py
  tests/component/test_photometric.py tests/component/test_geometric_losses.py
  tests/component/test_optim.py)

die() { printf 'error: %s\n' "$*" >&2; exit 2; }

arguments=()
for argument in "$@"; do
  case "$argument" in
    --kinds=*) KINDS="${argument#*=}" ;;
    --sets=*) SETS="${argument#*=}" ;;
    --build=*) BUILD="${argument#*=}" ;;
    *) arguments+=("$argument") ;;
  esac
done
[ ${#arguments[@]} -gt 0 ] \
  || arguments=("${TESTS[@]}" -k
    "not portable and not reference and not instruction_set and not emulat")
command -v g++ >/dev/null || die "g++: not found; install a C++17 compiler"

# A folder that Python takes for the installed package's: native/ffi.py asks there for the library.
build() {
  local kind="$1" flags="$2" folder="$BUILD/$1"
  mkdir -p "$folder/site/cosurfgs_jax-0.dist-info" "$folder/site/cosurfgs_jax/lib"
  printf 'Metadata-Version: 2.1\nName: cosurfgs_jax\nVersion: 0\n' \
    > "$folder/site/cosurfgs_jax-0.dist-info/METADATA"
  # Not Release: at -O3 an instrumented build takes ten times as long.
  PATH="$(dirname "$PYTHON"):$PATH" cmake -S . -B "$folder/make" -DCMAKE_BUILD_TYPE=Sanitize \
    -DCMAKE_CXX_COMPILER=g++ -DPython_EXECUTABLE="$PYTHON" -DCOSURFGS_CUDA=OFF \
    -DCMAKE_CXX_FLAGS="-O1 -g1 -fno-omit-frame-pointer $flags" >"$folder/cmake.log" 2>&1 \
    || die "cmake failed: $folder/cmake.log"
  cmake --build "$folder/make" -j "$(nproc)" >"$folder/build.log" 2>&1 \
    || die "the build failed: $folder/build.log"
  cp "$folder/make/libcosurfgs_cpu.so" "$folder/site/cosurfgs_jax/lib/"
}

# Ends with 1 unless a process has loaded the library of a folder: else the tests would say nothing.
LOADED='
import sys
from cosurfgs_jax.native import ffi
ffi.load_cpu_library()
sys.exit(sys.argv[1] not in open("/proc/self/maps").read())'

failed=0

# Runs Python with a sanitizer's runtime and the instrumented library, on one instruction set.
run_python() {
  local runtime="$1" set="$2" folder="$3"
  shift 3
  # libstdc++, too: without it the runtime has no exceptions of programs that load it late.
  local preload
  preload="$(g++ -print-file-name="$runtime") $(g++ -print-file-name=libstdc++.so.6)"
  local options="log_path=$folder/report.$set:halt_on_error=0:exitcode=0"
  LD_PRELOAD="$preload" COSURFGS_INSTRUCTION_SET="$set" \
    PYTHONPATH="$folder/site${PYTHONPATH:+:$PYTHONPATH}" \
    ASAN_OPTIONS="$options:detect_leaks=0" UBSAN_OPTIONS="$options:print_stacktrace=1" \
    TSAN_OPTIONS="$options:ignore_noninstrumented_modules=1" \
    JAX_COMPILATION_CACHE_DIR="$BUILD/cache" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1 \
    "$PYTHON" "$@"
}

# Runs the tests on one instruction set and counts what the sanitizer wrote.
check() {
  local kind="$1" runtime="$2" set="$3" folder="$BUILD/$1" code=0 reports
  rm -f "$folder/report.$set".*
  run_python "$runtime" "$set" "$folder" -c "$LOADED" "$folder/site" \
    || die "the instrumented library is not the one that is loaded"
  run_python "$runtime" "$set" "$folder" -m pytest -q -p no:cacheprovider "${arguments[@]}" \
    >"$folder/tests.$set.log" 2>&1 || code=$?
  local words='ERROR: AddressSanitizer|CHECK failed|WARNING: ThreadSanitizer|runtime error:'
  reports=$(cat "$folder"/report."$set".* 2>/dev/null | grep -cE "$words" || true)
  printf '%s, %s: %s; %s reports\n' \
    "$kind" "$set" "$(tail -n 1 "$folder/tests.$set.log")" "$reports"
  if [ "$code" -ne 0 ] || [ "$reports" -ne 0 ]; then failed=1; fi
}

for kind in ${KINDS//,/ }; do
  case "$kind" in
    address) build address "-fsanitize=address,undefined" ;;
    thread) build thread "-fsanitize=thread" ;;
    *) die "--kinds=$kind: expected address or thread" ;;
  esac
  runtime=libasan.so
  if [ "$kind" = thread ]; then runtime=libtsan.so; fi
  for set in ${SETS//,/ }; do check "$kind" "$runtime" "$set"; done
done
exit "$failed"
