"""The speed benchmarks: what they compare is laid out right, and they say what is wrong in one line.

PyTorch is not among the packages for development: what it computes is checked where it is installed, and where it is
not, the commands must say so.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import generation
import numpy as np
import pytest
import train_step
from peer.padding import square_batch
from peer.train_sides import draw_keys, mlx_batches, split
from shared import rounds
from shared.workload import (
    CASES,
    Job,
    check_job,
    initial_weights,
    make_job,
    overridden,
    read_job,
    square_document,
    with_objective,
    write_job,
)
from square_jobs import ARGS, document

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.config.train import TrainArgs
from mlx_pixword.data.loader import Encoder
from mlx_pixword.data.plates import PlateSource
from mlx_pixword.data.skips import SkipLog
from mlx_pixword.inputs.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[1]
HAS_TORCH = find_spec("torch") is not None
SMALL = [
    word
    for name in ("hidden_size=16", "num_heads=2", "num_kv_heads=1", "num_layers=1", "image_layers=2",
                 "intermediate_size=32", "window_size=8", "image_size=16", "window_chunk=2")
    for word in ("--set", name)
]  # fmt: skip


def command(name: str, *arguments: object, torch: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a benchmark, if need be as if PyTorch were not there."""
    path = str(ROOT / "benchmarks" / f"{name}.py")
    hide = f"import sys, runpy; sys.modules['torch'] = None; sys.argv[0] = {path!r}; "
    start = [path] if torch else ["-c", hide + f"runpy.run_path({path!r}, run_name='__main__')"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}
    line = [sys.executable, *start, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=env)


# ---------------------------------------------------------------------------------------------------- rounds


def test_sides_take_turns() -> None:
    calls: list[str] = []

    def side(name: str) -> Callable[[], int]:
        return lambda: calls.append(name) or len(calls)

    assert rounds.in_turn({"a": side("a"), "b": side("b")}, 3) == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert "".join(calls) == "ababab"


def test_ratios_and_medians_are_of_rounds() -> None:
    assert rounds.ratios([2.0, 9.0], [1.0, 3.0]) == [2, 3]
    assert rounds.summary([1.23456, 9.0, 2000.4]) == {"median": 9.0, "rounds": [1.23, 9.0, 2000.0]}
    with pytest.raises(ValueError):
        rounds.ratios([1.0], [])


def test_memory_is_counted_in_bytes() -> None:
    held = rounds.memory()
    assert 10e6 < held["now"] <= held["peak"] < 1e12


def worker(tmp_path: Path, body: str) -> rounds.Worker:
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nfrom shared.rounds import serve\nassert sys.argv[1] == 'worker'\n{body}\n")
    return rounds.Worker(script, "x", env={"PYTHONPATH": str(ROOT / "benchmarks"), "MARK": "here"})


def test_a_worker_answers_what_it_is_asked(tmp_path: Path) -> None:
    with worker(tmp_path, "import os\nserve(lambda r: {'sum': sum(r['n']), 'mark': os.environ['MARK']})") as asked:
        assert asked.ask(n=[1, 2]) == {"sum": 3, "mark": "here"}
        assert asked.ask(n=[]) == {"sum": 0, "mark": "here"}


@pytest.mark.parametrize(("body", "words"), [("sys.exit('error: no room')", "no room"), ("sys.exit(3)", "status 3")])
def test_the_last_words_of_a_worker_are_told(tmp_path: Path, body: str, words: str) -> None:
    with worker(tmp_path, body) as asked, pytest.raises(PixWordError, match=words):
        asked.ask()


# -------------------------------------------------------------------------------------------------- workload


def test_parts_are_as_even_as_they_can_be() -> None:
    assert split(range(5), 2) == [[0, 1], [2, 3, 4]]
    assert split(range(2), 3) == [[0], [1]]


def test_a_job_survives_its_files(tmp_path: Path, rng: np.random.Generator) -> None:
    job = Job(ARGS, TrainArgs(word_weight=7.0, accumulate=2), [[document(rng, 5, 9)], [document(rng, 8, 8, (7,))]])
    weights = initial_weights(ARGS)
    read, same, settings = read_job(write_job(job, tmp_path / "job", weights, threads=3))
    assert (read.model, read.train, settings["threads"]) == (job.model, job.train, 3)
    assert all((weights[name] == same[name]).all() for name in weights) and len(same) == len(weights)
    for (a,), (b,) in zip(job.steps, read.steps, strict=True):
        assert (a.elements == b.elements).all() and b.closed
        assert (a.images[0].windows == b.images[0].windows).all()
        assert (a.images[0].lengths == b.images[0].lengths).all()


@pytest.mark.parametrize("case", CASES)
def test_cases_have_the_batches_of_pretrain(case: str, tmp_path: Path) -> None:
    photos = train_step.make_photos(tmp_path / "photos", 4) if case == "wide-photos" else None
    job = make_job(case, photos)
    assert len(job.steps) == 4 and job.train.optimizer == "adamw" and job.model.dtype == "float32"
    windows = [len(d.images[0].lengths) for d in job.steps[0]]
    expected = {"tiny-plates": (30, 21), "tiny-noise": (14, 64), "wide-photos": (4, 42)}[case]
    assert (min(len(job.steps[0]), 30), max(windows)) == expected
    assert {len(step) for step in make_job(case, photos, images=3).steps} == {3}


def test_the_check_is_on_squares_of_whole_windows() -> None:
    job = check_job(make_job("tiny-plates"))
    assert {(d.images[0].height, d.images[0].width) for d in job.steps[0]} == {(8, 8)}
    assert len({len(d) for d in job.steps[0]}) == 3  # texts differ
    assert with_objective(job, "dense").train.pixel_queries == 3
    assert with_objective(job, "boundary").train.pixel_queries == 0


def test_settings_of_a_preset_can_be_changed() -> None:
    config = overridden("tiny", ["hidden_size=32", "learning_rate=1e-3"], dtype="float32")
    assert (config.model.hidden_size, config.train.learning_rate, config.model.dtype) == (32, 1e-3, "float32")
    for wrong, words in (("width=3", "unknown key 'width'"), ("hidden_size", "NAME=VALUE"), ("steps=x", "an integer")):
        with pytest.raises(PixWordError, match=words):
            overridden("tiny", [wrong])


# ------------------------------------------------------------------------------------------------ train_step


def test_programs_that_disagree_are_not_measured() -> None:
    near = {"ours": {"loss": 2.0, "norm": 3.0}, "peer": {"loss": 2.0001, "norm": 3.002}}
    assert train_step.compare("dense", near) == {"loss": pytest.approx(5e-5), "norm": pytest.approx(2 / 3000)}
    for far in ({"loss": 2.001, "norm": 3.0}, {"loss": 2.0, "norm": 3.01}, {"loss": float("nan"), "norm": 3.0}):
        with pytest.raises(PixWordError, match="disagree on the dense"):
            train_step.compare("dense", near | {"peer": far})


def test_speeds_are_medians_of_rounds_and_ratios_those_of_pairs() -> None:
    def given(images: int, seconds: list[float]) -> list[dict[str, float]]:
        common = {"images": images, "pixels": images * 10, "before": 1e6, "peak": 3e6}
        return [{"seconds": value, **common} for value in seconds]

    result = train_step.summarise({"ours": given(8, [1.0, 2.0, 4.0]), "peer": given(8, [2.0, 8.0, 8.0])})
    assert result["sides"]["ours"]["images_per_second"] == {"median": 4.0, "rounds": [8.0, 4.0, 2.0]}
    assert result["sides"]["ours"]["pixels_per_second"]["median"] == 40
    assert (result["sides"]["peer"]["peak_mb"], result["sides"]["peer"]["peak_over_start_mb"]) == (3, 2)
    assert result["ratio_to_peer"] == {"ours": {"median": 2.0, "rounds": [2.0, 4.0, 2.0]}}


def test_both_sides_draw_the_same_pixels_however_a_step_is_cut() -> None:
    tokenizer = train_tokenizer(["0 1 2 3 4 5 6 7 8 9"], 300)
    args = replace(ARGS, vocab_size=tokenizer.vocab_size)
    encoder = Encoder(args, tokenizer, SkipLog())
    documents = [encoder(PlateSource().parts(n))[0] for n in range(5)]
    job = Job(args, TrainArgs(pixel_queries=2, accumulate=2), [documents])
    drawn = [np.array(batch.query_targets) for batch in mlx_batches(job)[0]]
    squares = square_batch(documents, args, 2, draw_keys(job, 0))
    found = squares.targets[:, -squares.picks.shape[1] :]  # type: ignore[union-attr]
    assert (found == np.concatenate(drawn)).all()


SMALLEST = ["--case", "tiny-noise", "--objective", "dense", "--images", 2, "--rounds", 2, "--seconds", 0.01]


def test_training_is_measured_where_pytorch_is(tmp_path: Path) -> None:
    result = command("train_step", *SMALLEST, "--plain", "--save", tmp_path / "results")
    if not HAS_TORCH:
        return must_ask_for_torch(result)
    assert result.returncode == 0, result.stderr
    *table, line = result.stdout.splitlines()
    measured = json.loads(line)
    case = measured["cases"]["tiny-noise dense"]
    assert [row.split()[2] for row in table] == ["side", "ours", "peer", "ours-plain"]
    assert set(case["sides"]) == {"ours", "peer", "ours-plain"} and set(case["ratio_to_peer"]) == {"ours", "ours-plain"}
    assert case["agreement"]["loss"] < 1e-5 and len(case["sides"]["ours"]["images_per_second"]["rounds"]) == 2
    assert "torch" in measured["versions"]
    (kept,) = (tmp_path / "results").iterdir()
    assert json.loads(kept.read_text()) == measured
    assert str(tmp_path) not in kept.read_text()
    return None


def test_drawing_is_measured_where_pytorch_is() -> None:
    result = command("generation", "--size", 16, "--count", 3, "--sample", 4, "--rounds", 1, *SMALL)
    if not HAS_TORCH:
        return must_ask_for_torch(result)
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout.splitlines()[-1])
    assert "3 16x16 images at once" in result.stdout and "a sample of 4 pixels" in result.stdout
    assert measured["agreement"] < 1e-4
    assert set(measured["pixels_per_second"]) == {"ours", "mlx", "torch"}
    assert set(measured["times_our_time"]) == {"mlx", "torch"}
    assert (
        0 < measured["operations"]["ours"] < measured["operations"]["mlx"] and measured["operations"]["torch"] is None
    )
    return None


def must_ask_for_torch(result: subprocess.CompletedProcess[str]) -> None:
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2
    assert "pip install" in line and "mlx-pixword[bench]" in line


@pytest.mark.parametrize("name", ["train_step", "generation"])
def test_without_pytorch_the_commands_say_what_to_install(name: str) -> None:
    must_ask_for_torch(command(name, torch=False))


@pytest.mark.parametrize(
    ("name", "side", "first"),
    [("train_step", "peer", True), ("train_step", "ours", False), ("generation", "torch", True)],
)
def test_pytorch_comes_before_openblas_in_its_workers(tmp_path: Path, name: str, side: str, first: bool) -> None:
    """Behind it, PyTorch's calls of BLAS would go to the library that MLX needs."""
    (tmp_path / "torch.py").write_text("import sys; print('mlx_pixword' in sys.modules, file=sys.stderr)")
    line = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "worker", side, "nowhere"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(line, capture_output=True, text=True, check=False, env=env, input="")
    assert (result.stderr.splitlines()[:1] == ["False"]) is first


# ----------------------------------------------------------------------------------------- generation, memory


@pytest.mark.parametrize(("pixels", "count"), [(4096, 64), (100, 7), (5, 9)])
def test_sampled_places_lie_in_equal_stretches(pixels: int, count: int) -> None:
    places = generation.sample_places(pixels, count)
    assert len(places) == min(count, pixels)
    for n, place in enumerate(places):
        assert pixels * n // len(places) <= place < pixels * (n + 1) // len(places)
    assert pixels < 100 or len({place % 16 for place in places}) > 4  # all parts of a window


def test_logits_that_disagree_are_not_measured() -> None:
    logits = {"ours": [[1.0, -2.0]], "mlx": [[1.001, -2.0]], "torch": [[1.0, -2.0]]}
    assert generation.compare(logits) == pytest.approx(5e-4)
    with pytest.raises(PixWordError, match="disagree on the logits"):
        generation.compare(logits | {"torch": [[1.01, -2.0]]})
    with pytest.raises(PixWordError, match="disagree on the logits"):
        generation.compare(logits | {"torch": [[float("nan"), -2.0]]})


def test_a_baseline_is_told_in_times_our_time() -> None:
    result = generation.summarise({"ours": [0.5, 0.1], "mlx": [1.0, 0.4]})
    assert result["pixels_per_second"]["ours"] == {"median": 6.0, "rounds": [2.0, 10.0]}
    assert result["times_our_time"] == {"mlx": {"median": 3.0, "rounds": [2.0, 4.0]}}


def test_memory_is_measured_by_image_size(tmp_path: Path) -> None:
    result = command("memory", *SMALL, "--sizes", "16,32", "--save", tmp_path / "results", torch=False)
    assert result.returncode == 0, result.stderr
    *table, line = result.stdout.splitlines()
    measured = json.loads(line)
    assert [row.split()[:2] for row in table[1:]] == [
        ["step", "16"], ["block", "16"], ["block", "32"], ["model", "16"], ["model", "32"]
    ]  # fmt: skip
    assert [row["windows"] for row in measured["parts"]["block"]] == [4, 16]
    assert all(row["peak_mb"] >= row["added_mb"] > 0 for rows in measured["parts"].values() for row in rows)
    assert [row["mlx_mb"] for row in measured["parts"]["model"]] == sorted(
        r["mlx_mb"] for r in measured["parts"]["model"]
    )
    (kept,) = (tmp_path / "results").iterdir()
    assert json.loads(kept.read_text()) == measured


def test_memory_of_evaluation_is_measured_beside_a_step() -> None:
    settings = [*SMALL, "--preset", "tiny", "--part", "evaluate", "--documents", 3]
    result = command("memory", *settings, torch=False)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout.splitlines()[-1])["parts"]["evaluate"]
    assert [row["stage"] for row in rows] == ["step", "step and evaluate", "evaluate"]
    assert all(row["mlx_mb"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("memory", ["--part", "evaluate"], "--preset upw-120m has none"),
        ("train_step", ["--rounds", 0], "--rounds must be at least 1, got 0"),
        ("train_step", ["--peer-micro", 0], "--peer-micro must be at least 1"),
        ("train_step", ["--seconds", 0], "--seconds must be positive"),
        ("train_step", ["--case", "other"], "--case"),
        ("generation", ["--sample", 0], "--sample must be at least 1"),
        ("generation", ["--count", 0], "--count must be at least 1"),
        ("generation", ["--size", 30], "multiple of the window size"),
        ("memory", ["--sizes", "224,x"], "--sizes must be positive integers"),
        ("memory", ["--sizes", "100"], "multiple of the window size"),
        ("memory", ["--set", "hidden_size"], "--set must be NAME=VALUE, got 'hidden_size'"),
        ("memory", ["--sizes", "2240"], "raise max_seq_len"),
    ],
)
def test_mistakes_are_one_line(name: str, arguments: list[object], words: str) -> None:
    result = command(name, *arguments, torch=False)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert words in line


def test_square_documents_may_have_few_colours(rng: np.random.Generator) -> None:
    plain = square_document(rng, ARGS, 8, (7,), levels=1)
    assert set(plain.images[0].windows.ravel().tolist()) == {0} and plain.elements[-1] == 7
