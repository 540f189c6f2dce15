"""Several margins around an image for one reading: the same text in other windows, and the mean of what each says."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

import mlx_pixword as pw
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.generate import main
from mlx_pixword.inference import word_steps
from mlx_pixword.inference.margins import MARGINS, with_margins, with_paper
from mlx_pixword.inference.settings import SampleArgs
from mlx_pixword.inference.words import generate_words
from mlx_pixword.inputs.processor import Processor
from mlx_pixword.model.calibration import MOST_MARGINS, Calibration
from mlx_pixword.model.document import EOS, WINDOW, Document
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.pixels.colors import fold_colors
from mlx_pixword.pixels.windows import from_windows
from mlx_pixword.weights.directory import load, save_model

Build = Callable[..., PixWordModel]


@pytest.fixture
def picture(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)


def confident(model: PixWordModel) -> PixWordModel:
    model.head.weight = model.head.weight * 8
    return model


# --- what a margin is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", MARGINS)
def test_paper_has_the_median_colour_of_the_border(small_model: Build, margin: tuple[int, int, int, int]) -> None:
    args = small_model().args
    rgb = np.full((6, 9, 3), (250, 130, 10), np.uint8)
    rgb[0, :3], rgb[2:4, 2:7] = 0, 255  # ink that touches the border, and other ink
    image = Processor(args).image(rgb)
    wider = with_paper(image, margin, args)
    above, below, left, right = margin
    assert (wider.height, wider.width) == (6 + above + below, 9 + left + right)
    tokens = from_windows(wider.windows, wider.height, wider.width, args.window_size)
    inside = tokens[above : above + 6, left : left + 9]
    assert np.array_equal(inside, fold_colors(rgb, args.fold_factor))
    paper = int(fold_colors(rgb[5, 5], args.fold_factor))
    assert (tokens == paper).sum() == (inside == paper).sum() + tokens.size - inside.size


def test_there_are_as_many_margins_as_the_most_and_the_first_is_empty() -> None:
    assert len(set(MARGINS)) == len(MARGINS) == MOST_MARGINS and not any(MARGINS[0])


def test_rows_become_rows_of_each_margin(small_model: Build, picture: np.ndarray) -> None:
    args = small_model().args
    processor = Processor(args)
    batch = processor.batch([[picture, [8, 9]], [picture[:5]]])
    again, margins = with_margins(batch, args, 3, 10)
    rows = [document for (document,) in again.documents]
    assert margins == 3 and len(rows) == 6
    for n, ((document,), height) in enumerate(zip(batch.documents, (9, 5), strict=True)):
        first, *others = rows[3 * n : 3 * n + 3]
        assert np.array_equal(first.elements, document.elements)
        assert [other.images[0].height for other in others] == [height + 2, height + 3]
        for other in others:
            assert (other.elements == WINDOW).sum() == len(other.images[0].lengths)
            assert other.elements[other.elements != WINDOW].tolist() == [i for i in document.elements if i != WINDOW]


def test_other_documents_are_read_once(small_model: Build, picture: np.ndarray) -> None:
    """Words alone, two images, the first windows of an image."""
    args = small_model().args
    processor = Processor(args)
    whole = processor.document([picture])
    image = replace(whole.images[0], windows=whole.images[0].windows[:2], lengths=whole.images[0].lengths[:2])
    part = Document(np.array([1, 4, WINDOW, WINDOW], np.int32), (image,))
    for document in (processor.document([[8, 9]]), processor.document([picture, picture]), part):
        batch = processor.batch([[picture]])
        mixed = replace(batch, documents=((whole,), (document,)))
        assert with_margins(mixed, args, 3, 10) == (mixed, 1)


def test_a_margin_that_does_not_fit_is_left_out(small_model: Build, picture: np.ndarray) -> None:
    args = small_model().args
    batch = Processor(args).batch([[picture[:8, :12]]])  # 2 x 3 windows
    length, small = len(batch.documents[0][0]), (Processor(args).document([picture[:4, :4]]),)
    words = args.max_seq_len + 1 - length  # with which the document alone just fits
    assert with_margins(batch, args, 3, words) == (batch, 1)
    both, margins = with_margins(replace(batch, documents=(*batch.documents, small)), args, 3, words)
    assert margins == 3 and [len(row[0]) for row in both.documents[:3]] == [length] * 3
    assert len(both.documents[5][0]) > len(small[0])
    rows, _ = with_margins(batch, args, 3, words - 8)
    assert len(rows.documents[2][0]) == length + 6  # 3 x 4 windows


# --- readings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numpy_steps", [True, False])
@pytest.mark.parametrize("sampling", [{}, {"temp": 1.5, "seed": 3}, {"repetition_penalty": 1.7}])
def test_the_probability_is_the_geometric_mean_over_margins(
    small_model: Build,
    picture: np.ndarray,
    numpy_steps: bool,
    sampling: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the likelihoods of the same words behind each padded picture, in passes of their own."""
    monkeypatch.setattr(word_steps, "SMALL", word_steps.SMALL if numpy_steps else 0)
    model = confident(small_model())
    processor = Processor(model.args)
    reading = pw.read(model, processor, picture, max_tokens=5, margins=3, **sampling)
    words = [int(word) for word in reading.text.split()] + [EOS] * reading.finished
    (document,) = processor.batch([[picture]]).documents[0]
    scores = []
    for margin in MARGINS[:3]:
        image = with_paper(document.images[0], margin, model.args)
        scores.append(float(pw.log_likelihood(model, processor([image, words])).words[1:].sum()))
    assert len(set(np.round(scores, 3))) == 3
    assert reading.log_probability == pytest.approx(np.mean(scores), abs=1e-4)


def test_a_greedy_word_is_the_likeliest_of_the_mean(small_model: Build, picture: np.ndarray) -> None:
    model = confident(small_model())
    processor = Processor(model.args)
    (document,) = processor.batch([[picture]]).documents[0]
    means = np.zeros(model.args.vocab_size)
    for margin in MARGINS:
        logits = model(processor([with_paper(document.images[0], margin, model.args)]))[0, -1, : len(means)]
        means += np.array(logits - mx.logsumexp(logits))
    means[[0, 1, 3, 4, 5]] = -np.inf  # <unk>, <s>, <pad> and the images' marks
    step = next(generate_words(model, processor.batch([[picture]]), SampleArgs(margins=MOST_MARGINS)))
    assert step.words == [int(means.argmax())]


def test_images_read_together_and_alone_agree(small_model: Build, rng: np.random.Generator) -> None:
    model = confident(small_model())
    processor = Processor(model.args)
    pictures = [rng.integers(0, 256, (4 + n, 9, 3), dtype=np.uint8) for n in range(3)]
    together = list(generate_words(model, processor.batch([[one] for one in pictures]), SampleArgs(6, margins=2)))
    for n, one in enumerate(pictures):
        alone = list(generate_words(model, processor([one]), SampleArgs(6, margins=2)))
        assert [step.words[n] for step in together] == [step.words[0] for step in alone]


# --- how many ---------------------------------------------------------------------------------------------------------


def test_a_model_reads_in_the_margins_that_it_was_calibrated_with(
    small_model: Build, picture: np.ndarray, tmp_path: Any
) -> None:
    model = confident(small_model())
    processor = Processor(model.args)
    one, three = (pw.read(model, processor, picture, margins=margins).log_probability for margins in (1, 3))
    assert one == pw.read(model, processor, picture).log_probability != three
    model.calibration = Calibration(0.5, 0.1, 3)
    assert pw.read(model, processor, picture).log_probability == three
    save_model(model, processor.tokenizer, tmp_path / "saved")
    kept, processor = load(tmp_path / "saved")
    assert kept.calibration == Calibration(0.5, 0.1, 3)
    assert pw.read(kept, processor, picture).log_probability == pytest.approx(three, abs=1e-5)
    single = pw.read(kept, processor, picture, margins=1)
    assert single.log_probability == pytest.approx(one, abs=1e-5)
    assert single.confidence == pytest.approx(np.exp(one), rel=1e-4)  # it was not calibrated with one margin
    for margins in (0, 3, 5):
        several = pw.read(kept, processor, picture, margins=margins)
        assert several.confidence == pytest.approx(Calibration(0.5, 0.1)(several.log_probability), rel=1e-6)


@pytest.mark.parametrize("margins", [0, 9, 2.5, True, "3"])
def test_a_number_of_margins_that_cannot_be_is_refused(margins: Any) -> None:
    with pytest.raises(PixWordError, match="_calibration"):
        Calibration.from_config({"_calibration": {"slope": 1.0, "offset": 0.0, "margins": margins}})


def test_the_command_line_reads_in_as_many_as_it_is_told(
    picture: np.ndarray, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    found = []
    for margins in ("1", "4"):
        main(["--image", str(tmp_path / "a.png"), "--jsonl", "--margins", margins])
        found.append(capsys.readouterr().out)
    assert found[0] != found[1]
    with pytest.raises(PixWordError, match="--margins must be 1 to 8, or 0"):
        main(["--image", str(tmp_path / "a.png"), "--margins", "9"])
