#!/usr/bin/env bash
# Installs what the tests need, checks the style, and runs the tests of a lane:
#   scripts/test.sh [--lane=fast|component|parity|integration|all] [--slow] [pytest's arguments]
# fast: style, house rules and tests/unit; component, parity, integration: the folder of that name
# (parity with tests/aot); all, which is the default: everything. --slow adds the tests that take
# minutes. Other arguments go to pytest; a path among them takes the place of the lane's folders:
# scripts/test.sh tests/unit/test_settings.py -k type
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

lane=all
has_path=""
arguments=()
for argument in "$@"; do
  case "$argument" in
    --lane=*) lane="${argument#*=}" ;;
    --slow) arguments+=(-m "") ;;
    *)
      if [ -e "${argument%%::*}" ]; then has_path=yes; fi
      arguments+=("$argument")
      ;;
  esac
done
case "$lane" in
  fast) folders=(tests/house tests/unit) ;;
  component) folders=(tests/component) ;;
  parity) folders=(tests/parity tests/aot) ;;
  integration) folders=(tests/integration) ;;
  all) folders=(tests) ;;
  *) die "--lane=$lane: expected fast, component, parity, integration or all" ;;
esac
if [ -n "$has_path" ]; then folders=(); fi

SECONDS=0
if [ "$lane" = fast ] || [ "$lane" = all ]; then
  VIRTUAL_ENV="$(dirname "$(dirname "$PYTHON")")" scripts/check_style.sh
  say "style: $SECONDS s"
fi
# Most of the time goes into compiling, one core per test: two workers halve it. The order of the
# files is that of tests/conftest.py.
workers="$(nproc)"
status=0
unset PYTHONDONTWRITEBYTECODE  # else each process compiles the package's source anew
"$PYTHON" -m pytest -x -q -n "$((workers < 4 ? workers : 4))" --dist loadfile \
  --no-loadscope-reorder "${folders[@]}" "${arguments[@]}" || status=$?
say "lane $lane: $SECONDS s"
exit "$status"
