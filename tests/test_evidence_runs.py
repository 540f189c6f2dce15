"""The arms and runs of the evidence: what they see, what they cost, how they stop and go on, and all of it in small."""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from evidence import crops as evidence_crops
from evidence.analysis import Evidence
from evidence.arms import ARMS, arm_of, model_args
from evidence.batches import Order, batch_of, document_of
from evidence.characters import CharacterTokenizer
from evidence.colors import channels
from evidence.commands import main
from evidence.files import read_json, write_json
from evidence.flops import front_flops, graph_flops, step_flops
from evidence.fronts import PatchFront
from evidence.learning import Learner, objective
from evidence.manifest import Known, core_seconds, factors_tried, manifest, points_of, rate_of, unnamed
from evidence.plan import PLANS, Plan, keep_plan
from evidence.real import kept_readings, kept_real_sets, open_closed, opened, prepare_real, take_engines
from evidence.records import known
from evidence.run import Paused, Training
from evidence.runner import Stop, owned, work
from evidence.timing import measure, parameter_counts

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.data.fonts import bundled_faces
from mlx_pixword.data.text_file import write_text_file
from mlx_pixword.inference.words import generate_batch
from mlx_pixword.inputs.processor import Processor

TINY = replace(
    PLANS["quick"], seeds=1, factors=(1.0,), batch=4, train_crops=64, dev_crops=6, main_cell=1, other_cell=0,
    labels=(8, 16), pretrain_crops=8, tune_crops=8, widths=(16, 24, 32, 48), scaling_crops=16, replicates=20,
)  # fmt: skip
SHAPE = TINY.shape


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A folder of results with plan, test set and timing, and a scratch folder with crops in the bundled faces."""
    folder = tmp_path_factory.mktemp("evidence")
    results, scratch = folder / "results", folder / "scratch"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence_crops, "evidence_faces", lambda: list(bundled_faces()))
        keep_plan(TINY, results)
        evidence_crops.prepare_crops(TINY, results, scratch)
    real_folder(folder / "real")
    prepare_real(folder / "real", TINY, results, scratch)
    measure(TINY, results, scratch, rounds=1, steps=1, variants=["1b", "4", "2", "7", "8"])
    timing = read_json(results / "timing.json")
    for arm in ARMS:  # the others are not run here
        timing["arms"].setdefault(arm, timing["arms"]["4"])
    write_json(results / "timing.json", timing)
    yield results, scratch


def real_folder(folder: Path) -> None:
    """Two real sets, as `real_text.py` prepares them: three crops are read, three are not for one reason each."""
    folder.mkdir()
    rng, texts = np.random.default_rng(0), ["12", "3.4", "123456789", "7€", "5", "A0"]
    for name in ("sroie-6", "plates-47x12"):
        for part in ("development", "closed"):
            widths = (9, 9, 9, 9, 9, 65)
            rows = [(crop(rng, 6, width), text, {"document": n // 2})
                    for n, (width, text) in enumerate(zip(widths, texts, strict=True))]  # fmt: skip
            write_text_file(folder / f"{name}-{part}.pwtext", rows, {})


def crop(rng: np.random.Generator, height: int = 9, width: int = 22) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), np.uint8)


# --- arms -------------------------------------------------------------------------------------------------------------


def test_patches_hold_the_raw_pixels(rng: np.random.Generator) -> None:
    """The last patch of a ragged crop, by hand: its edge repeated, and which rows and columns are valid."""
    arm, pixels = arm_of("4"), crop(rng, 6, 7)
    args = model_args(arm, SHAPE)
    batch = batch_of(arm, args, [document_of(arm, args, pixels, "12")])
    front = PatchFront(arm, args)
    places = {tuple(w): n for n, w in enumerate(np.array(front.pixels(batch)).round(4).tolist())}
    padded = np.pad(pixels, ((0, 2), (0, 1), (0, 0)), "edge")[4:8, 4:8]
    inputs = np.concatenate([(padded / 127.5 - 1).ravel(), [1, 1, 0, 0], [1, 1, 1, 0]])
    assert tuple(np.float32(inputs).round(4).tolist()) in places
    assert len(places) == 4


def test_folded_patches_have_the_centres_of_bins() -> None:
    colors = mx.array([[255 + 256 * 16 + 65536 * 5]])
    found = (np.array(channels(colors, 16))[0, 0] + 1) * 127.5
    assert found.tolist() == pytest.approx([247, 23, 7])


@pytest.mark.parametrize("name", ["7", "4"])
def test_a_window_has_the_state_of_its_place(rng: np.random.Generator, name: str) -> None:
    """An image in a batch of several gives the logits that it gives alone."""
    learner = Learner.new(arm_of(name), SHAPE, 0)
    learner.model.head.weight = mx.random.normal(learner.model.head.weight.shape)
    documents = [document_of(learner.arm, learner.args, crop(rng, h, w), "12") for h, w in ((9, 22), (5, 4), (12, 13))]
    together = np.array(learner.model(batch_of(learner.arm, learner.args, documents)))
    for line, document in zip(together, documents, strict=True):
        alone = np.array(learner.model(batch_of(learner.arm, learner.args, [document])))[0]
        np.testing.assert_allclose(line[: len(alone)], alone, atol=2e-4)


@pytest.mark.parametrize("name", ["2", "3", "4", "6", "7", "8"])
def test_operations_are_the_shapes_and_the_graph(rng: np.random.Generator, name: str) -> None:
    arm = arm_of(name)
    args = model_args(arm, SHAPE)
    learner = Learner.new(arm, SHAPE, 0)
    batch = batch_of(arm, args, [document_of(arm, args, crop(rng), "12")])
    front, places = learner.model.image_block, 0
    if arm.front == "conv":
        height, width = batch.images.shape[1:]  # type: ignore[attr-defined]
        places = height * width // 16

    def states(_: mx.array) -> mx.array:
        return front(batch)

    assert graph_flops(states, mx.array(0.0)) == front_flops(arm, len(batch.windows), SHAPE.hidden_size, places)
    assert step_flops(learner, batch) > 2 * front_flops(arm, len(batch.windows), SHAPE.hidden_size, places)


def test_a_product_counts_two_operations_a_multiplication() -> None:
    x, y = mx.zeros((3, 5)), mx.zeros((5, 7))
    assert graph_flops(lambda a: (a @ y) @ y.T, x) == 2 * 3 * 5 * 7 * 2


def test_parameters_are_equal_within_five_percent() -> None:
    """Colour tables apart, and arm 8 apart, which is matched in operations."""
    counts = {
        name: parameter_counts(Learner.new(arm_of(name), PLANS["full"].shape, 0))["parameters_without_tables"]
        for name in ARMS
        if name != "8"
    }
    middle = (min(counts.values()) + max(counts.values())) / 2
    assert max(abs(count / middle - 1) for count in counts.values()) < 0.05 / 2 + 0.01
    assert max(counts.values()) / min(counts.values()) < 1.05


@pytest.mark.parametrize("name", ["1b", "4", "7"])
def test_a_reading_is_that_of_greedy_decoding_up_to_its_first_mistake(rng: np.random.Generator, name: str) -> None:
    learner = Learner.new(arm_of(name), SHAPE, 0)
    arm, args, head = learner.arm, learner.args, learner.model.head
    head.weight = mx.random.normal(head.weight.shape)
    images = [crop(rng, 6 + n % 5, 9 + n) for n in range(12)]
    batch = batch_of(arm, args, [document_of(arm, args, pixels, None) for pixels in images])
    greedy = generate_batch(learner.model, Processor(args, CharacterTokenizer()), batch, max_tokens=6)
    for change in range(-1, 4):  # texts that are read exactly, and with a mistake in every place
        texts = [text[:5] if change < 0 else f"{text[:change]}$$" for text in greedy]
        found = learner.read([document_of(arm, args, *pair) for pair in zip(images, texts, strict=True)], rows=5)
        for reading, text, whole in zip(found, texts, greedy, strict=True):
            wrong = next((n for n, pair in enumerate(zip(text, whole, strict=False)) if pair[0] != pair[1]), len(text))
            assert reading == whole[: wrong + 1]
            assert (reading == text) == (whole == text)


def test_characters() -> None:
    words = CharacterTokenizer()
    assert words.decode(words.encode("aZ-9.5$")) == "aZ-9.5$"
    assert words.decode([2, 4, *words.encode("8")]) == "8"


# --- data -------------------------------------------------------------------------------------------------------------


def test_the_order_is_a_function_of_seed_and_step_and_ends_with_the_first_half() -> None:
    sizes = np.arange(640)[::-1]
    order = Order(sizes, batch=8, curriculum=1024, seed=3, group=4)
    assert order.crops(5).tolist() == order.crops(5).tolist()
    assert order.crops(5).tolist() != replace(order, seed=4).crops(5).tolist()
    seen = [np.concatenate([order.crops(step) for step in range(start, start + 4)]) for start in (0, 64, 124, 128, 200)]
    assert all((some >= 320).all() for some in seen[:3]) and all((some < 320).all() for some in seen[3:])
    assert seen[0].max() < 340 and seen[0].mean() < seen[1].mean() < seen[2].mean() and seen[2].max() > 600
    assert np.ptp(sizes[order.crops(200)]) < np.ptp(sizes)  # steps are of one size
    assert replace(order, curriculum=0, labels=True).crops(0).max() > 320 > replace(order, curriculum=0).crops(0).max()


def test_a_training_file_has_all_variety_first_and_then_a_curriculum(prepared: tuple[Path, Path]) -> None:
    lengths = np.asarray(evidence_crops.open_crops(prepared[1], "train").columns["characters"])
    half = len(lengths) // 2
    assert lengths[half : half + half // 8].max() <= 3 < lengths[:half].max()


def test_pixels_are_predicted_in_some_steps_and_words_alone_in_the_others() -> None:
    arm = arm_of("1b")
    assert [arm.reads_alone(step) for step in range(9)] == [False, *[True] * 7, False]
    assert arm_of("4").reads_alone(0) and not arm_of("1").reads_alone(3)


# --- stopping and going on --------------------------------------------------------------------------------------------


def main_spec(results: Path, arm: str) -> Any:
    state = known(results)
    trials = {f"i-trial-{a}-r1": {"trial": 1.0} for a in ("1b", "4", "2", "7")}
    for spec in manifest(replace(state, nats=trials), ["i"]):
        if spec.kind == "main" and spec.arm == arm:
            return replace(spec, points={"images": 16, "time 1": 32})
    raise AssertionError(arm)


def test_a_stopped_run_goes_on_to_the_same_readings(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    """Stopped on the trunk, in a cooldown, and on the trunk again."""
    results, scratch = prepared
    spec = main_spec(results, "4")
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.pwtext").symlink_to(scratch / f"{name}.pwtext")
    first = Training(spec, TINY, tmp_path, never)
    whole = first.run()
    first.clear()
    for steps in (1, 3, 3):
        left = iter([False] * steps)
        training = Training(spec, TINY, tmp_path, lambda left=left: next(left, True))  # type: ignore[misc]
        with pytest.raises(Paused):
            training.run()
    training = Training(spec, TINY, tmp_path, never)
    found = training.run()
    training.clear()
    times = r'"(evaluation_)?seconds": [^,}]+'
    assert re.sub(times, "", json.dumps(found)) == re.sub(times, "", json.dumps(whole))
    assert set(found["points"]) == {"images", "time 1"}
    assert not list((tmp_path / "state").iterdir())


def test_a_run_has_one_owner(tmp_path: Path) -> None:
    with owned(tmp_path, "a") as first, owned(tmp_path, "a") as second, owned(tmp_path, "b") as other:
        assert (first, second, other) == (True, False, True)
    with owned(tmp_path, "a") as again:
        assert again


def test_a_loss_that_is_not_finite_ends_in_a_record(
    prepared: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, scratch = prepared
    monkeypatch.setattr("evidence.learning.objective", lambda *_: mx.array(float("nan")) * objective(*_))
    spec = main_spec(results, "2")
    found = Training(spec, TINY, scratch, never).run()
    (scratch / "state" / f"{spec.id}.safetensors").unlink()  # a run of this name in another test begins anew
    assert found["diverged"] and found["points"]["time 1"]["nats"] == float("inf")


# --- manifest ---------------------------------------------------------------------------------------------------------


def known_with(nats: dict[str, float]) -> Known:
    timing = {arm: {"seconds": 0.01, "flops": 1e6} for arm in ARMS} | {"1b": {"seconds": 0.02, "flops": 3e6}}
    plan: Plan = replace(PLANS["full"], minutes=1.0)
    return Known(plan, timing, {name: {"trial": value} for name, value in nats.items()})


def test_trials_come_first_and_an_edge_extends_them_for_all() -> None:
    arms, factors = ("1b", "4", "2", "7"), (0.125, 0.25, 0.5, 1.0, 2.0)
    state = known_with({})
    assert [spec.kind for spec in manifest(state, ["i"])] == ["trial"] * 20
    assert {spec.points["trial"] for spec in manifest(state, ["i"]) if spec.arm == "4"} == {1200}
    flat = {f"i-trial-{arm}-r{f:g}": abs(f - 0.5) for arm in arms for f in factors}
    state = known_with(flat)
    specs = list(manifest(state, ["i"]))
    assert [spec.kind for spec in specs] == ["trial"] * 20 + ["main"] * 20
    assert rate_of(state, "4") == 0.5
    state = known_with(flat | {"i-trial-4-r2": -1.0})
    assert factors_tried(state, arms) == [*factors, 4.0]
    assert sum(spec.rate == 4 for spec in manifest(state, ["i"])) == 4
    assert all(spec.kind == "trial" for spec in manifest(state, ["i"]))


def test_what_is_left_is_told_in_core_minutes(prepared: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The trunk, the cooldowns and the readings of a run; runs whose rates are not known yet are counted too."""
    state = known_with({})
    state = replace(state, timing={name: {**entry, "read_seconds": 0.001} for name, entry in state.timing.items()})
    (spec,) = [spec for spec in unnamed(state, ["i"]) if (spec.arm, spec.seed) == ("4", 0)]
    assert spec.points == {"time 1": 6000, "images": 3000, "flops": 6000}
    training, reading = 6000 + 0.2 * 3000, 18_000 * (1 + 1 / 3) + 2 * 1000
    assert core_seconds(state, spec) == pytest.approx(0.01 * training + 0.001 * reading)
    assert len(unnamed(state, ["i"])) == 20 and not unnamed(state, ["iv"])
    main(["status", "--results", str(prepared[0]), "--blocks", "i"])
    lines = capsys.readouterr().out.splitlines()
    assert "i-main-7-r?-s0" in lines[-2] and re.match(r"left: about \d+ core-minutes", lines[-1])
    with pytest.raises(PixWordError, match="1b, fold 8 was not timed"):
        state.timed("1b, fold 8")


def test_points_are_at_equal_time_images_and_operations() -> None:
    state = known_with({})
    assert points_of(state, "1b") == {"time 1": 3000, "images": 3000, "flops": 2000}
    assert points_of(state, "4") == {"time 1": 6000, "images": 3000, "flops": 6000}


# --- all of it --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")  # statsmodels and matplotlib on so few readings
def test_everything_in_small(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    """All kinds of run, the prediction before the largest one, and the page; finished runs are not repeated."""
    results, scratch = prepared
    blocks = ["i", "v", "vi"]
    work(results, scratch, blocks, Stop(float("inf")))
    main(["predict", "--results", str(results)])
    with pytest.raises(PixWordError, match="made once"):
        main(["predict", "--results", str(results)])
    work(results, scratch, blocks, Stop(float("inf")))
    records = {path.stem: read_json(path) for path in (results / "runs").glob("*.json")}
    kinds = [record["spec"]["kind"] for record in records.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "trial": 4, "main": 4, "pretrain": 2, "tune": 8, "scaling": 3, "largest": 1,
    }  # fmt: skip
    record = records["i-main-1b-r1-s0"]
    assert record["spec"]["arm"] == "1b" and record["tests"] == read_json(results / "tests.json")["digest"]
    assert record["commit"] and record["machine"] and record["curve"] and record["command"]
    for path in (results / "real" / "development").iterdir():
        assert sorted(kept_readings(results, path.stem, "development")) == ["plates-47x12", "sroie-6"]
    assert len(list((results / "real" / "development").iterdir())) == 4 and not opened(results)
    before = {path: path.stat().st_mtime_ns for path in (results / "runs").iterdir()}
    work(results, scratch, blocks, Stop(float("inf")))
    assert {path: path.stat().st_mtime_ns for path in (results / "runs").iterdir()} == before
    pages = ["--results", str(results), "--page", str(tmp_path / "p.md"), "--figures", str(tmp_path / "f")]
    main(["report", *pages])
    page = (tmp_path / "p.md").read_text(encoding="utf-8")
    crops = "3 | 1 over 64 px, 1 over 8 characters, 1 unknown characters"
    assert f"| sroie-6 | closed | {crops} | closed | closed |" in page and "| pdf-36 | closed | not run |" in page
    main(["report", "--open-closed", "--scratch", str(scratch), *pages])
    page = (tmp_path / "p.md").read_text(encoding="utf-8")
    assert re.search(rf"\| sroie-6 \| closed \| {crops} \| \d", page) and "| pdf-36 | closed | not run |" in page
    check_opening(results, scratch, records["i-main-4-r1-s0"])
    assert "| 2 | ViT, 16 px patches |" in page and "not run" in page
    assert (tmp_path / "f" / "index.html").read_text(encoding="utf-8").count("<svg") == 3


def check_opening(results: Path, scratch: Path, record: dict[str, Any]) -> None:
    """The closed third was read by the runs finished then, and is not read again, nor by other runs, nor with more."""
    kept = {path: path.stat().st_mtime_ns for path in (results / "real" / "closed").iterdir()}
    stamp = opened(results)
    assert stamp and len(stamp["runs"]) == len(kept) == 4
    later = {**record, "id": "i-main-4-r1-s9"}
    (scratch / "weights" / "i-main-4-r1-s9.safetensors").symlink_to(scratch / "weights" / f"{record['id']}.safetensors")
    assert open_closed([record, later], TINY, results, scratch, {}) == [] and opened(results) == stamp
    assert {path: path.stat().st_mtime_ns for path in (results / "real" / "closed").iterdir()} == kept
    more = scratch / "more"
    real_folder(more)
    for part in ("development", "closed"):
        (more / f"sroie-6-{part}.pwtext").rename(more / f"pdf-36-{part}.pwtext")
    with pytest.raises(PixWordError, match="opened without pdf-36"):
        prepare_real(more, TINY, results, scratch)


def test_reference_engines_read_the_same_crops(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    """Bits of all crops that `real_text.py` reads; those that arms do not read are left out."""
    results, _ = prepared
    bits = base64.b64encode(np.packbits([1, 0, 1, 1, 1, 0])).decode()
    for n, read in ((1, 6), (2, 5)):  # the newer one has read another number of crops
        scores = {"tesseract": {"sroie-6": {"read": read, "right": bits}}}
        write_json(tmp_path / f"real_text-{n}.json", {"part": "closed", "scores": scores})
    take_engines(tmp_path, results)
    evidence = Evidence(results)
    assert evidence.engines["tesseract", "sroie-6", "closed"].tolist() == [1, 0, 1]
    known = kept_real_sets(results, "closed")["sroie-6"]
    accuracy = evidence.engine_accuracy("tesseract", known)
    assert accuracy and accuracy.value == pytest.approx(2 / 3) and known.documents.tolist() == [0, 0, 2]
    (results / "real" / "engines.json").unlink()


def test_mistakes_are_one_line(tmp_path: Path, prepared: tuple[Path, Path]) -> None:
    for arguments, message in (
        (["walk"], "unknown command 'walk'"),
        (["status", "--results", str(tmp_path)], "timing.json"),
        (["run", "--blocks", "vii"], "unknown block 'vii'"),
        (["run", "--jobs", "0"], "--jobs must be at least 1"),
        (["prepare", "--plan", "quick", "--results", str(prepared[0])], "is another plan, in seeds"),
        (["report", "--open-closed", "--results", str(tmp_path)], "plan.json"),
    ):
        with pytest.raises(PixWordError, match=re.escape(message)):
            main(arguments)
