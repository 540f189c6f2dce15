"""Language models of mlx-lm as the language block: the same logits for every family, training, and the way back."""

import json
import re
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from model_options import ALL
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

import mlx_pixword as pw
from mlx_pixword import convert, finetune, pretrain
from mlx_pixword.common.cli import run_command
from mlx_pixword.inputs.new_words import add_words
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.weights.from_mlx_lm import language_shape, put_language_model, read_language_model
from mlx_pixword.weights.quantized import quantize_model

Build = Callable[..., PixWordModel]
WORDS = ["<s>", "</s>", "<pad>", "red", "green", "blue", *map(chr, range(97, 123)), *"0123456789", " "]
COMMON: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "vocab_size": 48, "max_position_embeddings": 256,
    "bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 2,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama, scaled": {"model_type": "llama", "rope_scaling": LLAMA3, "tie_word_embeddings": False, "rope_theta": 5e5},
    "llama, pairs and biases": {
        "model_type": "llama", "rope_traditional": True, "attention_bias": True, "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "llama, wide heads": {"model_type": "llama", "head_dim": 12, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "mistral": {"model_type": "mistral", "sliding_window": 4096, "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 1, "tie_word_embeddings": True, "rope_theta": 1e6},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": False, "rope_theta": 1e6},
    "smollm3": {"model_type": "smollm3", "no_rope_layer_interval": 2, "tie_word_embeddings": True},
}  # fmt: skip
IDS = [3, 7, 9, 4, 4, 5, 21, 40, 11, 6, 3, 30]


def their_model(family: str) -> Any:
    """A random small model of mlx-lm's own class."""
    config = COMMON | FAMILIES[family]
    name = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    module = import_module(f"mlx_lm.models.{name}")
    mx.random.seed(1)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.update({})  # all weights are random; norms and biases are made so
    for n, (path, array) in enumerate(tree_flatten(model.parameters())):
        scale, shift = (0.3, 1.0) if "norm" in path else (0.2, 0.0)
        mx.random.seed(n)
        model.load_weights([(path, shift + scale * mx.random.normal(array.shape))], strict=False)
    return model


def write(family: str, folder: Path, tokenizer: bool = True) -> Any:
    model = their_model(family)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(COMMON | FAMILIES[family]))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    if tokenizer:
        made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<pad>"))
        made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        made.save(str(folder / "tokenizer.json"))
    return model


def ours(folder: Path) -> PixWordModel:
    args = ModelArgs(
        **language_shape(folder), fold_factor=64, image_size=16, window_size=4, image_layers=1, max_seq_len=128,
        image_hidden_size=8, image_num_heads=2, image_num_kv_heads=1, image_intermediate_size=8, dtype="float32",
    )  # fmt: skip
    model = PixWordModel(args)
    put_language_model(model, read_language_model(folder))
    return model


def text_logits(model: PixWordModel) -> np.ndarray:
    batch = pw.Processor(model.args)([[6 + n for n in IDS]], special_words=False)
    return np.array(model(batch))[0, :, 6 : model.args.vocab_size]


@pytest.mark.parametrize("family", FAMILIES)
def test_text_has_the_logits_that_mlx_lm_gives(family: str, tmp_path: Path) -> None:
    theirs = write(family, tmp_path / "model")
    model = ours(tmp_path / "model")
    expected = np.array(theirs(mx.array([IDS])))[0]
    assert np.abs(text_logits(model) - expected).max() < 1e-4
    assert np.abs(expected).max() > 0.5  # and there is something to compare
    weights = dict(tree_flatten(model.parameters()))
    words = np.array(theirs.model.embed_tokens.weight)
    assert (np.array(weights["embed_words.weight"])[[1, 2, 3]] == words[[0, 1, 2]]).all()  # <s>, </s>, <pad>


@pytest.mark.parametrize("family", FAMILIES)
def test_the_way_back_is_read_by_mlx_lm(family: str, tmp_path: Path) -> None:
    from mlx_lm.utils import load_model

    theirs = write(family, tmp_path / "model")
    language = read_language_model(tmp_path / "model")
    folder = pw.save_model(ours(tmp_path / "model"), language.tokenizer, tmp_path / "ours")
    loaded, processor = pw.load(folder)
    assert processor.tokenizer is not None and processor.tokenizer.encode("red") == [6 + WORDS.index(c) for c in "red"]
    assert json.loads((folder / "config.json").read_text())["_language_model"]["word_offset"] == 6
    convert.main(["--model", str(folder), "--to-mlx-lm", "--out", str(tmp_path / "back")])
    back, _ = load_model(tmp_path / "back")
    assert json.loads((tmp_path / "back/tokenizer_config.json").read_text())["bos_token"] == "<s>"
    words = Tokenizer.from_file(str(tmp_path / "back/tokenizer.json"))
    assert words.encode("red").ids == [WORDS.index(c) for c in "red"]
    expected = np.array(theirs(mx.array([IDS])))
    assert np.abs(np.array(back(mx.array([IDS]))) - expected).max() < 1e-4
    assert np.abs(text_logits(loaded) - expected[0]).max() < 1e-4


def test_texts_are_texts_there(small_model: Build, tmp_path: Path) -> None:
    """With mlx-lm's own loader and generator, of a model with a tokenizer of ours."""
    from mlx_lm import generate, load

    tokenizer, _ = add_words(train_tokenizer(["red 12", "green 34"], 300), ["\u20ac"])
    model = small_model(vocab_size=tokenizer.vocab_size, rope_scaling="none")
    for layer in model.layers:  # or the same word comes again and again
        layer.ffn.down_proj.weight = 4 * layer.ffn.down_proj.weight
    model.embed_words.weight, model.head.weight = 30 * model.embed_words.weight, 50 * model.head.weight
    folder = pw.save_model(model, tokenizer, tmp_path / "ours")
    convert.main(["--model", str(folder), "--to-mlx-lm", "--out", str(tmp_path / "theirs")])
    theirs, their_tokenizer = load(str(tmp_path / "theirs"))
    assert their_tokenizer.encode("red \u20ac7") == [1, *tokenizer.encode("red \u20ac7")]
    assert their_tokenizer.eos_token_ids == {2}
    never = mx.zeros(tokenizer.vocab_size).at[mx.array([0, 1, 3, 4, 5])].add(-mx.inf)  # that ours never writes
    found = generate(
        theirs, their_tokenizer, "red \u20ac7", max_tokens=12, logits_processors=[lambda _, logits: logits + never]
    )
    assert found == pw.generate_text(model, pw.Processor(model.args, tokenizer), ["red \u20ac7"], max_tokens=12)
    assert len(set(tokenizer.encode(found))) > 3


def test_a_model_in_few_bits_goes_there_as_plain_weights(small_model: Build, tmp_path: Path) -> None:
    from mlx_lm.utils import load_model

    model = quantize_model(small_model(attention_bias=True, hidden_size=64, intermediate_size=96), 8)
    folder = pw.save_model(model, None, tmp_path / "small")
    convert.main(["--model", str(folder), "--to-mlx-lm", "--out", str(tmp_path / "theirs")])
    theirs, _ = load_model(tmp_path / "theirs")
    loaded, processor = pw.load(folder)
    ids = [1, 9, 3, 8, 8]
    ours = np.array(loaded(processor([ids], special_words=False)))[0, :, :12]
    assert np.array(theirs(mx.array([ids])))[0] == pytest.approx(ours, abs=1e-4)


@pytest.mark.parametrize(
    ("qk_norm", "options"), [(False, {}), (True, {}), (True, ALL)], ids=["plain", "norms", "options"]
)
def test_a_model_of_ours_generates_the_same_text_there(
    small_model: Build, tmp_path: Path, qk_norm: bool, options: dict[str, Any]
) -> None:
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model = small_model(**{**options, "qk_norm": qk_norm, "vocab_size": 40})
    for layer in model.layers:  # or the same word comes again and again
        layer.ffn.down_proj.weight = 4 * layer.ffn.down_proj.weight
    model.embed_words.weight, model.head.weight = 30 * model.embed_words.weight, 50 * model.head.weight
    folder = pw.save_model(model, None, tmp_path / "ours")
    convert.main(["--model", str(folder), "--to-mlx-lm", "--out", str(tmp_path / "theirs")])
    theirs, config = load_model(tmp_path / "theirs")
    prompt = [1, 9, 30, 12, 8]
    read = [r.token for r in pw.stream_generate(model, pw.Processor(model.args), [prompt[1:]], max_tokens=12)]
    never = mx.zeros(40).at[mx.array([0, 1, 3, 4, 5])].add(-mx.inf)  # words that ours never writes
    steps = generate_step(
        mx.array(prompt), theirs, max_tokens=len(read), logits_processors=[lambda _, logits: logits + never]
    )
    assert [int(token) for token, _ in steps] == read
    assert len(set(read)) > 3 and config["model_type"] == ("qwen3" if qk_norm else "llama")


NEW = ["--image-size", "16", "--fold-factor", "64", "--image-layers", "1", "--word-weight", "5"]


def short_run(folder: Path, rng: np.random.Generator, out: Path) -> list[str]:
    """Flags of a run of eight steps on eight captioned pictures."""
    lines = []
    for n in range(8):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{n}.png")
        lines.append(json.dumps({"image": f"{n}.png", "caption": "red green"}))
    (folder / "labels.jsonl").write_text("\n".join(lines))
    return ["--data", str(folder / "labels.jsonl"), "--out", str(out), "--steps", "8", "--batch-tokens", "64",
            "--log-every", "1", "--eval-every", "8", "--sample-images", "0", "--accumulate", "1"]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "extra"),
    [*((family, []) for family in FAMILIES),
     *((family, extra) for family in ("qwen2", "smollm3") for extra in (["--freeze-language"], ["--lora", "4"]))],
)  # fmt: skip
def test_pixels_are_taught_to_a_language_model(
    family: str, extra: list[str], tmp_path: Path, rng: np.random.Generator
) -> None:
    write(family, tmp_path / "model")
    before = text_logits(ours(tmp_path / "model"))
    out = tmp_path / "out"
    pretrain.main([*NEW, "--language-from", str(tmp_path / "model"), *short_run(tmp_path, rng, out), *extra])
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [m["word_loss"] for m in metrics if "word_loss" in m]
    assert losses[-1] < losses[0]
    model, processor = pw.load(out / "final")
    assert model.args.image.hidden_size == 32 and processor.tokenizer is not None
    changed = np.abs(text_logits(model) - before).max()
    assert changed < 1e-4 if "--freeze-language" in extra else changed > 1e-4
    assert (out / "samples/step-8-drawn.png").exists()
    assert pw.generate_image(model, processor, "red", size=(6, 7), seed=1).size == (7, 6)


def test_what_is_taught_stays_a_language_model(tmp_path: Path, rng: np.random.Generator) -> None:
    """After a resume without the language model, and after fine-tuning: the table has more rows than words here."""
    from mlx_lm.utils import load_model

    write("qwen2", tmp_path / "model")
    out, flags = tmp_path / "out", short_run(tmp_path, rng, tmp_path / "out")
    pretrain.main([*NEW, "--language-from", str(tmp_path / "model"), *flags, "--save-every", "4", "--draw-images", "0"])
    whole = (out / "final/model.safetensors").read_bytes()
    for name in ("checkpoints/step-8", "final", "best"):
        shutil.rmtree(out / name)
    shutil.rmtree(tmp_path / "model")
    pretrain.main(["--config", str(out / "config.yaml"), "--resume"])
    assert (out / "final/model.safetensors").read_bytes() == whole
    finetune.main(["--model", str(out / "final"), *short_run(tmp_path, rng, tmp_path / "tuned"), "--steps", "2"])
    model, _ = pw.load(tmp_path / "tuned/final")
    kept = [json.loads((place / "final/config.json").read_text()) for place in (out, tmp_path / "tuned")]
    assert kept[0]["_language_model"] == kept[1]["_language_model"]
    assert kept[0]["_language_model"] == {"word_offset": 6, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
    convert.main(["--model", str(tmp_path / "tuned/final"), "--to-mlx-lm", "--out", str(tmp_path / "back")])
    back, _ = load_model(tmp_path / "back")
    own = [0, 1, 2]  # its special words have the rows of ours
    found, expected = np.array(back(mx.array([IDS])))[0], text_logits(model)
    assert np.abs(np.delete(found - expected, own, axis=1)).max() < 1e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gemma2"}, "of the family 'gemma2'; known are llama, mistral, qwen2, qwen3, smollm3"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "scales its RoPE by 'yarn'"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "sliding windows, which cannot be expressed"),
        ({"model_type": "smollm3", "no_rope_layers": [0, 1]}, "at no fixed interval"),
        ({"num_hidden_layers": None}, "num_hidden_layers must be a positive integer, got None"),
        ({}, "has words and no tokenizer.json or tokenizer.model; give the tokenizer it was trained with"),
        ({"model_file": "model.py"}, "wants to run a file of its own, 'model.py'"),
    ],
)
def test_models_that_cannot_be_expressed_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    write("mistral", tmp_path / "model", tokenizer=False)
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (tmp_path / "model/model.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w')")
    flags = ["--language-from", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        run_command(lambda: pretrain.main(flags))
    said = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(said) == 1 and said[0].startswith("error: ")
    assert str(tmp_path / "model") in said[0] and re.search(words, said[0])
    assert not (tmp_path / "out").exists() and not (tmp_path / "was run").exists()
