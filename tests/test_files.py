"""Bytes reach the disk: macOS's full flush where a volume takes it, a plain one where it does not."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from mlx_pixword.common import files
from mlx_pixword.common.files import DiskTrouble, check_writable, replace_file, sync_file

FULL = 51  # F_FULLFSYNC on macOS; Linux's fcntl has no such name


class Disk:
    """What `fcntl` and `fsync` are asked, and the errors that they answer with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mac: bool) -> None:
        self.asked: list[str] = []
        self.full_error = self.plain_error = 0
        if mac:
            monkeypatch.setattr(fcntl, "F_FULLFSYNC", FULL, raising=False)
        else:
            monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)
        monkeypatch.setattr(fcntl, "fcntl", self._fcntl)
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fcntl(self, descriptor: int, command: int) -> None:
        assert command == FULL and os.fstat(descriptor)
        self._answer("full", self.full_error)

    def _fsync(self, descriptor: int) -> None:
        assert os.fstat(descriptor)
        self._answer("plain", self.plain_error)

    def _answer(self, what: str, error: int) -> None:
        self.asked.append(what)
        if error:
            raise OSError(error, os.strerror(error))


@pytest.mark.parametrize(
    ("mac", "refusal", "asked"),
    [
        (True, 0, ["full"]),
        (True, errno.ENOTSUP, ["full", "plain"]),  # a network drive
        (True, errno.EINVAL, ["full", "plain"]),
        (False, 0, ["plain"]),
    ],
)
def test_a_volume_is_flushed_as_far_as_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mac: bool, refusal: int, asked: list[str]
) -> None:
    disk = Disk(monkeypatch, mac)
    disk.full_error = refusal
    replace_file(tmp_path / "a", b"bytes")
    assert (tmp_path / "a").read_bytes() == b"bytes"
    assert disk.asked == [*asked, "plain"]  # the file's bytes, then the folder's names
    disk.asked.clear()
    sync_file(tmp_path / "a")
    assert disk.asked == asked


def test_a_broken_disk_is_no_volume_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, mac=True)
    disk.full_error = disk.plain_error = errno.EIO
    with pytest.raises(DiskTrouble, match=r"cannot write .*a\.draft: Input/output error"):
        replace_file(tmp_path / "a", b"bytes")
    assert disk.asked == ["full", "plain"] and not (tmp_path / "a").exists()


def test_a_file_that_could_not_be_written_leaves_no_part_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a").write_bytes(b"before")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DiskTrouble, match="No space left on device"):
        replace_file(tmp_path / "a", b"x" * 1000)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"before"}


def test_a_folder_is_tried_before_anything_long_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new" / "deep", "--out x")
    asked: list[Path] = []
    monkeypatch.setattr(files.os, "access", lambda path, _: asked.append(path))
    with pytest.raises(DiskTrouble, match=f"^--out x: {tmp_path} cannot be written to; choose another folder$"):
        check_writable(tmp_path / "new" / "deep", "--out x")
    assert asked == [tmp_path]
