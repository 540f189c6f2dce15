"""Several ranks: the same losses as one process with as many batches, and a rank that dies ends all with a message."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import mlx.core as mx
import pytest
from run_files import FLAGS, train, untimed
from source_files import png, write

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.training import distributed as module
from mlx_pixword.training.distributed import RankLost, Ranks, find_ranks, own_part

LAUNCH = str(Path(sys.executable).parent / "mlx.launch")
STARTED: list[tuple["subprocess.Popen[str]", Path]] = []


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    for process, out in STARTED:
        for pid in [*processes(out).values(), *([process.pid] if process.poll() is None else [])]:
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    STARTED.clear()


def launch(out: Path, *flags: object, ranks: int = 2) -> "subprocess.Popen[str]":
    """Start a run of several ranks on this machine."""
    program = [sys.executable, "-m", "mlx_pixword.pretrain", *FLAGS, "--out", str(out), *map(str, flags)]
    command = [LAUNCH, "-n", str(ranks), "--backend", "ring", "--", *program]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    STARTED.append((process, out))
    return process


def processes(out: Path) -> dict[int, int]:
    """Process ids of a run's ranks, by rank."""
    found = {}
    for line in subprocess.run(
        ["ps", "-e", "-ww", "-o", "pid=,args="], capture_output=True, text=True
    ).stdout.splitlines():
        pid, _, words = line.strip().partition(" ")
        if f"--out {out}" in words and "mlx.launch" not in words and "-m mlx_pixword" in words:
            with suppress(OSError):  # a process may end between the two looks at it
                rank = re.search(r"\0MLX_RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_text())
                found |= {int(rank[1]): int(pid)} if rank else {}
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# --- alone ------------------------------------------------------------------------------------------------------------


def test_one_process_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in module._LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    ranks, array = find_ranks(1.0), mx.array([1.0, 2.0])
    assert ranks == Ranks() and ranks.first
    assert ranks.total(array) is array and ranks.average(array) is array and ranks.share(b"x") == b"x"
    ranks.agree(b"x", "data")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_share_the_batches_without_loss_or_repetition(size: int) -> None:
    batches = list(range(6))
    parts = [own_part(batches, Ranks(rank, size)) for rank in range(size)]
    assert sorted(batch for part in parts for batch in part) == batches and len({len(part) for part in parts}) == 1
    assert parts[0][0] == 0


def test_a_lost_connection_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_: mx.array) -> mx.array:
        raise RuntimeError("[ring] connection to a peer was lost")

    monkeypatch.setattr(module.mx.distributed, "all_sum", lost)
    with pytest.raises(RankLost, match=r"^rank 1 has lost another rank \(\[ring\] connection") as caught:
        Ranks(1, 2).total(mx.array(1.0))
    assert isinstance(caught.value, PixWordError)


def test_a_rank_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(module.os, "_exit", left.append)
    monkeypatch.setattr(module.mx.distributed, "all_sum", lambda array: time.sleep(0.3) or array)
    Ranks(0, 2, timeout=0.1).total(mx.array(1.0))
    assert left == [2]
    Ranks(0, 2, timeout=5).total(mx.array(1.0))
    assert left == [2]


# --- together ---------------------------------------------------------------------------------------------------------


def test_two_ranks_give_the_losses_of_one_with_twice_the_batch(tmp_path: Path) -> None:
    whole = train(tmp_path / "one", "--accumulate", 2, "--eval-every", 4, steps=8)
    process = launch(tmp_path / "two", "--accumulate", 1, "--eval-every", 4, "--steps", 4, "--save-every", 4)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.count("trained 4 steps") == 1 and output.count("model    tiny") == 1  # the first rank speaks
    shutil.copytree(tmp_path / "two", tmp_path / "resumed")
    train(tmp_path / "resumed", "--accumulate", 2, "--eval-every", 4, "--resume", steps=8)  # of one rank now
    assert len(untimed(tmp_path / "resumed")) == len(whole)
    process = launch(tmp_path / "two", "--accumulate", 1, "--eval-every", 4, "--steps", 8, "--resume")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    for one, other in zip(untimed(tmp_path / "resumed"), untimed(tmp_path / "two"), strict=True):
        assert one.keys() == other.keys()
        assert all(other[name] == pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in one.items())
    first_step = [untimed(tmp_path / name)[0] for name in ("one", "two")]
    assert first_step[0]["dense_loss"] == pytest.approx(first_step[1]["dense_loss"], rel=1e-5)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_others_with_a_message_and_a_whole_checkpoint(tmp_path: Path, victim: int) -> None:
    process, out = launch(tmp_path / "run", "--steps", 4000, "--save-every", 3), tmp_path / "run"
    wait_for(lambda: any((out / "checkpoints").glob("step-*")))
    pids = processes(out)
    assert set(pids) == {0, 1}
    os.kill(pids[victim], signal.SIGKILL)
    start = time.monotonic()
    wait_for(lambda: not processes(out), 30)
    output, _ = process.communicate(timeout=30)
    assert time.monotonic() - start < 30
    assert f"error: rank {1 - victim} has lost another rank" in output and "then go on with: python -m" in output
    assert "Traceback" not in output
    before = len(list((out / "checkpoints").glob("step-*")))
    assert before >= 1
    train(out, "--resume", steps=1)  # one rank, and nothing left to do: it only has to be readable
    assert (out / "final/config.json").exists()


def test_ctrl_c_on_one_rank_stops_all_at_the_same_step(tmp_path: Path) -> None:
    process, out = launch(tmp_path / "run", "--steps", 4000), tmp_path / "run"
    wait_for(lambda: (out / "metrics.jsonl").exists())
    os.kill(processes(out)[1], signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert "stopped after step" in output and "go on with: python -m" in output
    assert len(list((out / "checkpoints").glob("step-*"))) == 1
    assert "has lost another rank" not in output


def test_ranks_with_other_data_are_refused(tmp_path: Path) -> None:
    script = (
        "import os, sys; from mlx_pixword.pretrain import main; from mlx_pixword.common.cli import run_command\n"
        "run_command(lambda: main([*sys.argv[1:], '--seed', os.environ['MLX_RANK']]))"
    )
    (tmp_path / "program.py").write_text(script)
    command = [LAUNCH, "-n", "2", "--backend", "ring", "--", sys.executable, str(tmp_path / "program.py")]
    command += [*FLAGS, "--out", str(tmp_path / "run"), "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "1 of 2 ranks have data or a model other than rank 0" in done.stdout + done.stderr


# Each rank has a folder of its own, as on machines of their own.
PLACED = (
    "import os, sys; from mlx_pixword.pretrain import main; from mlx_pixword.common.cli import run_command\n"
    "os.chdir(os.environ['MLX_RANK']); run_command(lambda: main(sys.argv[1:]))"
)


def run_placed(folder: Path, *flags: object) -> "subprocess.CompletedProcess[str]":
    """Run two ranks on the data ``images`` in the folders 0 and 1."""
    (folder / "program.py").write_text(PLACED)
    command = [LAUNCH, "-n", "2", "--backend", "ring", "--cwd", str(folder), "--", sys.executable]
    command += [str(folder / "program.py"), *FLAGS, "--data", "images", "--out", str(folder / "run")]
    return subprocess.run([*command, *map(str, flags)], capture_output=True, text=True, timeout=300, check=False)


def test_ranks_go_on_with_data_that_changed_and_only_if_it_changed_for_all(tmp_path: Path) -> None:
    images = [tmp_path / str(rank) / "images" for rank in (0, 1)]
    for folder in images:
        for n in range(20):
            write(folder / f"{n:02d}.png", png((10 * n, 0, 0)))
    done = run_placed(tmp_path, "--steps", 2)
    assert done.returncode == 0, done.stderr
    for folder in images:
        write(folder / "new.png")
        (folder / "07.png").unlink()
    done = run_placed(tmp_path, "--steps", 3, "--resume")
    output = done.stdout + done.stderr
    assert done.returncode == 0 and "trained 3 steps" in output, output
    assert output.count("1 file appeared since the run began, not used: new.png") == 1
    assert output.count("1 file vanished since the run began: 07.png") == 1
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    (images[1] / "03.png").unlink()
    output = "".join(vars(run_placed(tmp_path, "--steps", 4, "--resume"))[name] for name in ("stdout", "stderr"))
    assert "1 of 2 ranks have data or a model other than rank 0; give all ranks the same" in output
    assert "Traceback" not in output and (tmp_path / "run/metrics.jsonl").read_bytes() == before
