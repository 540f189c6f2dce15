"""Fine-tuning: runs that start from a model, adapters in mlx-lm's files, and one line for every mistake."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image
from test_lora import adapted

import mlx_pixword as pw
from mlx_pixword import convert, evaluate, finetune, generate, pretrain, server
from mlx_pixword.common.cli import run_command
from mlx_pixword.config.run import make_config
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.batch import collate
from mlx_pixword.model.document import mask_prompt
from mlx_pixword.model.losses import loss_sums
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.training.adapt import start_from
from mlx_pixword.training.setup import build_model
from mlx_pixword.weights.lora import save_adapters

Build = Callable[..., PixWordModel]
QUICK = ["--batch-tokens", "64", "--group-size", "8", "--eval-documents", "2", "--log-every", "1", "--eval-every", "2",
         "--sample-images", "0", "--accumulate", "1", "--streams", "1", "--warmup", "0"]  # fmt: skip


@pytest.fixture
def base(small_model: Build, tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(["red 12", "green 34"], 300)
    model = small_model(vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64)
    return pw.save_model(model, tokenizer, tmp_path / "base")


@pytest.fixture
def data(tmp_path: Path, rng: np.random.Generator) -> str:
    """Twenty captioned pictures of one colour each."""
    (tmp_path / "data").mkdir()
    lines = []
    for n in range(20):
        Image.fromarray(np.full((6, 8, 3), rng.integers(0, 256, 3), np.uint8)).save(tmp_path / f"data/{n}.png")
        lines.append(json.dumps({"image": f"{n}.png", "caption": f"red {n}"}))
    (tmp_path / "data/labels.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "data/labels.jsonl")


def weights_of(model: PixWordModel) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[tuple[int, float]]:
    return [(m["step"], m["word_loss"]) for m in metrics(out) if "word_loss" in m]


# --- starting from a model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("factored", [False, True])
def test_a_run_starts_as_the_saved_function(base: Path, rng: np.random.Generator, factored: bool, dtype: str) -> None:
    """Master weights are float32 whatever the compute type; factored colours: free rows as saved, factors at 0."""
    config = pretrain.parse_command(
        ["--init", str(base), "--dtype", dtype, *(["--factored-colors"] if factored else [])]
    )
    model = build_model(config[0].model, config[0].train)
    start_from(model, config[0], resumed=False)
    saved, processor = pw.load(base, dtype=dtype, master=True)
    assert {a.dtype for a in weights_of(model).values()} == {mx.float32}
    assert ("head.factors" in weights_of(model)) == factored
    assert not factored or not weights_of(model)["head.factors"].any()
    batch = processor(["red", rng.integers(0, 256, (9, 5, 3), dtype=np.uint8)])
    assert mx.array_equal(model(batch), saved(batch))


def test_shape_and_tokenizer_are_the_models_own(base: Path) -> None:
    config, _ = finetune.parse_command(["--model", str(base), "--max-seq-len", "200"])
    own = pw.load(base)[0].args
    assert (config.model.hidden_size, config.model.window_size) == (own.hidden_size, own.window_size)
    assert config.model.max_seq_len == 200 and config.model.factored_colors
    assert config.data.tokenizer == base / "tokenizer.model"
    again = make_config(config.to_flat())
    assert again == config  # config.yaml holds all of it


def test_a_model_that_reads_alone_goes_on_to_read_alone(small_model: Build, tmp_path: Path) -> None:
    model = small_model(vocab_size=6)
    model.words_only = True
    config, _ = finetune.parse_command(["--model", str(pw.save_model(model, None, tmp_path / "reader"))])
    assert config.train.boundary_weight == config.train.dense_weight == 0
    assert build_model(config.model, config.train).words_only


def test_finetune_learns_evaluates_and_stops(base: Path, data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--model", str(base), "--data", data, "--out", str(out), *QUICK, "--steps", "20", "--patience", "2"]
    finetune.main([*flags, "--learning-rate", "30"])  # much too high, so that the held-out loss rises
    evaluated = [(m["step"], m["heldout_loss"]) for m in metrics(out) if "heldout_loss" in m]
    best = min(evaluated, key=lambda pair: pair[1])[0]
    assert len(evaluated) < 10 and evaluated[-1][0] == best + 4  # two evaluations without a lower loss
    assert (out / "final/model.safetensors").read_bytes() == (out / "best/model.safetensors").read_bytes()
    assert not pw.load(out / "final")[0].args.factored_colors
    pretrain.main(["--config", str(out / "config.yaml"), "--resume"])  # ends at once, and changes nothing
    assert (out / "final/model.safetensors").read_bytes() == (out / "best/model.safetensors").read_bytes()


@pytest.mark.parametrize("lora", [[], ["--lora", "2", "--lora-image-block"]])
def test_a_stopped_run_goes_on_to_the_same_weights(base: Path, data: str, tmp_path: Path, lora: list[str]) -> None:
    flags = ["--model", str(base), "--data", data, *QUICK, *lora, "--patience", "0", "--schedule", "linear"]
    finetune.main([*flags, "--steps", "6", "--save-every", "3", "--out", str(tmp_path / "whole")])
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("checkpoints/step-6", "final", "best"):
        shutil.rmtree(tmp_path / "cut" / name)
    flags = ["--config", str(tmp_path / "whole/config.yaml"), "--out", str(tmp_path / "cut"), "--resume"]
    pretrain.main(flags)
    name = "adapters.safetensors" if lora else "model.safetensors"
    assert (tmp_path / "cut/final" / name).read_bytes() == (tmp_path / "whole/final" / name).read_bytes()
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


# --- new words --------------------------------------------------------------------------------------------------------


def test_new_words_change_nothing_of_the_model_before_they_are_learnt(base: Path, rng: np.random.Generator) -> None:
    config, _ = finetune.parse_command(["--model", str(base), "--new-words", "\u00df red \u0142\u0142"])  # red is there
    saved, processor = pw.load(base)
    words, tokenizer = saved.args.vocab_size, processor.tokenizer
    assert tokenizer is not None
    model = build_model(replace(config.model, vocab_size=words + 2), config.train)
    start_from(model, config, resumed=False)
    batch = processor(["red", rng.integers(0, 256, (9, 5, 3), dtype=np.uint8)])
    expected = np.array(saved(batch))
    batch = pw.Processor(model.args)([tokenizer.encode("red"), *batch.documents[0][0].images])
    found = np.array(model(batch))
    assert (np.delete(found, [words, words + 1], axis=-1) == expected).all()
    pieces = tokenizer.encode("\u00df")
    assert len(pieces) == 2  # bytes
    assert found[..., words] == pytest.approx(expected[..., pieces].mean(axis=-1), abs=1e-5)
    table = np.array(saved.embed_words.weight)
    assert np.array(model.embed_words.weight)[words] == pytest.approx(table[pieces].mean(axis=0), abs=1e-6)


def test_new_words_are_learnt_and_kept_everywhere(
    base: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlx_lm.utils import load_model

    Path(data).write_text(Path(data).read_text().replace("red", "r\u00df\u00df"))
    flags = ["--model", str(base), "--data", data, *QUICK, "--patience", "0", "--save-every", "2", "--steps", "4"]
    finetune.main([*flags, "--out", str(tmp_path / "plain")])
    assert (
        "spells in pieces 1 of the data's characters; to make them words: --new-words '\u00df'"
        in capsys.readouterr().err
    )
    out = tmp_path / "out"
    finetune.main([*flags, "--new-words", "\u00df", "--out", str(out)])
    assert "of the data's characters" not in capsys.readouterr().err
    model, processor = pw.load(out / "final")
    words = pw.load(base)[0].args.vocab_size
    assert pw.load(tmp_path / "plain/final")[0].args.vocab_size == words == model.args.vocab_size - 1
    assert processor.tokenizer is not None and processor.tokenizer.encode("\u00df") == [words]
    table = np.array(model.embed_words.weight)
    assert np.abs(table[words] - table[pw.load(base)[1].tokenizer.encode("\u00df")].mean(axis=0)).max() > 1e-4  # learnt
    whole = (out / "final/model.safetensors").read_bytes()
    for name in ("checkpoints/step-4", "final", "best"):
        shutil.rmtree(out / name)
    pretrain.main(["--config", str(out / "config.yaml"), "--resume"])
    assert (out / "final/model.safetensors").read_bytes() == whole
    convert.main(["--model", str(out / "final"), "--to-mlx-lm", "--out", str(tmp_path / "back")])
    ids = [1, *processor.tokenizer.encode("r\u00df\u00df 1")]
    theirs = np.array(load_model(tmp_path / "back")[0](mx.array([ids])))[0]
    ours = np.array(model(processor([ids], special_words=False)))[0, :, : words + 1]
    assert theirs == pytest.approx(ours, abs=1e-4)
    again, _ = finetune.parse_command(["--model", str(out / "final"), "--new-words", "\u00df"])
    assert again.model.vocab_size == words + 1  # it has the word
    finetune.parse_command(["--config", str(out / "config.yaml"), "--out", str(tmp_path / "again")])  # a run like it


# --- prompts that are masked ------------------------------------------------------------------------------------------


def image_of(rng: np.random.Generator, size: tuple[int, int] = (6, 5)) -> np.ndarray:
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("caption_first", [False, True])
def test_the_prompt_of_a_document_does_not_count(
    small_model: Build, rng: np.random.Generator, caption_first: bool
) -> None:
    """Loss sums of a masked document are those of its last part, element by element in the unmasked one."""
    model = small_model()
    processor, words = pw.Processor(model.args), [7, 8, 9]
    parts = [words, image_of(rng)] if caption_first else [image_of(rng), words]
    document = processor.document(parts, closed=True)
    batches = [collate([[d]], model.args, exact=True, pixel_queries=2) for d in (document, mask_prompt(document))]
    plain, masked = (loss_sums(*model.forward(b), b, model.args.vocab_size) for b in batches)
    logits = np.array(model(batches[0]), np.float64)[0]
    nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(logits)), np.array(batches[0].targets)[0]]
    if caption_first:  # the image, its closing mark and </s>
        assert float(masked.word_nats.item()) == pytest.approx(nats[-2:].sum(), rel=1e-5)
        assert masked.boundary_nats.item() == plain.boundary_nats.item() > 0
        assert masked.dense_nats.item() == plain.dense_nats.item() > 0
        assert batches[1].num_targets == batches[0].num_targets - 4  # <|image|> and three words
    else:  # the words and </s>
        assert float(masked.word_nats.item()) == pytest.approx(nats[-4:].sum(), rel=1e-5)
        assert masked.boundary_nats.item() == masked.dense_nats.item() == masked.dense_pixels.item() == 0
        assert batches[1].num_targets == 4
    text = processor.document([words], closed=True)
    assert mask_prompt(text) is text


def test_a_run_with_masked_prompts_learns_words_alone(base: Path, data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finetune.main(["--model", str(base), "--data", data, "--out", str(out), *QUICK, "--steps", "6", "--mask-prompt"])
    lines = metrics(out)
    assert all("boundary_loss" not in m and "heldout_boundary_loss" not in m for m in lines)
    values = [loss for _, loss in losses(out)]
    assert values[-1] < values[0]


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_a_run_trains_adapters_alone_and_commands_take_them(
    base: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    finetune.main(["--model", str(base), "--data", data, "--out", str(out), *QUICK, "--steps", "4", "--lora", "2"])
    assert sorted(p.name for p in (out / "final").iterdir()) == ["adapter_config.json", "adapters.safetensors"]
    before = weights_of(pw.load(base)[0])
    found = mx.load(str(out / "checkpoints/step-4/model.safetensors"))
    for name, array in before.items():
        assert mx.array_equal(found.get(name, found.get(name.replace(".weight", ".linear.weight"))), array), name
    assert any(a.any() for n, a in found.items() if n.endswith("lora_b"))
    capsys.readouterr()
    picture, adapters = str(Path(data).parent / "3.png"), ["--adapter-path", str(out / "final")]
    generate.main(["--model", str(base), *adapters, "--image", picture, "--max-tokens", "3"])
    evaluate.main(["--model", str(base), *adapters, "--data", data])
    with_adapters = json.loads(capsys.readouterr().out.splitlines()[-1])
    convert.main(["--model", str(base), "--fuse", str(out / "final"), "--out", str(tmp_path / "fused")])
    capsys.readouterr()
    evaluate.main(["--model", str(tmp_path / "fused"), "--data", data])
    fused = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert fused["word_loss"] == pytest.approx(with_adapters["word_loss"], rel=1e-4)


def test_adapters_train_on_a_quantised_model(
    base: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert.main(["--model", str(base), "--quantize", "8", "--group-size", "32", "--out", str(tmp_path / "small")])
    flags = ["--model", str(tmp_path / "small"), "--data", data, "--out", str(tmp_path / "out"), *QUICK, "--steps", "6"]
    assert "small is quantised and cannot be trained itself; train adapters" in line(capsys, finetune.main, *flags)
    assert not (tmp_path / "out").exists()
    finetune.main([*flags, "--lora", "4"])
    values = [loss for _, loss in losses(tmp_path / "out")]
    assert values[-1] < values[0]


# --- mistakes ---------------------------------------------------------------------------------------------------------


def line(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], None], *flags: object) -> str:
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main([*map(str, flags)]))
    assert stop.value.code == 2
    (only,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error") or ": error" in text]
    return only


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "give the model to start from: --model"),
        (["--model", "{tmp}/none"], "no model at"),
        (["--model", "{tmp}/base", "--hidden-size", "64"], "--hidden-size 64: the model .* has 32"),
        (["--model", "{tmp}/base", "--lora", "-1"], "lora must be 0 or positive"),
        (["--model", "{tmp}/base", "--lora-image-block"], "give --lora RANK too"),
        (["--model", "{tmp}/base", "--lora", "2", "--lora-dropout", "1"], "lora_dropout lie in 0..1"),
        (["--model", "{tmp}/base", "--data", "{tmp}/none"], "no file or folder"),
        (["--model", "{tmp}/base", "--lora", "2", "--new-words", "a"], "rows that adapters have no place for"),
        (["--model", "{tmp}/base", "--new-words", "x" * 101], "have at most 100 bytes each"),
        (["--model", "{tmp}/base", "--new-words", "<s>"], "takes not all of the new words <s>"),
        (
            ["--model", "{tmp}/words"],
            "has words and no tokenizer.model or tokenizer.json; give the tokenizer it was",
        ),
        (["--model", "{tmp}/images", "--new-words", "a"], "images has no tokenizer to add words to"),
    ],
)
def test_mistakes_in_finetune(
    small_model: Build, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    pw.save_model(pw.load(base)[0], None, tmp_path / "words")
    pw.save_model(small_model(vocab_size=6), None, tmp_path / "images")
    said = line(capsys, finetune.main, *(f.format(tmp=tmp_path) for f in flags), "--out", tmp_path / "out")
    assert re.search(words, said), said
    assert not (tmp_path / "out").exists()


def test_adapters_of_another_model_are_one_line_in_every_command(
    small_model: Build, base: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters = save_adapters(*adapted(small_model(hidden_size=64)), tmp_path / "adapters")
    picture = str(Path(data).parent / "0.png")
    for main, name, flags in (
        (generate.main, "--adapter-path", ["--image", picture]), (evaluate.main, "--adapter-path", ["--data", data]),
        (convert.main, "--fuse", ["--out", str(tmp_path / "out")]), (server.main, "--adapter-path", ["--port", "0"]),
    ):  # fmt: skip
        said = line(capsys, main, "--model", base, name, adapters, *flags)
        assert said.endswith("; the adapters are of another model"), said
    assert not (tmp_path / "out").exists()
