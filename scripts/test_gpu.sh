#!/usr/bin/env bash
# Runs the rasterizer's tests on this machine's NVIDIA GPU. --sanitize runs some of them under compute-sanitizer (memory, then
# races in shared memory, then reads of what was never written), which takes minutes. Other arguments go to pytest.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# On the GPU; the CPU stays for what tests ask it for. XLA must not take all memory at once: the sanitizer needs some.
export JAX_PLATFORMS=cuda,cpu XLA_PYTHON_CLIENT_PREALLOCATE=false

if [ "${1:-}" = --sanitize ]; then
  shift
  command -v compute-sanitizer >/dev/null || die "compute-sanitizer is not on the PATH; it comes with the CUDA toolkit"
  for tool in memcheck racecheck initcheck; do
    say "compute-sanitizer --tool $tool"
    # Only our kernels: XLA's own are not what is tested, and slow.
    compute-sanitizer --tool "$tool" --error-exitcode 1 --target-processes all --kernel-name kernel_substring=cosurfgs \
      "$PYTHON" -m pytest -x -q -p no:xdist tests/gpu -k "(forward or gradient or contributions) and (random_cloud or ties)" "$@"
  done
  exit
fi
exec "$PYTHON" -m pytest -x -q tests/gpu "$@"
