"""Decoding in other processes: the same pixels, and no file that crashes or stalls more than its own decoder."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from source_files import open_descriptors, png, write_zip

from mlx_pixword.common.errors import BadImage
from mlx_pixword.data import decoders as module
from mlx_pixword.data.decoders import Decoders
from mlx_pixword.data.pictures import FilePicture
from mlx_pixword.data.plates import PlateSource
from mlx_pixword.data.sources import open_source

REPLACED = """
import os, signal, sys, time
sys.path[:] = {path!r}
import mlx_pixword.data.decode_worker as worker
def decode(file, size, original=worker.decode):
    {what}
    return original(file, size)
worker.decode = decode
worker.main()
"""


def decoding(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Let every decoder do something first."""
    monkeypatch.setattr(module, "_PROGRAM", REPLACED.replace("{what}", what))


def photo(folder: Path, name: str = "a.png", size: tuple[int, int] = (50, 30)) -> FilePicture:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return FilePicture(folder / name)


# --- pixels -----------------------------------------------------------------------------------------------------------


def test_pixels_are_those_of_this_process(tmp_path: Path) -> None:
    pictures = [photo(tmp_path, name) for name in ("a.png", "b.jpg", "ü \udcff.png")]
    archive = open_source(write_zip(tmp_path / "a.zip", {"x.png": png("blue")}))
    pictures += [part for part in archive.parts(0) if not isinstance(part, str)]
    with Decoders() as decoders:
        for picture in pictures:
            for size in (16, 224):
                np.testing.assert_array_equal(decoders.rgb(picture, size), picture.rgb(size))


def test_large_answers_and_requests_pass(tmp_path: Path) -> None:
    picture = photo(tmp_path, size=(900, 800))
    archive = open_source(write_zip(tmp_path / "a.zip", {"x.png": picture.path.read_bytes()}))
    with Decoders() as decoders:
        assert decoders.rgb(picture, 2000).shape == (800, 900, 3)
        np.testing.assert_array_equal(decoders.rgb(archive.parts(0)[0], 2000), picture.rgb(2000))  # type: ignore[arg-type]


def test_reasons_are_those_of_this_process(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(photo(tmp_path).path.read_bytes()[:100])
    (tmp_path / "no.png").write_text("nothing")
    (tmp_path / "folder.png").mkdir()
    with Decoders() as decoders:
        for name in ("cut.png", "no.png", "folder.png", "absent.png"):
            reasons = []
            for rgb in (decoders.rgb, lambda picture, size: picture.rgb(size)):
                with pytest.raises(BadImage) as caught:
                    rgb(FilePicture(tmp_path / name), 16)
                reasons.append(str(caught.value))
            assert reasons[0] == reasons[1]
        assert decoders.rgb(photo(tmp_path), 16).shape[2] == 3


def test_pictures_that_are_no_files_are_drawn_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_Worker", None)
    with Decoders() as decoders:
        assert decoders.rgb(PlateSource().plate(0), 64).shape == (12, 28, 3)


def test_as_many_processes_as_threads_and_none_left(tmp_path: Path) -> None:
    picture, before = photo(tmp_path), open_descriptors()
    with Decoders() as decoders, ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: decoders.rgb(picture, 16), range(60)))
        assert 1 <= len(decoders._idle) <= 3
        processes = [worker._process for worker in decoders._idle]
    assert all(process.poll() is not None for process in processes)
    assert open_descriptors() == before


# --- files that do harm -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_is_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    picture = photo(tmp_path)
    decoding(monkeypatch, f"if file.name.endswith('bad.png'): os.kill(os.getpid(), {int(number)})")
    with Decoders() as decoders:
        decoders.rgb(picture, 16)
        with pytest.raises(BadImage, match=rf"^it crashes the decoder \(status -{int(number)}\)$"):
            decoders.rgb(photo(tmp_path, "bad.png"), 16)
        assert decoders.rgb(picture, 16).shape == (9, 16, 3)


def test_one_crash_may_be_the_machines_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "crashed"
    decoding(monkeypatch, f"if not os.path.exists({str(mark)!r}): open({str(mark)!r}, 'w'); os.abort()")
    with Decoders() as decoders:
        assert decoders.rgb(photo(tmp_path), 16).shape == (9, 16, 3)
    assert mark.exists()


def test_a_file_that_never_ends_is_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding(monkeypatch, "while True: pass")
    start = time.monotonic()
    with Decoders(0.3) as decoders, pytest.raises(BadImage, match=r"^decoding takes longer than 0\.3 seconds$"):
        decoders.rgb(photo(tmp_path), 16)
    assert time.monotonic() - start < 10


def test_nobody_waits_for_a_pipe_that_nobody_writes_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    picture = FilePicture(tmp_path / "pipe.png")
    with Decoders(1000.0) as decoders:
        for decode in (decoders.rgb, lambda picture, size: picture.rgb(size)):
            with pytest.raises(BadImage, match=r"^cannot be read: a pipe or a device, and no file$"):
                decode(picture, 16)


def test_too_much_memory_is_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding(monkeypatch, "bytearray(8 * 2**30)")
    with Decoders() as decoders, pytest.raises(BadImage, match="cannot be read: MemoryError"):
        decoders.rgb(photo(tmp_path), 16)


def test_a_decoder_outlives_a_long_rest(tmp_path: Path) -> None:
    picture = photo(tmp_path)
    with Decoders(0.2) as decoders:
        decoders.rgb(picture, 16)
        time.sleep(2.5)  # longer than both limits of a file
        decoders.rgb(picture, 16)


# --- the parent -------------------------------------------------------------------------------------------------------

PARENT = """
import sys, threading, time
from pathlib import Path
from mlx_pixword.data import decoders
from mlx_pixword.data.pictures import FilePicture
decoders._PROGRAM = sys.argv[3] or decoders._PROGRAM
with decoders.Decoders(1.0) as pool:
    threading.Thread(target=pool.rgb, args=(FilePicture(Path(sys.argv[1])), 16), daemon=True).start()
    time.sleep(float(sys.argv[2]))
    print("ready", flush=True)
    time.sleep(60)
"""


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if int(line.split()[1]) == pid]


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and "Z" not in state


@pytest.mark.parametrize("what", ["idle", "stalled"])
def test_decoders_die_with_their_parent(tmp_path: Path, what: str) -> None:
    picture = photo(tmp_path)
    program = REPLACED.replace("{what}", "while True: pass") if what == "stalled" else ""
    command = [sys.executable, "-c", PARENT, str(picture.path), "0.6" if what == "stalled" else "1.5", program]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    (child,) = children(parent.pid)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    end = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_ctrl_c_is_the_parents_business(tmp_path: Path) -> None:
    picture = photo(tmp_path)
    with Decoders() as decoders:
        decoders.rgb(picture, 16)
        os.kill(decoders._idle[0]._process.pid, signal.SIGINT)
        decoders.rgb(picture, 16)
        assert threading.active_count() >= 1
