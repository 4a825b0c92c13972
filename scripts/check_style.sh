#!/usr/bin/env bash
# Checks how the code is written: ruff (lint and format) and types (scripts/type_check.py) for
# Python, clang-format for C++ and CUDA.
#   scripts/check_style.sh [--fix]     --fix formats and mends instead
# The tools are those of the active virtual environment, else of .venv; it installs nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${VIRTUAL_ENV:-.venv}/bin/python"

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

has_module() { "$PYTHON" -c "import $1" 2>/dev/null; }

for name in ruff clang_format ty; do
  has_module "$name" \
    || die "$PYTHON: $name is missing; run: $PYTHON -m pip install -r requirements.txt"
done

# The package has no __main__, and its command may be in the folder of another environment.
clang_format() { "$PYTHON" -c 'import clang_format; clang_format.clang_format()' "$@"; }

# Files that git tracks, and new ones that it does not ignore; all where there is no git.
native_files() {
  local names=('*.cc' '*.h' '*.cu' '*.cuh')
  git ls-files --cached --others --exclude-standard -- "${names[@]}" 2>/dev/null | sort -u && return
  find cosurfgs_jax scripts tests -name '*.cc' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh'
}

files=()
while read -r file; do
  if [ -f "$file" ]; then files+=("$file"); fi  # git also lists what was removed
done < <(native_files)

case "${1:-}" in
  "")
    "$PYTHON" -m ruff check --quiet .
    "$PYTHON" -m ruff format --check --quiet . \
      || die "Python is not formatted; run: scripts/check_style.sh --fix"
    "$PYTHON" scripts/type_check.py
    clang_format --dry-run -Werror "${files[@]}" \
      || die "C++ is not formatted; run: scripts/check_style.sh --fix"
    ;;
  --fix)
    "$PYTHON" -m ruff check --quiet --fix .
    "$PYTHON" -m ruff format --quiet .
    clang_format -i "${files[@]}"
    ;;
  *) die "$1: expected nothing or --fix" ;;
esac
