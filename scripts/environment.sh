# Sourced by the other scripts: a Python environment with the package and what it needs. Quiet, and
# quick when all is there. Uses the active virtual environment, or makes .venv in the repository.
# Sets PYTHON.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }

die() { say "error: $*"; exit 1; }

# Runs a command silently; shows what it printed if it fails.
quietly() {
  local log
  log="$(mktemp)"
  if ! "$@" >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}

is_supported() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
}

find_python() {
  local name
  for name in python3 python3.11 python3.12 python3.13; do
    if is_supported "$name"; then
      command -v "$name"
      return
    fi
  done
  die "Python 3.11, 3.12 or 3.13 is needed, and there is none on the PATH." \
      "On Debian 12 or Ubuntu 24.04: apt-get install python3 python3-venv"
}

install_system_packages() {
  local root=()
  if [ "$(id -u)" -ne 0 ]; then
    root=(sudo -n)
  fi
  if ! command -v apt-get >/dev/null || ! "${root[@]}" true 2>/dev/null; then
    die "these system packages are missing and cannot be installed from here: $*"
  fi
  say "installing $*"
  quietly "${root[@]}" apt-get update -q || true
  quietly "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends "$@" \
    || die "apt-get could not install: $*"
}

has_library() { PATH="$PATH:/sbin" ldconfig -p 2>/dev/null | grep -qF "$1"; }

ensure_system_packages() {
  if ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null; then
    (install_system_packages g++) \
      || say "no C++ compiler: everything works, in plain JAX, but several times slower"
  fi
  local missing=()
  # What open3d loads, also where it draws nothing.
  has_library libusb-1.0.so.0 || missing+=(libusb-1.0-0)
  has_library libGL.so.1 || missing+=(libgl1)
  has_library libEGL.so.1 || missing+=(libegl1)
  has_library libX11.so.6 || missing+=(libx11-6)
  has_library libidn2.so.0 || missing+=(libidn2-0)
  has_library libudev.so.1 || missing+=(libudev1)
  if [ "${#missing[@]}" -gt 0 ]; then
    install_system_packages "${missing[@]}"
  fi
}

ensure_virtual_environment() {
  if [ -n "${VIRTUAL_ENV:-}" ]; then
    PYTHON="$VIRTUAL_ENV/bin/python"
    return
  fi
  PYTHON="$PWD/.venv/bin/python"
  if "$PYTHON" -m pip --version >/dev/null 2>&1; then
    return
  fi
  local base version
  base="$(find_python)"
  say "making .venv with $("$base" --version)"
  rm -rf .venv
  if ! "$base" -m venv .venv >/dev/null 2>&1; then
    version="$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    install_system_packages "python$version-venv"
    rm -rf .venv
    quietly "$base" -m venv .venv || die "$base -m venv .venv fails"
  fi
}

pip_install() { "$PYTHON" -m pip install -q --disable-pip-version-check "$@"; }

can_import() { (cd / && "$PYTHON" -c 'import cosurfgs_jax') 2>/dev/null; }

# A hash of all that an installation in place is made from. An installation lists the modules by
# name: one that moved or is new needs another installation.
installed_content() {
  {
    cat requirements.txt pyproject.toml CMakeLists.txt
    find cmake cosurfgs_jax/native/csrc -type f | LC_ALL=C sort | xargs cat
    find cosurfgs_jax -name '*.py' ! -name _build_info.py | LC_ALL=C sort
  } | sha256sum
}

# Installs the pinned requirements, then the package in place. A stamp says what was installed from
# which files.
ensure_packages() {
  local stamp="$1/.cosurfgs_jax_installed" wanted
  wanted="$(installed_content) $PWD"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && can_import; then
    return
  fi
  say "installing Python packages (the first time takes some minutes)"
  quietly pip_install -r requirements.txt || die "pip could not install requirements.txt"
  say "building the package"
  quietly pip_install --no-build-isolation --no-deps -e . || die "the package could not be built"
  printf '%s' "$wanted" >"$stamp"
}

ensure_virtual_environment
ensure_system_packages
ensure_packages "$(dirname "$(dirname "$PYTHON")")"
