#!/usr/bin/env bash
# Builds the program that checks the CUDA kernels without Python and XLA
# (tests/native/gpu_program.cc):
#   scripts/build_gpu_program.sh OUTPUT [--emulated]
# nvcc compiles it for the GPUs of this machine, or for compute capability 9.0 without one; with
# --emulated the C++ compiler does alone, and loops take the place of the GPU.
# Environment: COSURFGS_CUDA_ARCHITECTURES (a list such as 80;90, or native), NVCC, CXX.
set -euo pipefail

die() {
  echo "build_gpu_program.sh: $1" >&2
  exit 2
}
output=${1:-}
mode=${2:-}
if [ -z "$output" ] || [ $# -gt 2 ] || [[ "$mode" != "" && "$mode" != --emulated ]]; then
  die "usage: build_gpu_program.sh OUTPUT [--emulated]"
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
native=$root/cosurfgs_jax/native/csrc
tests=$root/tests/native
cxx=$(command -v "${CXX:-g++}" || command -v c++) || die "no C++ compiler; apt-get install g++"

if [ "$mode" = --emulated ]; then
  exec "$cxx" -std=c++17 -O2 -Wall -Wextra -DCOSURFGS_EMULATED \
    -I "$tests/cuda_stub" -I "$native" -I "$tests" "$tests/gpu_program.cc" -o "$output"
fi

nvcc=${NVCC:-}
for candidate in nvcc "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc"; do
  [ -n "$nvcc" ] || nvcc=$(command -v "$candidate" || true)
done
[ -n "$nvcc" ] || die "nvcc was not found; put the one of CUDA 12 or 13 on the PATH"
capabilities=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null || true)
found=$(sed -n 's/^\([0-9]*\)\.\([0-9]\)$/\1\2/p' <<<"$capabilities" | sort -un)
wanted=${COSURFGS_CUDA_ARCHITECTURES:-}
case "$wanted" in
  native)
    if [ -z "$found" ]; then
      die "COSURFGS_CUDA_ARCHITECTURES=native, but nvidia-smi finds no GPU on this machine"
    fi
    wanted=$found
    ;;
  "") wanted=${found:-90} ;;
esac
architectures=()
for architecture in ${wanted//[;,]/ }; do
  if [[ ! "$architecture" =~ ^[0-9]+$ ]]; then
    die "COSURFGS_CUDA_ARCHITECTURES: expected native or a list as 80;90, got $wanted"
  fi
  architectures+=("-gencode=arch=compute_$architecture,code=sm_$architecture")
done

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
jobs=()
for file in cuda_binning cuda_blend cuda_training; do
  "$nvcc" -ccbin "$cxx" -std=c++17 -O3 --threads=0 "${architectures[@]}" -I "$native" \
    -c "$native/gpu/$file.cu" -o "$folder/$file.o" &
  jobs+=($!)
done
# nvcc only calls the C++ compiler for these, but it knows where CUDA's headers are.
for file in gpu_program gpu_reference; do
  "$nvcc" -ccbin "$cxx" -std=c++17 -O2 -Xcompiler=-Wall,-Wextra -I "$native" -I "$tests" \
    -c "$tests/$file.cc" -o "$folder/$file.o" &
  jobs+=($!)
done
status=0
for job in "${jobs[@]}"; do wait "$job" || status=$?; done
[ "$status" = 0 ] || exit "$status"
"$nvcc" -ccbin "$cxx" "${architectures[@]}" "$folder"/*.o -o "$output"
