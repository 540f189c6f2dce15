#!/usr/bin/env bash
# All that a machine with an NVIDIA GPU can show, within eight minutes, in one JSON; see gpu.py.
# usage: bash benchmarks/gpu.sh [options of gpu.py]      PYTHON: the interpreter (.venv/bin/python, made if missing)
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
if [ ! -x "$python" ]; then
  bash "$here/scripts/setup.sh" cuda
  "$python" -m pip install --quiet "torch==2.13.0" || echo "no PyTorch: its sides are skipped" >&2
fi
cd "$here"
exec "$python" benchmarks/gpu.py ${1+"$@"}
