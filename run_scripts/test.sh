#!/usr/bin/env bash
# All tests, from a fresh clone on: installs what they need into .venv unless the active Python has it. Arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
. run_scripts/setup_python.sh requirements-test.txt
exec "$PYTHON" -m pytest tests -q -n 2 "$@"
