#!/usr/bin/env bash
# Installs what the tests need, checks the style, and runs the tests. --slow adds the tests that take minutes; other arguments
# go to pytest: scripts/test.sh tests/unit/test_settings.py -k type
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

"$PYTHON" -m ruff check --quiet .
# Not `python -m pytest`: that would put the source folder on the path, and the native library lies with the installation.
exec "$(dirname "$PYTHON")/pytest" -x -q "${arguments[@]}"
