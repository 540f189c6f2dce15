#!/usr/bin/env bash
# What a Mac makes of the Metal kernels, in one file to paste into an issue: syntax, trials, times, some training.
# usage: bash scripts/mac_check.sh [FILE]        (default mac-check.txt)
# PYTHON: the interpreter (the checkout's .venv/bin/python, or else python3)    SECONDS_OF_TRAINING: 60
# Needs a checkout; xcrun needs Apple's command line tools.
# The file holds versions, the chip's name and what the kernels did; no names and no paths of this machine.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=python3
if [ -x "$here/.venv/bin/python" ]; then python=$here/.venv/bin/python; fi
python=${PYTHON:-$python}
out=${1:-mac-check.txt}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

section() { printf '\n===== %s\n' "$1"; }

# A part that fails is told, and the next one begins.
attempt() {
  section "$1"
  shift
  ${1+"$@"} 2>&1 || echo "FAILED: status $?"
}

syntax() {
  if ! command -v xcrun >/dev/null 2>&1; then
    echo "skipped: no xcrun; install Apple's command line tools with: xcode-select --install"
    return 0
  fi
  "$python" "$here/scripts/dump_kernels.py" --out "$scratch/kernels" >/dev/null || return
  include=$("$python" -c 'import mlx.core, pathlib; print(pathlib.Path(mlx.core.__file__).parent / "include")')
  xcrun metal --version | head -1
  for version in 3.1 3.2 4.0; do
    right=0
    wrong=0
    for text in "$scratch"/kernels/*.metal; do
      if xcrun metal "-std=metal$version" -fsyntax-only -I "$include" "$text" >"$scratch/messages" 2>&1; then
        right=$((right + 1))
      else
        wrong=$((wrong + 1))
        echo "$(basename "$text"), metal $version:"
        head -20 "$scratch/messages"
      fi
    done
    echo "metal $version: $right texts compile, $wrong do not"
  done
}

training() {
  "$python" -m mlx_pixword.pretrain --preset tiny --out "$scratch/run" --steps 100000 >"$scratch/training" 2>&1 &
  process=$!
  sleep "${SECONDS_OF_TRAINING:-60}"
  kill -TERM "$process" 2>/dev/null || true
  wait "$process" || true
  grep -i warn "$scratch/training" || true
  tail -5 "$scratch/training"
}

{
  section "machine"
  uname -sm
  if command -v sw_vers >/dev/null 2>&1; then sw_vers; fi
  versions='from importlib.metadata import version as v; print("mlx", v("mlx"), "mlx-pixword", v("mlx-pixword"))'
  "$python" -c "$versions" 2>&1 || echo "FAILED: install the package first: bash scripts/setup.sh"
  attempt "syntax of the kernels' texts" syntax
  attempt "python -m mlx_pixword.doctor --report" "$python" -m mlx_pixword.doctor --report
  attempt "python benchmarks/kernels.py" "$python" "$here/benchmarks/kernels.py"
  attempt "training, ${SECONDS_OF_TRAINING:-60} seconds of tiny" training
} | sed -e "s|$scratch|SCRATCH|g" -e "s|$here|CHECKOUT|g" -e "s|$HOME|HOME|g" >"$out"
echo "written: $out; paste it into an issue"
