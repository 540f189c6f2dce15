"""The benchmarks of long runs: a trial that is killed, a soak, and bytes between ranks, all as small as they can be."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import ring_bytes
from shared.tiny_runs import command, make_data, outcome
from soak import SoakArgs, look, verdict

from mlx_pixword.common.errors import PixWordError

ROOT = Path(__file__).parents[1]


def benchmark(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    path = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(path, capture_output=True, text=True, check=False, env=environment)


def test_a_killed_run_ends_like_one_that_was_not(tmp_path: Path) -> None:
    result = benchmark("kills", "--trials", 1, "--kills", 2, "--steps", 24, "--save", tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    (trial,) = report["trials"]
    assert trial["differs"] == [] and trial["kills"] == 2
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text()) == report and kept.name.startswith("kills-")


def test_outcomes_tell_runs_apart(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    for name, seed in (("a", 1), ("b", 2)):
        flags = [*data, "--steps", 2, "--log-every", 1, "--seed", seed]
        subprocess.run(command(tmp_path / name, *flags), check=True, capture_output=True)
    one, other = outcome(tmp_path / "a"), outcome(tmp_path / "b")
    assert {part for part in one if one[part] == other[part]} <= {"skipped.jsonl"}
    assert outcome(tmp_path / "a") == one


def looks(*values: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"step": 100 * n, "resident": rss, "descriptors": fds} for n, (rss, fds) in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("values", "flat"),
    [
        ([(50, 3), (100, 9), (101, 9), (100, 9)], True),
        ([(50, 3), (100, 9), (101, 9), (103, 9)], False),
        ([(50, 3), (100, 9), (101, 9), (100, 10)], False),
        ([(200, 3), (100, 9), (101, 9), (90, 8)], True),
    ],
)
def test_what_grows_after_it_settled_is_told(values: list[tuple[int, int]], flat: bool) -> None:
    args = SoakArgs(steps=400, settled=200, every=100)
    assert verdict(looks(*values), args)["flat"] == flat
    with pytest.raises(PixWordError, match="too few looks"):
        verdict(looks((1, 1), (1, 1)), args)


def test_a_look_sees_this_process() -> None:
    before = look()
    with (ROOT / "README.md").open():
        after = look()
    assert after["descriptors"] == before["descriptors"] + 1
    assert before["resident"] > 10**7


def test_a_short_soak_runs(tmp_path: Path) -> None:
    flags = ["--steps", 120, "--settled", 60, "--every", 20, "--most-growth", 9.0, "--save", tmp_path]
    result = benchmark("soak", *flags)
    assert "from step 60 on: memory" in result.stdout, result.stderr
    assert len(json.loads(result.stdout.splitlines()[-1])["looks"]) >= 5


def test_a_ring_sends_all_parts_but_one_twice() -> None:
    assert [ring_bytes(12, ranks) for ranks in (1, 2, 3, 4)] == [0, 48, 64, 72]


def test_on_a_gpu_runs_are_compared_within_a_tolerance():
    from safetensors.numpy import save
    from shared.tiny_runs import alike

    weights = np.array([1.0, -2.0, 0.5], np.float32)
    whole, near, far, other = (save({"w": w}) for w in (weights, weights + 1e-3, weights + 1e-2, weights[:2]))
    assert alike(whole, near, True) and not alike(whole, near, False) and alike(whole, whole, False)
    assert (
        not alike(whole, far, True) and not alike(whole, other, True) and not alike(b"no tensors", b"no tensorz", True)
    )
    metrics = [{"step": 3, "loss": 1.0, "name": "a"}]
    assert alike(metrics, [{"step": 3, "loss": 1.0005, "name": "a"}], True)
    for wrong in ({"step": 4, "loss": 1.0, "name": "a"}, {"step": 3, "loss": 1.01, "name": "a"}, {"step": 3}):
        assert not alike(metrics, [wrong], True)
