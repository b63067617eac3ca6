#!/bin/sh
# What only a GPU can show, in at most nine minutes; bench/gpu.py says what that is.
# After `make demo`, or with PYTHON=... for an environment of your own.
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-.venv/bin/python}
if ! command -v "$PYTHON" >/dev/null; then
    echo "bench/gpu.sh: there is no $PYTHON; run make demo first, or name another one: PYTHON=python3 bench/gpu.sh" >&2
    exit 1
fi
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" bench/gpu.py "$@"
