"""Dispatch: on a Mac a kernel is used where it agrees with its reference and is as fast; it never changes a result.

There is no Metal here: the kernels are those of stand_in_kernels.py.
"""

import threading
import warnings
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from stand_in_kernels import (
    KERNEL,
    X,
    Y,
    become_a_mac,
    calls,
    equal,
    example,
    last_run,
    raising,
    wrong,
    wrong_gradient,
)

from mlx_pixword.common.errors import PixWordError, PixWordWarning
from mlx_pixword.ops import span_build
from mlx_pixword.ops.dispatch import choose as module
from mlx_pixword.ops.dispatch import trial
from mlx_pixword.ops.dispatch.choose import KernelError, decide, decisions, dispatch


@pytest.fixture(autouse=True)
def _mac(monkeypatch):
    become_a_mac(monkeypatch)


# --- decisions --------------------------------------------------------------------------------------------------------


def test_an_equal_and_faster_kernel_is_used():
    out, ran = last_run(KERNEL, X, Y, 2.0)
    assert ran == "metal" and np.array_equal(out, [1, -16, 6])
    (found,) = decisions()
    assert (found.kernel, found.verified, found.used, found.speed_up) == ("scaled", True, True, 2.0)
    assert found.shapes == "float32[3] float32[3] 2.0" and found.difference < 1


def test_an_equal_and_slower_kernel_is_not_used_and_nobody_is_warned(monkeypatch):
    monkeypatch.setattr(trial, "race", lambda runs: [2.0, 1.0])
    out, ran = last_run(KERNEL, X, Y, 2.0)
    assert ran == "reference" and np.array_equal(out, [1, -16, 6])
    (found,) = decisions()
    assert found.verified and not found.used and found.speed_up == 0.5


def test_every_shape_class_is_tried_once():
    tried = []
    kernel = replace(KERNEL, example=lambda *args: tried.append(args[0].shape) or example(*args))
    for x, factor in [(X, 2.0), (X, 2.0), (X[:2], 2.0), (X, 3.0), (X[None], 2.0), (X + 1, 2.0), (X[:2] + 1, 2.0)]:
        dispatch(kernel, x, x, factor)
    assert tried == [(3,), (2,), (3,), (1, 3)] and len(decisions()) == 4
    dispatch(kernel, X.astype(mx.float16), X.astype(mx.float16), 2.0)
    dispatch(replace(kernel, name="other"), X, X, 2.0)
    assert len(tried) == 6


def test_static_values_of_other_types_are_other_classes():
    kernel = replace(KERNEL, trained=False)
    for factor in (1, 1.0, True):
        dispatch(kernel, X, Y, factor)
    assert len(decisions()) == 3


def test_a_kernel_may_name_its_own_shape_classes():
    kernel = replace(KERNEL, shape_class=lambda x, y, factor: x.ndim)
    for x in (X, X[:2], X[None]):
        dispatch(kernel, x, x, 2.0)
    assert len(decisions()) == 2


def test_one_warning_a_kernel():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for x in (X, X[:2], X[:1], X):
            dispatch(replace(KERNEL, metal=wrong), x, x, 2.0)
            dispatch(replace(KERNEL, metal=raising, name="other"), x, x, 2.0)
    assert [str(w.message).split()[3] for w in caught] == ["scaled", "other"]
    assert caught[0].filename == __file__  # whoever called dispatch
    assert len(decisions()) == 6 and not any(found.used for found in decisions())


def test_a_correct_shape_class_is_used_beside_a_broken_one():
    def wrong_when_short(x, y, factor):
        return equal(x, y, factor) if x.size > 2 else wrong(x, y, factor)

    kernel = replace(KERNEL, metal=wrong_when_short)
    with pytest.warns(PixWordWarning):
        assert last_run(kernel, X[:2], Y[:2], 2.0)[1] == "reference"
    assert last_run(kernel, X, Y, 2.0)[1] == "metal"


def test_threads_try_a_kernel_once():
    tried = []
    kernel = replace(KERNEL, example=lambda *args: tried.append(1) or example(*args))
    threads = [threading.Thread(target=dispatch, args=(kernel, X, Y, 2.0)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tried == [1]


# --- inside traces ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metal", [equal, wrong, raising])
def test_gradients_and_compiled_functions(metal):
    kernel = replace(KERNEL, metal=metal)

    def loss(x, y):
        return mx.sum(dispatch(kernel, x, y, 2.0))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PixWordWarning)
        gradient = mx.grad(loss, (0, 1))
        for function in (gradient, mx.compile(gradient), lambda x, y: mx.grad(mx.checkpoint(loss), (0, 1))(x, y)):
            module._decisions.clear()
            dx, dy = function(X, Y)
            assert np.allclose(dx, 2 * Y) and np.allclose(dy, 2 * X)
            assert [found.used for found in decisions()] == [metal is equal]
        module._decisions.clear()
        assert mx.compile(loss)(X, Y).item() == -9 and len(decisions()) == 1


def test_a_trial_leaves_the_random_state_alone():
    mx.random.seed(3)
    plain = mx.random.uniform()
    mx.random.seed(3)
    decide(KERNEL, X, Y, 2.0)
    assert plain.item() == mx.random.uniform().item()


# --- PIXWORD_KERNELS --------------------------------------------------------------------------------------------------


def test_without_metal_the_reference_runs_and_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(module, "_metal_available", lambda: False)
    for value in ("on", "off", "verify"):
        monkeypatch.setenv("PIXWORD_KERNELS", value)
        assert np.array_equal(dispatch(replace(KERNEL, metal=wrong), X, Y, 2.0), [1, -16, 6])
    assert calls == ["reference"] * 3 and decisions() == []


def test_metal_is_for_the_gpu_alone(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    assert not module._metal_available()  # the default device is the CPU
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    assert module._metal_available()
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert not module._metal_available()


def test_off(monkeypatch):
    monkeypatch.setenv("PIXWORD_KERNELS", "off")
    dispatch(KERNEL, X, Y, 2.0)
    assert calls == ["reference"] and decisions() == []


@pytest.mark.parametrize("available", [True, False])
def test_other_values_are_refused(monkeypatch, available):
    monkeypatch.setattr(module, "_metal_available", lambda: available)
    monkeypatch.setenv("PIXWORD_KERNELS", "1")
    with pytest.raises(PixWordError, match="PIXWORD_KERNELS must be on, off or verify, got '1'"):
        dispatch(KERNEL, X, Y, 2.0)


def test_verify_compares_every_call_and_raises(monkeypatch):
    monkeypatch.setenv("PIXWORD_KERNELS", "verify")

    def wrong_when_large(x, y, factor):
        return mx.where(mx.abs(x) > 100, 0, equal(x, y, factor))

    kernel = replace(KERNEL, metal=wrong_when_large)
    assert np.array_equal(dispatch(kernel, X, Y, 2.0), [1, -16, 6])
    with pytest.raises(KernelError, match=r"scaled differs from its reference by .* times the tolerance"):
        dispatch(kernel, X * 100, Y, 2.0)
    with pytest.raises(RuntimeError, match="Unable to build"):
        dispatch(replace(KERNEL, metal=raising), X, Y, 2.0)
    assert decisions() == []


def test_verify_runs_the_kernel_though_it_is_slower(monkeypatch):
    monkeypatch.setenv("PIXWORD_KERNELS", "verify")
    monkeypatch.setattr(trial, "race", lambda runs: [2.0, 1.0])
    dispatch(KERNEL, X, Y, 2.0)
    assert calls[-1] == "metal"


def test_verify_compares_inside_gradients(monkeypatch):
    monkeypatch.setenv("PIXWORD_KERNELS", "verify")

    def gradient(metal):
        return mx.grad(lambda x, y: mx.sum(dispatch(replace(KERNEL, metal=metal), x * x, y, 2.0)), (0, 1))(X, Y)

    dx, dy = gradient(equal)
    assert np.allclose(dx, 4 * X * Y) and np.allclose(dy, 2 * X * X)
    for metal in (wrong, wrong_gradient):
        with pytest.raises(KernelError):
            gradient(metal)


def test_verify_in_a_compiled_function_is_as_on(monkeypatch):
    monkeypatch.setenv("PIXWORD_KERNELS", "verify")
    with pytest.warns(PixWordWarning):
        out = mx.compile(lambda x, y: dispatch(replace(KERNEL, metal=wrong), x, y, 2.0))(X, Y)
    assert np.array_equal(out, [1, -16, 6]) and len(decisions()) == 1


# --- forward alone, and launches that are refused ---------------------------------------------------------------------


def test_forward_alone_decides_for_itself(monkeypatch):
    """A kernel that is slow at gradients is used where nobody asks for any, and not in training."""
    probed = []

    def race(runs):
        probed.append(len(runs[0]()))
        return [1.0, 2.0] if probed[-1] == 1 else [2.0, 1.0]  # one result; or with the gradients of two arguments

    monkeypatch.setattr(trial, "race", race)
    with module.forward_only():
        assert last_run(KERNEL, X, Y, 2.0)[1] == "metal"
    assert last_run(KERNEL, X, Y, 2.0)[1] == "reference"
    with module.forward_only():
        assert last_run(KERNEL, X, Y, 2.0)[1] == "metal"
    assert probed == [1, 3] and [found.forward_only for found in decisions()] == [True, False]


def test_forward_alone_compares_no_gradients():
    with module.forward_only():
        assert last_run(replace(KERNEL, metal=wrong_gradient), X, Y, 2.0)[1] == "metal"
    with pytest.warns(PixWordWarning, match="times the tolerance"):
        assert last_run(replace(KERNEL, metal=wrong_gradient), X, Y, 2.0)[1] == "reference"


def test_a_kernel_without_gradients_is_tried_once():
    kernel = replace(KERNEL, trained=False)
    dispatch(kernel, X, Y, 2.0)
    with module.forward_only():
        dispatch(kernel, X, Y, 2.0)
    assert len(decisions()) == 1


def test_what_reads_and_scores_asks_for_the_forward_pass_alone(small_model, monkeypatch):
    """Held-out losses, likelihood, prompts of words and of drawings; a training step does not."""
    from mlx_pixword.evaluation.meter import LossMeter
    from mlx_pixword.inference.growing_images import GrowingImages
    from mlx_pixword.inference.likelihood import score_document
    from mlx_pixword.inference.settings import SampleArgs
    from mlx_pixword.inference.words import generate_words
    from mlx_pixword.model.batch import collate
    from mlx_pixword.model.document import BOS, ImageTokens, make_document
    from mlx_pixword.ops import conditional_attention, window_attention
    from mlx_pixword.pixels.windows import to_windows

    model = small_model()
    image = ImageTokens(*to_windows(np.zeros((4, 4), np.int32), 4, model.args.num_pix), 4, 4)
    document = make_document([[BOS, 7], image, [5]])
    asked = []

    def noted(kernel, *args):
        asked.append(module._forward_only.get())
        return kernel.reference(*args)

    for operation in (window_attention, conditional_attention):
        monkeypatch.setattr(operation, "dispatch", noted)
    batch = collate([[document]], model.args)
    for reads in (
        lambda: LossMeter(model, 64).add([document]),
        lambda: score_document(model, document),
        lambda: next(generate_words(model, batch, SampleArgs(max_tokens=1))),
        lambda: GrowingImages(model, [document], [2]),
    ):
        asked.clear()
        reads()
        assert asked and all(asked)
    asked.clear()
    model.forward(batch)
    assert asked and not any(asked)


def test_a_launch_that_is_refused_falls_back_with_one_warning():
    """At the trial, as MLX refuses a threadgroup that the pipeline's registers have no room for."""

    def refused(x, y, factor):
        raise ValueError("Thread group size (512) is greater than the maximum allowed threads per threadgroup (384).")

    with pytest.warns(PixWordWarning, match="Thread group size") as caught:
        for x in (X, X[:2]):
            assert last_run(replace(KERNEL, metal=refused), x, x, 2.0)[1] == "reference"
    assert len(caught) == 1


def test_a_refused_launch_is_tried_again_in_narrower_threadgroups(monkeypatch):
    """And so are the other classes, whose texts change with it."""
    monkeypatch.setattr(span_build, "MOST_SIMDGROUPS", 16)
    widths = []

    def refused_when_wide(x, y, factor):
        widths.append(span_build.widest())
        if widths[-1] > 8:
            raise ValueError(
                "Thread group size (512) is greater than  the maximum allowed threads per threadgroup (384)."
            )
        return equal(x, y, factor)

    kernel = replace(
        KERNEL, metal=refused_when_wide, narrow=span_build.narrow,
        shape_class=lambda x, y, factor: (x.size, span_build.widest()),
    )  # fmt: skip
    assert last_run(kernel, X[:2], Y[:2], 2.0)[1] == "metal" and widths[:2] == [16, 8]
    assert last_run(kernel, X, Y, 2.0)[1] == "metal" and set(widths[2:]) == {8}
    assert len(decisions()) == 2 and all(found.used for found in decisions())
    monkeypatch.setattr(span_build, "MOST_SIMDGROUPS", 4)
    assert not span_build.narrow()


@pytest.mark.parametrize("widest", [16, 8, 4])
def test_narrower_builds_read_more_and_stay_within_the_limits(monkeypatch, widest):
    monkeypatch.setattr(span_build, "MOST_SIMDGROUPS", widest)
    for size in (16, 64, 128):
        for kernel in (span_build.FORWARD, span_build.QUERY_GRAD, span_build.KEY_GRAD):
            task = span_build.Task(kernel, size, 4, 512, 256, False, 256)
            build = span_build.choose_build(task)
            assert build.simdgroups <= widest and span_build.registers(task, build) <= 96


def test_a_launch_that_is_refused_after_its_trial_falls_back_too():
    def refused_later(x, y, factor):
        if decisions():
            raise ValueError("refused")
        return equal(x, y, factor)

    kernel = replace(KERNEL, metal=refused_later)
    with pytest.warns(PixWordWarning, match="refused") as caught:
        for _ in range(3):
            assert np.array_equal(dispatch(kernel, X, Y, 2.0), [1, -16, 6])
    assert len(caught) == 1 and calls[-1] == "reference" and [found.used for found in decisions()] == [False]
