# Set $PYTHON to an interpreter with the packages of the requirements file $1. Other scripts source this file. It takes
# the active Python if that has all packages, else the virtual environment .venv in the repository. It makes .venv on
# first use and completes one whose installation was interrupted. It never replaces a .venv that does not work.
requirements=$1

stop() {
    echo "$1" >&2
    exit 2
}

has_everything() {
    "$1" - "$requirements" >/dev/null 2>&1 <<'PY'
import importlib.metadata, re, sys

def check(path):
    for line in open(path):
        line = line.split('#')[0].strip()
        if line.startswith('-r'):
            check(line[2:].strip())
        elif line:
            name, least = re.match(r'([\w-]+)(?:>=([\d.]+))?', line).groups()
            have = importlib.metadata.version(name)
            number = lambda version: [int(n) for n in re.findall(r'\d+', version)[:2]]
            assert not least or number(have) >= number(least), name

assert sys.version_info >= (3, 10)
check(sys.argv[1])
PY
}

# Stop with the advice $2 unless $1 is a Python that runs and is new enough.
require_python() {
    local version
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || stop "$1 does not run: $2"
    case $version in
        [0-2].* | 3.[0-9]) stop "$1 is Python $version, and 3.10 or later is needed: $2" ;;
    esac
}

# Make .venv, or complete it, with the Python $1.
make_environment() {
    local output
    output=$("$1" -m venv .venv 2>&1) || stop "$output
$1 cannot make a virtual environment in $PWD/.venv (see above): install its venv and ensurepip
(Debian and Ubuntu: apt install python3-venv), or name another Python: PYTHON=python3.11 bash $0"
}

PYTHON=${PYTHON:-python3}
if ! has_everything "$PYTHON"; then
    if [ -f .venv/pyvenv.cfg ] && { [ -e .venv/bin/python ] || [ -L .venv/bin/python ]; }; then
        require_python .venv/bin/python "remove the folder $PWD/.venv and start again"
        .venv/bin/python -m pip --version >/dev/null 2>&1 || make_environment .venv/bin/python
    else
        require_python "$PYTHON" "name one: PYTHON=python3.11 bash $0"
        make_environment "$PYTHON"
    fi
    PYTHON=.venv/bin/python
    if ! has_everything "$PYTHON"; then
        # An interrupted pip leaves a .dist-info without METADATA, and pip 24 takes that for an installed package.
        for package in .venv/lib/python3*/site-packages/*.dist-info; do
            [ -e "$package/METADATA" ] || rm -rf "$package"
        done
        echo "Installing the packages of $requirements into .venv (PyTorch is several GB) ..."
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$requirements" ||
            stop "pip failed (see above); solve that and start again: the installation continues in .venv"
        has_everything "$PYTHON" ||
            stop ".venv still lacks packages of $requirements: remove the folder $PWD/.venv and start again"
    fi
fi
