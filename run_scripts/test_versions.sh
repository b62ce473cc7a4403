#!/usr/bin/env bash
# Run the tests with several versions of Python and PyTorch, each in its own environment, and print a table.
#
#   bash run_scripts/test_versions.sh [--clean] [--only-install] [<torch>@<Python> ...] [<pytest's arguments>]
#
# The default rows are those of ROWS; "newest" is the newest torch on PyPI. Pytest's arguments replace "tests -n 2".
# Environments and logs are in .versions or $PEDESTAL_VERSIONS_DIR. The next run uses complete environments again.
# --clean removes the environments of the chosen rows first, and --only-install stops before the tests.
set -u
cd "$(dirname "$0")/.."
ROWS="2.6@3.10 2.10@3.13 2.14@3.12 newest@3.11"
folder=${PEDESTAL_VERSIONS_DIR:-.versions}
mkdir -p "$folder" && folder=$(cd "$folder" && pwd) || exit 2

trap 'exit 130' INT     # pip and pytest handle Ctrl-C themselves, and bash would continue with the next row
exec 3>&2   # for progress; the output of a row goes to its log
clean= only_install= rows=()
while [ $# -gt 0 ]; do
    case $1 in
        --clean) clean=yes ;;
        --only-install) only_install=yes ;;
        newest@3.* | [0-9]*.*@3.*) rows+=("$1") ;;
        -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit ;;
        *) break ;;
    esac
    shift
done
[ ${#rows[@]} -gt 0 ] || read -ra rows <<<"$ROWS"
[ $# -gt 0 ] || set -- tests -n 2

# Find a python3.x on the PATH that runs and can make environments; shims of version managers may do neither.
find_python() {
    local candidate
    for candidate in $(type -aP "python$1"); do
        "$candidate" -c "import ensurepip, sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null &&
            echo "$candidate" && return
    done
    return 1
}

# Install row $1 into its environment $2. The file "complete" holds the requirements that an earlier run installed
# there. An environment without this file is made again. One with other requirements gets the missing packages.
install() {
    local torch=${1%@*} python=${1#*@} interpreter wanted
    wanted=$(cat requirements.txt requirements-docs.txt requirements-test.txt)
    if [ ! -e "$2/complete" ] || ! "$2/bin/python" -c '' 2>/dev/null; then
        interpreter=$(find_python "$python") || return 3
        rm -rf "$2"
        "$interpreter" -m venv "$2" || return
    elif [ "$(cat "$2/complete")" = "$wanted" ]; then
        return
    fi
    rm -f "$2/complete"
    [ "$torch" = newest ] && torch=torch || torch="torch==$torch.*"
    echo "$1: installing $torch with Python $python (several GB); log: $2.log" >&3
    "$2/bin/python" -m pip install "$torch" -r requirements-test.txt && echo "$wanted" >"$2/complete"
}

# Print a line of the table: the versions in the environment $1, and counts and time of pytest's report $2.
describe() {
    "$1/bin/python" - "$2" <<'PY'
import importlib.metadata, platform, sys, xml.etree.ElementTree as xml

versions = [platform.python_version(), *map(importlib.metadata.version, ['torch', 'torchvision'])]
suites = list(xml.parse(sys.argv[1]).iter('testsuite'))
total, failures, errors, skipped = (sum(int(suite.get(key)) for suite in suites)
                                    for key in ('tests', 'failures', 'errors', 'skipped'))
minutes, seconds = divmod(round(sum(float(suite.get('time')) for suite in suites)), 60)
failed = failures + errors
counts = map(str, [total - failed - skipped, failed, skipped])
print('| ' + ' | '.join([*versions, *counts, f'{minutes} min {seconds:02d} s']) + ' |')
PY
}

lines=() failed=0 finished=0
for row in "${rows[@]}"; do
    environment=$folder/$row report=$folder/$row.xml log=$folder/$row.log
    empty="| ${row#*@} | ${row%@*} | | | | |"
    [ -z "$clean" ] || rm -rf "$environment"
    install "$row" "$environment" >"$log" 2>&1
    case $? in
        0) ;;
        3) lines+=("$empty not run: no python${row#*@} with venv on the PATH |"); continue ;;
        *) lines+=("$empty installation failed: $log |"); failed=1; continue ;;
    esac
    if [ -n "$only_install" ]; then
        lines+=("$empty installed |"); finished=1; continue
    fi
    echo "$row: running pytest $*; log: $log" >&3
    rm -f "$report"
    "$environment/bin/python" -m pytest "$@" -q --junitxml "$report" >>"$log" 2>&1 || failed=1
    lines+=("$(describe "$environment" "$report" 2>>"$log" || echo "$empty no report: $log |")")
    finished=1
done

echo '| Python | torch | torchvision | passed | failed | skipped | time |'
echo '| --- | --- | --- | --- | --- | --- | --- |'
printf '%s\n' "${lines[@]}"
[ "$failed" -eq 0 ] && [ "$finished" -eq 1 ]
