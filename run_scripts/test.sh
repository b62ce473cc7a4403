#!/usr/bin/env bash
# Run all tests: bash run_scripts/test.sh [pytest arguments]
# It installs the required packages into .venv unless the active Python has them.
set -eu
cd "$(dirname "$0")/.."
. run_scripts/setup_python.sh requirements-test.txt
exec "$PYTHON" -m pytest tests -q -n 3 "$@"
