"""Drawn plates are read by a model: the share that says what was asked for, beside that of the plates themselves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drawn_plates
import numpy as np
import pytest
from PIL import Image

import mlx_pixword as pw
from mlx_pixword.data.plates import HEIGHT, WIDTH, PlateSource
from mlx_pixword.inference.read import Reading
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.network import PixWordModel


def test_the_share_that_is_read_as_prompted(
    small_model: Callable[..., PixWordModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tokenizer = train_tokenizer([PlateSource(0).plate(n).text for n in range(50)], 300)
    args = small_model(vocab_size=tokenizer.vocab_size).args
    folder = pw.save_model(PixWordModel(args, pixel_queries=2), tokenizer, tmp_path / "model")
    plates = [PlateSource(1, reserved=True).plate(n) for n in range(4)]
    seen = list[np.ndarray]()

    def read_batch(model: Any, processor: pw.Processor, batch: pw.Batch, max_tokens: int) -> list[Reading]:
        """Reads plates themselves, with other spaces, and of what was drawn the first one."""
        found = list[Reading]()
        for (document,), plate in zip(batch.documents, plates, strict=True):
            seen.append(np.asarray(processor.picture(document.images[0])))
            itself = processor.picture(processor.image(Image.fromarray(plate.draw())))
            right = np.array_equal(seen[-1], np.asarray(itself)) or len(seen) == 1
            found.append(Reading(f" {plate.text}" if right else plate.text + "1", 0.0, 1.0, ()))
        return found

    monkeypatch.setattr(drawn_plates, "read_batch", read_batch)
    drawn_plates.main(["--model", str(folder), "--reader", str(folder), "--count", "4"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["drawn"][0] == 0.25 and result["held_out"][0] == 1.0 and result["held_out"][2] == 1.0
    assert all(picture.shape == (HEIGHT, WIDTH, 3) for picture in seen) and len(seen) == 8
    prompted = pw.generate_images(*pw.load(folder), prompts=[plate.text for plate in plates], size=(12, 28), seed=1)
    assert np.array_equal(seen[2], np.asarray(prompted[2]))
