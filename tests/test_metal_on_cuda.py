"""The kernels' texts as CUDA: rendered whole, and right C++ with a stand-in for CUDA's headers. Nothing runs here."""

import json
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gpu
import mlx.core as mx
import numpy as np
import pytest
from metal_emulator.compiler import toolchain
from metal_on_cuda import RenderError, cuda_kernel, render_body, render_header, standing_in, units_of
from metal_on_cuda import compare as comparing
from metal_on_cuda.sizes import launches

from mlx_pixword.ops import span_build
from mlx_pixword.ops.dispatch import load
from mlx_pixword.ops.dispatch.kernel import KernelError
from mlx_pixword.ops.fold import fold_windows
from mlx_pixword.ops.survey import KERNELS

ROOT = Path(__file__).parents[1]
STUB = Path(__file__).parent / "metal_on_cuda" / "stub"
SOURCES = sorted(path.name for path in load.metal_folder().glob("*.metal"))


@pytest.fixture(scope="module")
def units() -> list[Any]:
    return units_of(launches(False))


def test_every_source_is_rendered_and_is_right_cpp(units: list[Any], tmp_path: Path) -> None:
    """All builds of the small sizes, in one file for each name."""
    names = {unit.name for unit in units}
    assert {name for name in names if "attention" not in name} >= {
        f"pixword_{k}" for k in ("fold_colors", "decode_step")
    }
    assert {"pixword_attention_own", "pixword_attention_key_grad_rope_places"} <= names
    flags = ["-x", "c++", "-std=c++17", "-fsyntax-only", "-nostdinc", f"-I{STUB}", "-Wno-everything"]
    for name in sorted(names):
        path = tmp_path / f"{name}.cu"
        path.write_text(next(unit.text for unit in units if unit.name == name))
        result = subprocess.run([*toolchain().driver, *flags, str(path)], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[:3000]


@pytest.mark.parametrize("name", SOURCES)
def test_a_rendered_text_has_the_lines_of_its_source(name: str) -> None:
    source = load.read_source(name)
    found = render_body(source).split("\n")[-len(source.split("\n")) :]
    wanted = [line.partition("//")[0].rstrip() for line in source.split("\n")]
    for line, original in zip(found, wanted, strict=True):
        plain = re.sub(r"\b(threadgroup|device|constant|thread) |__shared__ __align__\(16\) |metal::|\(\);$", "", line)
        same = original.replace("metal::", "").replace("float2", "pair").replace("uint2", "uint_pair")
        same = re.sub(r"\b(threadgroup|device|constant|thread) ", "", same.replace("uint3", "uint_triple"))
        assert plain.replace(".xy", ".xy").rstrip(";") == same.rstrip(";")
    assert ("__shared__" in "".join(found)) == ("threadgroup " in source.replace("threadgroup_", ""))


@pytest.mark.parametrize(
    "body", ["y[0] = simd_product(x[0]);", "float4 a;", "device atomic<int>* p;", "uint i = thread_execution_width;"]
)
def test_what_is_not_known_is_refused(body: str) -> None:
    with pytest.raises(RenderError, match="no rendering of"):
        render_body(body)


def test_functions_that_differ_in_address_spaces_are_rendered_once() -> None:
    header = render_header(load.read_source("header.h"))
    assert header.count("void store_pair(") == 1 and load.read_source("header.h").count("void store_pair(") == 2


def test_lanes_of_the_shim_are_those_of_the_header() -> None:
    """A lane holds elements (row, column) and (row, column + 1) of a fragment, in both texts."""
    lanes = np.arange(32)
    row, column = ((lanes // 4) & 4) + (lanes // 2) % 4, ((lanes // 4) & 2) * 2 + (lanes % 2) * 2
    assert "int(((lane / 4) & 4) + (lane / 2) % 4)" in load.read_source("header.h")
    shim = (STUB.parent / "shim.h").read_text()
    assert "((lane / 4) & 4) + (lane / 2) % 4, column = ((lane / 4) & 2) * 2 + (lane % 2) * 2" in shim
    assert "((row & 4) << 2) | ((column & 4) << 1) | ((row & 3) << 1) | ((column >> 1) & 1)" in shim
    of = ((row & 4) << 2) | ((column & 4) << 1) | ((row & 3) << 1) | ((column >> 1) & 1)
    assert np.array_equal(of, lanes)


def test_a_launch_is_handed_to_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the text, the template and the grid, which the text asks for."""
    built: dict[str, Any] = {}

    def kernel(**how: Any) -> Any:
        built.update(how)
        return lambda **launch: built.update(launch) or [mx.zeros((4, 4), mx.int32)]

    monkeypatch.setattr(mx.fast, "cuda_kernel", kernel)
    fold = next(kernel for kernel in KERNELS if kernel.name == "fold_colors")
    with standing_in(cuda_kernel):
        fold.metal(mx.zeros((4, 4, 3), mx.uint8), 16, 2)
    assert built["name"] == "pixword_fold_colors" and "blockIdx" in built["source"] and "__shfl" in built["header"]
    assert built["template"] == [("GRID_X", 4), ("GRID_Y", 2), ("GRID_Z", 2)] and built["grid"] == (4, 2, 2)
    assert fold_windows(mx.zeros((4, 4, 3), mx.uint8), 16, 2).shape == (4, 4)  # and MLX's own is back


def test_comparisons_go_on_past_refusals_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []

    def refused_when_wide() -> float:
        widths.append(span_build.MOST_SIMDGROUPS)
        if widths[-1] > 8:
            raise RuntimeError("too many resources requested for launch")
        return 0.5

    def wrong() -> float:
        raise KernelError("differs by 7 times the tolerance")

    monkeypatch.setattr(comparing, "standing_in", lambda kernel: pytest.MonkeyPatch.context())
    works = [("a", refused_when_wide), ("b", wrong), ("c", lambda: 0.1)]
    a, b, c = comparing.run(iter(works), 60.0)
    assert widths == [16, 8] and a["share"] == 0.5 and a["most_simdgroups"] == 8 and span_build.MOST_SIMDGROUPS == 16
    assert "7 times" in b["error"] and "share" not in b and c["share"] == 0.1
    (late,) = comparing.run(iter(works[2:]), -1.0)
    assert "no time left" in late["skipped"]
    assert len(list(comparing.comparisons())) > 15
    assert comparing.main([]) == 2  # there is no NVIDIA GPU here


def test_without_a_gpu_the_script_says_what_it_skipped(tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--save", str(tmp_path)]
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    (kept,) = tmp_path.glob("gpu-*.json")
    assert json.loads(kept.read_text()) == report
    assert set(report["parts"]) == {"kernels", "training", "training peer", "training peer compiled", "drawing", "tiny"}
    assert all("no NVIDIA GPU" in part["skipped"] for part in report["parts"].values())
    assert {"python", "mlx"} <= report["versions"].keys()
    assert ("torch" in report["versions"]) == (find_spec("torch") is not None)


def test_a_part_that_takes_too_long_leaves_no_process(tmp_path: Path) -> None:
    """Its own children end too: a training that goes on would keep the GPU."""
    child = "import os, time; open('started', 'w').write(str(os.getpid())); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    began = time.perf_counter()
    assert gpu.in_time([sys.executable, "-c", parent], 15.0, tmp_path) is None
    assert time.perf_counter() - began < 50
    process = Path("/proc") / (tmp_path / "started").read_text()
    for _ in range(100):
        if not process.exists() or " Z " in (process / "stat").read_text():
            return
        time.sleep(0.1)
    raise AssertionError("the child is still there")


def test_a_part_in_time_gives_what_it_printed(tmp_path: Path) -> None:
    found = gpu.in_time([sys.executable, "-c", "import os; print(os.getcwd())"], 60.0, tmp_path)
    assert found and (found.returncode, found.stdout) == (0, f"{tmp_path}\n")
