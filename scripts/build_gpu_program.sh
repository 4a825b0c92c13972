#!/usr/bin/env bash
# Builds the program that checks the CUDA kernels without Python and XLA (tests/native/gpu_program.cc):
#   scripts/build_gpu_program.sh OUTPUT              with nvcc, for the GPUs of this machine, or compute capability 9.0 without one
#   scripts/build_gpu_program.sh OUTPUT --emulated   with the C++ compiler alone: loops in the GPU's place
# Environment: COSURFGS_CUDA_ARCHITECTURES (a list such as 80;90, or native), NVCC, CXX.
set -euo pipefail

die() {
  echo "build_gpu_program.sh: $1" >&2
  exit 2
}
output=${1:-}
mode=${2:-}
[ -n "$output" ] && [ $# -le 2 ] && [[ "$mode" == "" || "$mode" == --emulated ]] || die "usage: build_gpu_program.sh OUTPUT [--emulated]"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
native=$root/cosurfgs_jax/native/csrc
tests=$root/tests/native
cxx=$(command -v "${CXX:-g++}" || command -v c++) || die "no C++ compiler; apt-get install g++"

if [ "$mode" = --emulated ]; then
  exec "$cxx" -std=c++17 -O2 -Wall -Wextra -DCOSURFGS_EMULATED -I "$tests/cuda_stub" -I "$native" -I "$tests" \
    "$tests/gpu_program.cc" -o "$output"
fi

nvcc=${NVCC:-}
for candidate in nvcc "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc"; do
  [ -n "$nvcc" ] || nvcc=$(command -v "$candidate" || true)
done
[ -n "$nvcc" ] || die "nvcc was not found; put the one of CUDA 12 or 13 on the PATH"
found=$( (nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null || true) | sed -n 's/^\([0-9]*\)\.\([0-9]\)$/\1\2/p' | sort -un)
wanted=${COSURFGS_CUDA_ARCHITECTURES:-}
case "$wanted" in
  native) [ -n "$found" ] || die "COSURFGS_CUDA_ARCHITECTURES=native, but nvidia-smi finds no GPU on this machine" ; wanted=$found ;;
  "") wanted=${found:-90} ;;
esac
architectures=()
for architecture in ${wanted//[;,]/ }; do
  [[ "$architecture" =~ ^[0-9]+$ ]] || die "COSURFGS_CUDA_ARCHITECTURES: expected native or a list as 80;90, got $wanted"
  architectures+=("-gencode=arch=compute_$architecture,code=sm_$architecture")
done

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
jobs=()
for file in cuda_binning cuda_blend cuda_training; do
  "$nvcc" -ccbin "$cxx" -std=c++17 -O3 --threads=0 "${architectures[@]}" -I "$native" -c "$native/gpu/$file.cu" -o "$folder/$file.o" &
  jobs+=($!)
done
for file in gpu_program gpu_reference; do  # by nvcc, which knows where its headers are; for such files it only calls the C++ compiler
  "$nvcc" -ccbin "$cxx" -std=c++17 -O2 -Xcompiler=-Wall,-Wextra -I "$native" -I "$tests" -c "$tests/$file.cc" -o "$folder/$file.o" &
  jobs+=($!)
done
status=0
for job in "${jobs[@]}"; do wait "$job" || status=$?; done
[ "$status" = 0 ] || exit "$status"
"$nvcc" -ccbin "$cxx" "${architectures[@]}" "$folder"/*.o -o "$output"
