"""The command that decodes a folder of broken files: what it counts, names and prints."""

import os
from pathlib import Path

import pillow_images as module
import pytest
from fuzz_images import seeds
from pillow_images import Outcome, Table, decode, main, mutations

from mlx_pixword.common.errors import BadImage, PixWordError
from mlx_pixword.data.decoders import Decoders


def test_files_are_decoded_or_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/good.bin").write_bytes(seeds()[0])
    (tmp_path / "cut.png").write_bytes(seeds()[1][:60])
    (tmp_path / "other").write_text("words")
    main(["--images", str(tmp_path), "--mutations", "20"])
    shown = capsys.readouterr().out
    assert "3 files: 1 decoded, 2 named, 0 crashes, 0 stalls" in shown
    assert "1  not an image of a known format" in shown and "slow: " in shown
    assert "broken copies, seed 0:\n20 files: " in shown


def test_crashes_and_stalls_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rgb(_decoders: Decoders, picture: module.FilePicture, _size: int) -> None:
        raise BadImage(
            {"a": "it crashes the decoder (status -11)", "b": "decoding takes longer than 20 seconds"}[
                picture.path.name
            ]
        )

    for name in "ab":
        (tmp_path / name).touch()
    monkeypatch.setattr(Decoders, "rgb", rgb)
    with pytest.raises(SystemExit) as stop:
        main(["--images", str(tmp_path)])
    shown = capsys.readouterr().out
    assert stop.value.code == 1 and "0 decoded, 0 named, 1 crashes, 1 stalls" in shown
    assert f"crashes  {tmp_path / 'a'}: it crashes" in shown and f"stalls  {tmp_path / 'b'}: decoding takes" in shown


def test_a_pipe_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "good.png").write_bytes(seeds()[1])
    files = [module.FilePicture(tmp_path / name) for name in ("pipe.png", "good.png")]
    table = decode(files, module.ImagesArgs(images=tmp_path, seconds=0.1))
    assert [outcome.kind for outcome in table.outcomes] == ["named", "decoded"]


def test_copies_are_the_same_again() -> None:
    first, again, other = ([p.encoded() for p in mutations(30, seed)] for seed in (0, 0, 1))
    assert first == again != other and len(set(first)) > 25


def test_reasons_are_counted_without_numbers_and_contents() -> None:
    reasons = [
        "9x9 is too large, the limit is 1,000",
        "10x9 is too large, the limit is 1,000",
        "bad: b'\\x00'",
        "bad: b'2'",
    ]
    table = Table([Outcome("a", "named", reason, 0.0) for reason in reasons])
    assert table.reasons() == {"#x# is too large, the limit is #": 2, "bad: ...": 2}


@pytest.mark.parametrize(
    "arguments", [[], ["--images", "absent"], ["--mutations", "-1"], ["--mutations", "1", "--seconds", "nan"]]
)
def test_mistakes_are_named(arguments: list[str]) -> None:
    with pytest.raises(PixWordError, match=r"^(nothing to decode|--(images|mutations|seconds) )"):
        main(arguments)
