"""The kernels' benchmark: counts from the emulator here, and times on a stand-in for a Mac."""

import json
from dataclasses import replace

import kernels as benchmark
import mlx.core as mx
import pytest

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.ops.dispatch import load
from mlx_pixword.ops.dispatch.kernel import Kernel, KernelError
from mlx_pixword.ops.survey import KERNELS


def printed(capsys):
    """The rows of the table, and the JSON."""
    *table, line = capsys.readouterr().out.splitlines()
    return table[1:], json.loads(line)


def test_every_kernel_is_counted_against_its_floor(capsys, tmp_path):
    real = load.metal_kernel
    benchmark.main(["--save", str(tmp_path)])
    table, result = printed(capsys)
    assert result["emulated"] and len(table) == len(result["rows"])
    assert {row["kernel"] for row in result["rows"]} == {kernel.name for kernel in KERNELS}
    for row in result["rows"]:
        assert row["traffic"] == row["traffic_bytes"] / row["floor_bytes"] > 0.5 and row["launches"] >= 1
        assert row["threadgroup_bytes"] <= 32768
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("kernels-") and json.loads(kept.read_text()) == result
    assert load.metal_kernel is real and load.build_kernel.cache_info().currsize == 0


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.trained], ids=lambda kernel: kernel.name)
def test_what_is_timed_on_a_mac_fits_the_smallest(kernel):
    """Of 8 GB: scores are what takes room in the reference, twelve numbers each where gradients are taken."""
    for q, *others in kernel.standard().values():
        keys = next(k for k in reversed(others) if isinstance(k, mx.array) and k.ndim == 4)
        assert 12 * 4 * q.size // q.shape[-1] * keys.shape[1] < 2e9


def test_folding_moves_the_floor(capsys):
    benchmark.main(["--kernel", "fold_colors", "--emulate"])
    _, result = printed(capsys)
    assert [row["traffic"] for row in result["rows"]] == [1.0, 1.0]
    assert result["rows"][0]["floor_bytes"] == 48 * 48 * (3 + 4)
    assert result["settings"] == {"kernel": "fold_colors", "emulate": True}


def square(x, y):
    return x @ x + y


KERNEL = Kernel(
    "square", square, lambda x, y: y + x @ x, lambda x, y: (x, y), trained=True,
    standard=lambda: {"four": (mx.eye(4), mx.ones(4)), "eight": (mx.eye(8), mx.ones(8))},
)  # fmt: skip


@pytest.fixture
def _mac(monkeypatch):
    monkeypatch.setattr(benchmark, "available", lambda: True)
    monkeypatch.setattr(benchmark, "KERNELS", (KERNEL, replace(KERNEL, name="rivalled", trained=False, rival=square)))
    monkeypatch.setattr(benchmark, "race", lambda runs: [float(n + 1) for n, run in enumerate(runs) if run()])


@pytest.mark.usefixtures("_mac")
def test_times_on_a_mac(capsys):
    benchmark.main([])
    table, result = printed(capsys)
    found = [(row["kernel"], row["sizes"], row["direction"]) for row in result["rows"]]
    plain = [("square", sizes, way) for sizes in ("four", "eight") for way in ("forward", "backward")]
    assert found == [*plain, ("rivalled", "four", "forward"), ("rivalled", "eight", "forward")]
    first, last = result["rows"][0], result["rows"][-1]
    assert (first["kernel_ms"], first["reference_ms"], first["rival_ms"], first["speed_up"]) == (1000, 2000, None, 2)
    assert (last["rival_ms"], last["rival_speed_up"], table[0].split()[-2]) == (3000, 3, "-")
    assert first["gb_per_s"] == 4 * (16 + 4 + 16) / 1e9  # x, y and the result
    assert result["rows"][1]["gb_per_s"] == 4 * (20 + 16 + 16 + 20) / 1e9  # and its cotangent and the gradients


@pytest.mark.usefixtures("_mac")
def test_a_wrong_kernel_is_not_timed(monkeypatch):
    monkeypatch.setattr(benchmark, "KERNELS", (replace(KERNEL, metal=lambda x, y: x @ x + 2 * y),))
    with pytest.raises(KernelError, match="square differs"):
        benchmark.main([])


def test_mistakes():
    with pytest.raises((SystemExit, PixWordError)):
        benchmark.main(["--kernel", "none"])
