#!/usr/bin/env bash
# Make .venv and install the package into it. Needs Python 3.10 or newer and pip, nothing else.
# usage: bash scripts/setup.sh [dev|bench|cuda]        PYTHON=python3.12 chooses the interpreter
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "setup: $python is older than 3.10; set PYTHON" >&2; exit 2; }
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  # Debian splits ensurepip off; pip can then put itself into the environment.
  "$python" -m venv .venv >/dev/null 2>&1 || {
    "$python" -m venv --clear --without-pip .venv
    "$python" -m pip --python .venv/bin/python install --quiet pip
  }
fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${1:+[$1]}"
# MLX's CPU and CUDA builds own the same library, and the one that was installed last has it: let that be CUDA's.
hidden=$(.venv/bin/python -c 'from mlx_pixword.common.blas import hidden_cuda; print(hidden_cuda() or "")' 2>/dev/null || true)
if [ -n "$hidden" ]; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "${hidden##* }"
fi
