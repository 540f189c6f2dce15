#!/usr/bin/env bash
# All of the evidence, from nothing to the page:   bash benchmarks/evidence/reproduce.sh [--quick] [--blocks i,ii]
# --quick runs every part on tiny settings, some minutes of one core, and shows nothing but that it works.
# Without it every block is run: days of two cores. Stopped at any time, the same command goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}; [ -x .venv/bin/python ] && python=${PYTHON:-.venv/bin/python}
exec "$python" benchmarks/evidence reproduce "$@"
