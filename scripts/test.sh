#!/usr/bin/env bash
# Installs what the tests need, checks the style, and runs the tests. --slow adds the tests that
# take minutes; other arguments go to pytest: scripts/test.sh tests/unit/test_settings.py -k type
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

arguments=()
for argument in "$@"; do
  if [ "$argument" = --slow ]; then
    arguments+=(-m "")
  else
    arguments+=("$argument")
  fi
done

VIRTUAL_ENV="$(dirname "$(dirname "$PYTHON")")" scripts/check_style.sh
# Most of the time goes into compiling, one core per test: two workers halve it.
workers="$(nproc)"
exec "$PYTHON" -m pytest -x -q -n "$((workers < 4 ? workers : 4))" --dist loadfile \
  "${arguments[@]}"
