#!/usr/bin/env bash
# Pretrain the paper's image model on a folder of images. Each image is decoded once; later epochs read the cache.
# usage: bash scripts/pretrain_folder.sh FOLDER [options of pretrain]
# PYTHON: the interpreter (python3)    OUT: the run's folder (runs/folder)    CACHE: folded images (runs/cache)
set -euo pipefail
python=${PYTHON:-python3}
if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
  echo "usage: bash $0 FOLDER [options of pretrain]" >&2
  exit 2
fi
folder=$1
shift

# Activations grow with the images of a micro-batch, so it holds one large image, and sixteen of them make a step.
"$python" -m mlx_pixword.pretrain --preset upw-120m --data "$folder" --out "${OUT:-runs/folder}" \
  --cache "${CACHE:-runs/cache}" --no-pack --batch-tokens 256 --accumulate 16 --grad-checkpoint \
  --threads 4 --steps 5000 ${1+"$@"}
