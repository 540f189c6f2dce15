"""The kernels there are, and what `doctor` says of them; on a stand-in for a Mac, as there is no Metal here."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_pixword import doctor
from mlx_pixword.ops import survey
from mlx_pixword.ops.dispatch import choose, trial
from mlx_pixword.ops.dispatch.kernel import Kernel
from mlx_pixword.ops.dispatch.load import metal_folder


def twice(x):
    return x * 2


def raising(x):
    raise RuntimeError("no such function")


GOOD = Kernel(
    "twice", twice, lambda x: x + x, lambda x: (mx.ones(x.shape),), False,
    standard=lambda: {"four": (mx.ones(4),), "eight": (mx.ones(8),)},
)  # fmt: skip
BAD = replace(GOOD, name="thrice", metal=lambda x: x * 3)


@pytest.fixture
def _mac(monkeypatch):
    monkeypatch.setattr(choose, "_metal_available", lambda: True)
    monkeypatch.setattr(choose, "_decisions", {})
    monkeypatch.setattr(trial, "race", lambda runs: [1.0, 2.0])
    monkeypatch.setattr(survey, "KERNELS", (GOOD, BAD))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(doctor, "SIZE", 8)
    monkeypatch.setattr(doctor, "_seconds", lambda operation: 1.0)
    monkeypatch.delenv("PIXWORD_KERNELS", raising=False)


# --- the kernels ------------------------------------------------------------------------------------------------------


def test_every_source_belongs_to_a_kernel_and_every_kernel_has_one():
    assert len({kernel.name for kernel in survey.KERNELS}) == len(survey.KERNELS)
    sources = {path.stem for path in metal_folder().glob("*.metal")}
    assert {source for kernel in survey.KERNELS for source in kernel.sources or (kernel.name,)} == sources


@pytest.mark.parametrize("kernel", survey.KERNELS, ids=lambda kernel: kernel.name)
def test_standard_arguments_suit_the_reference(kernel):
    small, standard = kernel.small(), kernel.standard()
    assert len(small) >= 1 and len(standard) >= 2
    for args in small.values():
        found = trial.results(kernel.reference, args, trial.make_probe(kernel, args))
        assert all(np.isfinite(np.array(out.astype(mx.float32))).all() for out in found)


@pytest.mark.parametrize("kernel", survey.KERNELS, ids=lambda kernel: kernel.name)
def test_examples_are_of_the_class_of_their_arguments(kernel):
    for args in kernel.small().values():
        example = kernel.example(*args)
        assert kernel.key(example) == kernel.key(args)
        arrays = [(a, b) for a, b in zip(example, args, strict=True) if isinstance(b, mx.array)]
        assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in arrays) and arrays


@pytest.mark.parametrize("kernel", survey.KERNELS, ids=lambda kernel: kernel.name)
def test_examples_and_classes_read_no_array(kernel):
    for args in kernel.small().values():
        places = [i for i, arg in enumerate(args) if isinstance(arg, mx.array)]

        def traced(*arrays, args=args, places=places):
            merged = list(args)
            for place, array in zip(places, arrays, strict=True):
                merged[place] = array
            assert kernel.key(tuple(merged)) == kernel.key(args)
            mx.eval([arg for arg in kernel.example(*merged) if isinstance(arg, mx.array)])  # tracers cannot be
            return arrays[0]

        mx.compile(traced)(*[args[place] for place in places])


# --- doctor -----------------------------------------------------------------------------------------------------------


def lines(capsys):
    doctor.main([])
    return capsys.readouterr().out.splitlines()


def test_without_metal_a_line_a_kernel_says_that_the_reference_runs(capsys):
    found = [line.split(maxsplit=2) for line in lines(capsys) if line.startswith("kernel ")]
    assert [name for _, name, _ in found] == [kernel.name for kernel in survey.KERNELS]
    assert all(text.startswith("not available: no Metal GPU in use; the reference runs") for *_, text in found)


@pytest.mark.usefixtures("_mac")
def test_on_a_mac_a_line_a_kernel_says_what_was_found(capsys):
    printed = lines(capsys)
    twice, thrice = [line.split(maxsplit=2)[2] for line in printed if line.startswith("kernel ")]
    assert twice == "available, verified, 2 to 2 times as fast as its reference, used on 2 of 2 sizes"
    assert thrice.startswith("available, NOT verified on 2 of 2, first four: KernelError: thrice differs from its")
    assert printed[-1] == "- a Metal kernel failed; please report it with what this prints: --report"
    assert choose.decisions() == []  # and no warning, which would be an error here


@pytest.mark.usefixtures("_mac")
def test_slower_kernels_are_verified_and_not_used(capsys, monkeypatch):
    monkeypatch.setattr(trial, "race", lambda runs: [1.0, 0.25])
    monkeypatch.setattr(survey, "KERNELS", (GOOD,))
    (line,) = [line for line in lines(capsys) if line.startswith("kernel ")]
    assert "verified, 0.25 to 0.25 times as fast as its reference, used on 0 of 2 sizes" in line


@pytest.mark.usefixtures("_mac")
def test_kernels_that_are_off(capsys, monkeypatch):
    monkeypatch.setenv("PIXWORD_KERNELS", "off")
    monkeypatch.setattr(survey, "KERNELS", (replace(GOOD, metal=raising),))
    (line,) = [line for line in lines(capsys) if line.startswith("kernel ")]
    assert line.split(maxsplit=2)[2].startswith("off: PIXWORD_KERNELS=off; the reference runs")


@pytest.mark.usefixtures("_mac")
def test_the_report_is_json_without_paths(capsys):
    doctor.main(["--report"])
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"report", "machine", "device", "kernels"}
    assert "mlx" in report["machine"] and not {"BLAS", "C++ compiler"} & set(report["machine"])
    assert "/" not in json.dumps(report["machine"]).replace("GFLOP/s", "")
    good, bad = report["kernels"]
    assert (good["kernel"], good["available"], list(good["trials"])) == ("twice", True, ["four", "eight"])
    four = good["trials"]["four"]
    assert four["verified"] and four["used"] and four["speed_up"] == 2.0 and four["shapes"] == "float32[4]"
    assert not bad["trials"]["four"]["verified"] and "times the tolerance" in bad["trials"]["four"]["error"]
