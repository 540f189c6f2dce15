#!/usr/bin/env bash
# Build the wheel, install it into a fresh environment, and read an image of the repository with the reader inside it.
# usage: bash scripts/check_wheel.sh        after scripts/setup.sh
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
.venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$scratch" .
wheel=$(ls "$scratch"/*.whl)
bytes=$(wc -c <"$wheel")
[ "$bytes" -lt 15000000 ] || { echo "wheel: $bytes bytes, more than 15 MB" >&2; exit 1; }
python=$(.venv/bin/python -c 'import sys; print(sys._base_executable)')
"$python" -m venv "$scratch/env" >/dev/null 2>&1 || {
  "$python" -m venv --clear --without-pip "$scratch/env"
  "$python" -m pip --python "$scratch/env/bin/python" install --quiet pip
}
"$scratch/env/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel"
picture=$PWD/docs/images/receipt.png
text=$(cd "$scratch" && env/bin/python -m mlx_pixword.generate --image "$picture" --box 99,74,30,13)
[ "$text" = 9.35 ] || { echo "wheel: read '$text' where 9.35 stands" >&2; exit 1; }
echo "wheel: $bytes bytes, installed alone it reads $text"
