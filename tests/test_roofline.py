"""The benchmark of the machine's limits: what it counts, and that a share is of the machine's own rate."""

import time
from dataclasses import replace

import numpy as np
import pytest
import roofline
import train_step
from shared.torch_first import TORCH_SIDES
from shared.workload import Job, make_job, square_document

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.planning.costs import Load, training_flops

ARGS = roofline.RooflineArgs(rounds=3, seconds=0.02)


def test_a_rate_is_the_amount_over_the_time_of_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], list[int]()

    def work() -> None:
        calls.append(1)
        clock[0] += 0.004 if len(calls) < 13 else 1.0  # the last round meets a busy machine

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert roofline.rate((2e6, work), ARGS) == pytest.approx(0.5)  # two million in four milliseconds, in billions
    assert len(calls) == 2 + 3 * 5
    assert roofline.reads(2**20)[0] == 2**20 and roofline.products()[0] == 2 * roofline.PRODUCT**3


def test_a_repeated_window_is_counted_once() -> None:
    job = make_job("tiny-noise", images=2)
    plain = square_document(np.random.default_rng(0), job.model, 32, levels=1)  # 64 windows, all the same
    noise = job.steps[0][0]
    flops = roofline.step_flops(Job(job.model, job.train, [[plain], [noise]]))
    asked = [training_flops(job.model, Load(1, len(noise), count)) for count in (1, 64)]
    assert flops == sum(asked) / 2 and asked[0] < asked[1]


def test_the_peer_is_also_compiled_where_asked() -> None:
    args = train_step.TrainStepArgs()
    assert args.sides == ["ours", "peer"]
    assert replace(args, compiled=True, plain=True).sides == ["ours", "peer", "peer-compiled", "ours-plain"]
    assert "peer-compiled" in TORCH_SIDES


@pytest.mark.parametrize("flags", [["--rounds", "0"], ["--size", "8"], ["--seconds", "inf"]])
def test_mistakes_are_named(flags: list[str]) -> None:
    with pytest.raises(PixWordError, match="must be at least 1, --size at least 16 and --seconds positive"):
        roofline.main(flags)
