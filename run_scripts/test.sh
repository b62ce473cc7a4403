#!/usr/bin/env bash
# Run all tests: bash run_scripts/test.sh [pytest arguments]
# It installs the required packages into .venv unless the active Python has them.
set -eu
cd "$(dirname "$0")/.."
. run_scripts/setup_python.sh requirements-test.txt
# Without the compiled files, each of the hundred programs that the tests start would compile Pedestal again.
unset PYTHONDONTWRITEBYTECODE
# Each file runs in one process, because its tests share what they train. Some tests only wait: three processes keep two
# cores busy.
exec "$PYTHON" -m pytest tests -q -n 3 --dist loadscope --no-loadscope-reorder "$@"
