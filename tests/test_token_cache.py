"""The cache of folded images: it saves decoding, keeps within its limit, and never costs a run."""

import os
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shots import TOKENIZER, Shot, shape

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.data import cache as cache_module
from mlx_pixword.data.cache import TokenCache
from mlx_pixword.data.loader import Encoder
from mlx_pixword.data.skips import SkipLog
from mlx_pixword.model.document import ImageTokens


def seen(cache: TokenCache | None, shot: Shot, **changes: Any) -> ImageTokens:
    image = Encoder(shape(**changes), TOKENIZER, SkipLog(), cache).image(shot)
    assert image is not None
    return image


def same(one: ImageTokens, two: ImageTokens) -> bool:
    arrays = np.array_equal(one.windows, two.windows) and np.array_equal(one.lengths, two.lengths)
    return arrays and (one.height, one.width) == (two.height, two.width)


@pytest.mark.parametrize("f", [1, 16, 256])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16), (3, 16)])
def test_an_image_is_decoded_once(tmp_path: Path, f: int, size: tuple[int, int]) -> None:
    args, shot = {"fold_factor": f}, Shot(1, key="a", size=size)
    fresh = seen(None, Shot(1, size=size), **args)
    for _ in range(3):
        assert same(seen(TokenCache(tmp_path, shape(**args)), shot, **args), fresh)
    assert shot.reads == 1


@pytest.mark.parametrize("changes", [{"fold_factor": 32}, {"image_size": 12}, {"window_size": 8}])
def test_other_shapes_and_other_files_have_entries_of_their_own(tmp_path: Path, changes: dict[str, int]) -> None:
    shot, other = Shot(1, key="a", size=(7, 9)), Shot(2, key="b", size=(7, 9))
    seen(TokenCache(tmp_path, shape()), shot)
    assert same(
        seen(TokenCache(tmp_path, shape(**changes)), shot, **changes), seen(None, Shot(1, size=(7, 9)), **changes)
    )
    assert shot.reads == 2
    assert not same(seen(TokenCache(tmp_path, shape()), other), seen(None, Shot(1, size=(7, 9))))


def test_what_does_not_touch_images_shares_their_entries(tmp_path: Path) -> None:
    shot, changes = Shot(1, key="a"), {"vocab_size": 6, "num_layers": 2, "max_seq_len": 99}
    seen(TokenCache(tmp_path, shape()), shot)
    seen(TokenCache(tmp_path, shape(**changes)), shot, **changes)
    assert shot.reads == 1


@pytest.mark.parametrize("size", [0, 3, 40, 128, 130, -2])
def test_files_cut_short_are_decoded_again_and_mended(tmp_path: Path, size: int) -> None:
    cache, shot = TokenCache(tmp_path, shape()), Shot(1, key="a")
    fresh = seen(cache, shot)
    (file,) = tmp_path.rglob("*.windows")
    file.write_bytes(file.read_bytes()[:size])
    assert same(seen(cache, shot), fresh) and same(seen(cache, shot), fresh)
    assert shot.reads == 2


def test_bad_images_and_images_without_a_key_are_not_kept(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path, shape())
    seen(cache, Shot(1))
    assert Encoder(shape(), TOKENIZER, SkipLog(), cache).image(Shot(2, bad="torn", key="b")) is None
    assert not list(tmp_path.rglob("*.windows"))


def test_files_appear_whole_even_when_threads_keep_the_same_image(tmp_path: Path) -> None:
    cache, image = TokenCache(tmp_path, shape()), seen(None, Shot(1, size=(16, 16)))
    failures: list[BaseException] = []

    def keep() -> None:
        try:
            for _ in range(150):
                cache.put("a", image)
                found = cache.get("a")
                assert found is not None and same(found, image)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=keep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".windows"]  # no draft is left


@pytest.mark.parametrize("code, words", [(28, "No space left .* make room"), (30, "Read-only")])
def test_a_full_or_closed_disk_turns_keeping_off_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, words: str
) -> None:
    cache, kept = TokenCache(tmp_path, shape()), Shot(1, key="a")
    seen(cache, kept)

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(cache_module.os, "replace", full)
    for number in (2, 3):
        assert same(seen(cache, Shot(number, key=f"b{number}")), seen(None, Shot(number)))
    monkeypatch.undo()
    seen(cache, Shot(4, key="b4"))
    seen(cache, kept)
    assert kept.reads == 1  # what is there is still read
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(f"no more images are kept in .*: cannot write .*{words}", lines[0])


def test_damaged_files_are_decoded_again(tmp_path: Path) -> None:
    cache, shot = TokenCache(tmp_path, shape()), Shot(1, key="a")
    fresh = seen(cache, shot)
    (file,) = tmp_path.rglob("*.windows")
    content = bytearray(file.read_bytes())
    for place in (0, 5, len(content) // 2, len(content) - 1):  # checksum, size, pixels
        content[place] ^= 4
        file.write_bytes(content)
        assert same(seen(cache, shot), fresh)
    assert shot.reads == 5


def fill(cache: TokenCache, numbers: Sequence[int]) -> list[Shot]:
    shots = [Shot(number, key=str(number)) for number in numbers]
    for shot in shots:
        seen(cache, shot)
    return shots


def test_a_cache_keeps_within_its_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(TokenCache(tmp_path, shape()), [0])
    (file,) = tmp_path.rglob("*.windows")
    size = file.stat().st_size  # the same for every image here
    limit = 10.5 * size / 1e9
    cache = TokenCache(tmp_path, shape(), limit)
    fill(cache, range(20))
    kept = len(list(tmp_path.rglob("*.windows")))
    assert kept == 10
    assert capsys.readouterr().err.count("no more images are kept") == 1
    again = fill(TokenCache(tmp_path, shape(), limit), range(20))
    assert sum(shot.reads == 0 for shot in again) == 10  # and those that are there save their decoding


def test_the_oldest_that_nobody_uses_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(TokenCache(tmp_path, shape()), range(10))
    files = sorted(tmp_path.rglob("*.windows"))
    for n, file in enumerate(files):
        os.utime(file, (1000 + n, 1000 + n))
    limit = 10.5 * files[0].stat().st_size / 1e9
    cache = TokenCache(tmp_path, shape(), limit)
    used = [number for number in range(10) if cache._path(cache._digest(str(number))) in files[:2]]
    fill(cache, used)
    fill(cache, [100, 101])
    left = set(tmp_path.rglob("*.windows"))
    assert set(files[:2]) <= left and set(files[4:]) <= left and not left & set(files[2:4])
    assert len(left) == 10


def test_drafts_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    for name, age in (("old", 10**6), ("new", 0)):
        (tmp_path / "ab" / f"{name}.tmp").write_bytes(b"x")
        os.utime(tmp_path / "ab" / f"{name}.tmp", (time.time() - age,) * 2)
    fill(TokenCache(tmp_path, shape(), 1.0), [0])
    assert [path.name for path in tmp_path.rglob("*.tmp")] == ["new.tmp"]


def test_a_cache_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PixWordError, match=r"^--cache .*file: (File exists|Not a directory)"):
        TokenCache(tmp_path / "file", shape())
