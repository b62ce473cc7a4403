# Sourced by the other scripts: sets $PYTHON to an interpreter that has what $1, a requirements file, asks for. Takes the
# active one if it has everything, else a virtual environment .venv in the repository, made and filled on first use.
requirements=$1

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

PYTHON=${PYTHON:-python3}
if ! has_everything "$PYTHON"; then
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or later is needed; name one: PYTHON=python3.11 bash $0" >&2; exit 1; }
    [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv || exit 1
    PYTHON=.venv/bin/python
    if ! has_everything "$PYTHON"; then
        echo "Installing into .venv what $requirements asks for (PyTorch is several GB) ..."
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$requirements" || { echo "pip failed; see above" >&2; exit 1; }
    fi
fi
