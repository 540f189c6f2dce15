"""Sharing a model: up, down and loaded again through huggingface_hub itself, and a card that says what it must."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from hub_server import TOKEN, running_hub
from PIL import Image

import mlx_pixword as pw
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.weights.upload import Card, card_text, check_repo

Build = Callable[..., PixWordModel]


@pytest.fixture
def folder(small_model: Build, tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(["red 12", "green 34"], 300)
    return pw.save_model(small_model(vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "model")


def environment(tmp_path: Path, url: str, token: str | None = TOKEN) -> dict[str, str]:
    import os

    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    kept |= {"HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": url}
    return kept | {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"} | ({"HF_TOKEN": token} if token else {})


def run(tmp_path: Path, url: str, *command: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env=environment(tmp_path, url, token), capture_output=True, text=True, check=False
    )


def test_what_is_uploaded_comes_back_byte_for_byte(folder: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    lines = []
    for n in range(4):
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(tmp_path / f"{n}.png")
        lines.append(json.dumps({"image": f"{n}.png", "caption": f"red {n}"}))
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    load = "import sys, mlx_pixword as pw; m, p = pw.load('owner/name'); pw.save_model(m, p.tokenizer, sys.argv[1])"
    with running_hub() as hub:
        flags = ["--data", str(tmp_path / "labels.jsonl"), "--license", "mit", "--about-data", "Pictures of noise."]
        done = run(tmp_path, hub.url, "-m", "mlx_pixword.convert", "--model", str(folder), "--upload-repo",
                   "owner/name", *flags)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"wrote {hub.url}/owner/name/commit/{hub.commit('owner/name')}\n"
        files = dict(hub.repos["owner/name"])
        assert sorted(files) == [
            "README.md", "config.json", "model.safetensors", "samples/0.png", "tokenizer.model"
        ]  # fmt: skip
        for name in ("config.json", "model.safetensors", "tokenizer.model"):
            assert files[name] == (folder / name).read_bytes(), name
        others = ("old/config.json", "old/model.safetensors", "onnx/x/tokenizer.model", "model.py", "pytorch_model.bin")
        hub.repos["owner/name"] |= dict.fromkeys(others, b"of another model")
        done = run(tmp_path, hub.url, "-c", load, str(tmp_path / "again"), token=None)
        assert done.returncode == 0, done.stderr
        assert {line.split("/resolve/")[1].partition("/")[2] for line in hub.asked if "/resolve/" in line} == {
            "config.json", "model.safetensors", "tokenizer.model"
        }  # fmt: skip
        refused = run(tmp_path, hub.url, "-m", "mlx_pixword.convert", "--model", str(folder), "--upload-repo",
                      "owner/name", token="wrong")  # fmt: skip
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    card = files["README.md"].decode()
    assert "Pictures of noise." in card and "| exact_match |" in card and "(samples/0.png)" in card
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.splitlines()[-1].startswith("error: the upload to owner/name failed: ")


def test_the_card_says_what_the_hub_asks_for(small_model: Build) -> None:
    from huggingface_hub import ModelCard

    model = small_model()
    scores = {"documents": 500, "exact_match": 0.75, "exact_match_95": [0.71, 0.79], "cer": 0.1, "cer_95": None}
    card = Card("Plates.", "apache-2.0", scores, "labels.jsonl", {"Readings": b"png"}, "owner/base")
    text = card_text(model, pw.Processor(model.args), "owner/name", card)
    values = yaml.safe_load(text.split("---\n")[1])
    assert (values["library_name"], values["license"]) == ("mlx-pixword", "apache-2.0")
    assert {"mlx", "pixword"} <= set(values["tags"]) and values["base_model"] == "owner/base"
    measured = values["model-index"][0]["results"][0]["metrics"]
    assert {metric["type"]: metric["value"] for metric in measured} == {"exact_match": 0.75, "cer": 0.1}
    parsed = ModelCard(text)
    assert parsed.data.library_name == "mlx-pixword" and 'pw.load("owner/name")' in parsed.text
    assert "| exact_match_95 | 0.7100 to 0.7900 |" in parsed.text and "![Readings](samples/0.png)" in parsed.text
    bare = card_text(model, pw.Processor(model.args), "name", Card())
    assert "license" not in yaml.safe_load(bare.split("---\n")[1]) and "Not said." in bare


def test_save_pretrained_writes_a_folder_that_loads(small_model: Build, tmp_path: Path) -> None:
    model = small_model()
    place = pw.save_pretrained(
        model, pw.Processor(model.args), tmp_path / "a", Card(pictures={"One": b"1", "Two": b"2"})
    )
    assert (place / "samples/1.png").read_bytes() == b"2"
    assert "# a\n" in (place / "README.md").read_text()
    pw.load(place)
    with pytest.raises(PixWordError, match="exists already"):
        pw.save_pretrained(model, pw.Processor(model.args), place)


def test_an_upload_without_a_token_is_one_line(folder: Path, tmp_path: Path) -> None:
    with running_hub() as hub:
        flags = ["--model", str(folder), "--upload-repo", "owner/name", "--data", str(tmp_path / "none.jsonl")]
        done = run(tmp_path, hub.url, "-m", "mlx_pixword.convert", *flags, token=None)
        assert hub.asked == [] and hub.repos == {}
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: no token to upload to owner/name: set HF_TOKEN, or log in once with `hf auth login`\n"
    )


@pytest.mark.parametrize(
    ("repo", "words"),
    [
        ("name", "a repository is owner/name"), ("a/b/c", "a repository is owner/name"), ("a/b c", "is no name of a"),
        ("owner/name", "no token to upload to owner/name: set HF_TOKEN"),
    ],
)  # fmt: skip
def test_mistakes_that_need_no_connection(monkeypatch: pytest.MonkeyPatch, repo: str, words: str) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(PixWordError, match=words):
        check_repo(repo)
