# Sourced by the scripts beside it: `ensure_venv EXTRA` makes or reuses .venv with edgekit[EXTRA] in it.

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
        if [ -n "$candidate" ] && "$candidate" -c \
            'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "edgekit needs Python 3.11, 3.12 or 3.13: install one, or name it: PYTHON=/path/to/python $0" >&2
    return 1
}

ensure_venv() {
    local extra=$1 stamp=".venv/edgekit-$1.stamp" python
    if [ ! -x .venv/bin/python ]; then
        python=$(find_python)
        if ! "$python" -m venv .venv; then
            rm -rf .venv
            echo "no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2
            return 1
        fi
    fi
    if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
        echo "installing edgekit[$extra] into .venv (the first time several GB: PyTorch and the converters)" >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$extra]"
        touch "$stamp"
    fi
}
