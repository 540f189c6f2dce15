#!/usr/bin/env bash
# Read every image of a folder on its own: one line of JSON for each, {"image": ..., "text": ...}.
# usage: bash scripts/generate.sh MODEL FOLDER [options of generate]        MODEL: a folder or a hub repository
# PYTHON: the interpreter (python3)
set -euo pipefail
shopt -s nocasematch nullglob
python=${PYTHON:-python3}
if [ $# -lt 2 ]; then
  echo "usage: bash $0 MODEL FOLDER [options of generate]" >&2
  exit 2
fi
model=$1
folder=$2
shift 2

images=()
for file in "$folder"/*; do
  case "$file" in
    *.png | *.jpg | *.jpeg | *.webp | *.gif | *.bmp | *.tif | *.tiff) images+=(--image "$file") ;;
  esac
done
if [ ${#images[@]} -eq 0 ]; then
  echo "error: $folder holds no images" >&2
  exit 2
fi
for ((start = 0; start < ${#images[@]}; start += 2000)); do # a command line takes only so much
  "$python" -m mlx_pixword.generate --model "$model" --each --jsonl "${images[@]:start:2000}" ${1+"$@"}
done
