"""What few bits a weight cost: exact match and bits of held-out plates, size on disk, speed of reading.

    python benchmarks/quantized.py --model runs/pretrain/final --count 3000

`--preset upw-120m` measures the sizes alone, of a model of that shape with random weights.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from shared.record import keep, with_machine

import mlx_pixword as pw
from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting
from mlx_pixword.config.run import PRESETS, make_config
from mlx_pixword.data.plates import PlateSource
from mlx_pixword.evaluation.scores import wilson
from mlx_pixword.inference.likelihood import score_document
from mlx_pixword.inference.words import generate_batch
from mlx_pixword.weights.quantized import quantize_model

ROWS = 64  # plates read together
FORMS = {"float32": 0, "8 bits": 8, "4 bits": 4}


@dataclass(frozen=True)
class QuantizedArgs:
    """Exact match, bits and sizes of a model in float32, in 8 and in 4 bits."""

    model: str = setting("", "model folder that reads plates", metavar="DIR_OR_REPO")
    preset: str | None = setting(None, "sizes alone, of this shape with random weights", choices=tuple(PRESETS))
    count: int = setting(3000, "held-out plates to read")
    scored: int = setting(200, "of these, plates whose likelihood is taken")
    seed: int = setting(1, "seed of the plates")
    save: Path | None = setting(None, "folder to keep the JSON in, such as benchmarks/results", metavar="DIR")

    def __post_init__(self) -> None:
        if bool(self.model) == bool(self.preset):
            raise PixWordError("give --model or --preset, one of the two")
        if self.count < 1 or not 1 <= self.scored <= self.count:
            raise PixWordError(f"--count and --scored must be positive, got {self.count} and {self.scored}")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table and a line of JSON."""
    args = parse(QuantizedArgs, "benchmarks/quantized.py", argv)
    rows = {form: _measure(args, bits) for form, bits in FORMS.items()}
    whole = rows["float32"]["bytes"]
    for form, row in rows.items():
        row["of_float32"] = round(row["bytes"] / whole, 4)
        print(f"{form:<8}" + "".join(f"  {name} {value}" for name, value in row.items()))
    asked = {"preset": args.preset} if args.preset else {"plates": args.count, "scored": args.scored, "seed": args.seed}
    result = with_machine({"benchmark": "quantized", "forms": rows, **asked})
    print(json.dumps(result))
    if args.save:
        keep(result, args.save)


def _measure(args: QuantizedArgs, bits: int) -> dict[str, Any]:
    """One form of the model, as it comes back from disk."""
    if args.preset:
        model, tokenizer = pw.PixWordModel(make_config({"preset": args.preset}).model), None
    else:
        model, processor = pw.load(args.model, master=True)
        tokenizer = processor.tokenizer
    if bits:
        quantize_model(model, bits)
    with tempfile.TemporaryDirectory() as folder:
        place = pw.save_model(model, tokenizer, Path(folder) / "model")
        size = sum(path.stat().st_size for path in place.glob("*.safetensors"))
        del model
        if args.preset:
            return {"bytes": size}
        return {"bytes": size} | _scores(*pw.load(place), args)


def _scores(model: pw.PixWordModel, processor: pw.Processor, args: QuantizedArgs) -> dict[str, Any]:
    source = PlateSource(args.seed, reserved=True)
    plates = [source.plate(n) for n in range(args.count)]
    images = [Image.fromarray(plate.draw()) for plate in plates]
    start, right = time.perf_counter(), 0
    for n in range(0, len(images), ROWS):
        read = generate_batch(model, processor, processor.batch([[image] for image in images[n : n + ROWS]]))
        right += sum(text == plate.text for text, plate in zip(read, plates[n : n + ROWS], strict=True))
    seconds = time.perf_counter() - start
    nats = words = 0.0
    for image, plate in zip(images[: args.scored], plates, strict=False):
        spelled = processor.tokenizer.encode(plate.text) if processor.tokenizer else []
        of_words, of_pixels = score_document(model, processor.document([image, spelled], closed=True))
        nats -= float(of_pixels.sum(dtype=float))
        words -= float(of_words[-len(spelled) - 1 :].sum(dtype=float))  # and `</s>`
    return {
        "exact_match": round(right / len(plates), 5),
        "exact_match_95": [round(value, 5) for value in wilson(right, len(plates))],
        "bits_a_plate": round(nats / np.log(2) / args.scored, 2),
        "word_bits_a_plate": round(words / np.log(2) / args.scored, 4),
        "plates_a_second": round(len(plates) / seconds, 1),
    }


if __name__ == "__main__":
    run_command(main)
