#!/usr/bin/env bash
# Train on the built-in number plates, then measure the model on plates whose strings training never draws.
# usage: bash scripts/pretrain_plates.sh [options of pretrain]
# PYTHON: the interpreter (python3)    OUT: the run's folder (runs/plates)    COUNT: plates to read (500)
set -euo pipefail
python=${PYTHON:-python3}
out=${OUT:-runs/plates}
here=$(cd "$(dirname "$0")" && pwd)

"$python" -m mlx_pixword.pretrain --preset tiny --out "$out" ${1+"$@"}
if [ ! -e "$out/plates" ]; then # a resumed run keeps its plates
  "$python" "$here/make_plates.py" --count "${COUNT:-500}" --seed 1 --out "$out/plates"
fi
"$python" -m mlx_pixword.evaluate --model "$out/final" --data "$out/plates/labels.jsonl"
