"""Small text on real images: prepare crops from sets that you fetch yourself, and read them with several engines.

python benchmarks/real_text.py --prepare --sroie DIR --plates DIR --iiit5k DIR --meters DIR --pdfs DIR --crops real_text
python benchmarks/real_text.py --crops real_text --engine ours,rapidocr,tesseract
python benchmarks/real_text.py --crops real_text --sets sroie-8 --one-core --limit 200

Nothing of these sets is part of this repository. Each is split in thirds by document (receipt, PDF, plate, word image,
meter): pretraining (labels unused), development, closed. The closed third is opened once, with --part closed. Ours is
the reader that comes with the library, or --model; of its confidences the expected calibration error is told.

SROIE     numbers of scanned receipts at 16, 12, 8 and 6 px of line height; github zzzDavid/ICDAR-2019-SROIE (MIT for
          the code, the scans are of ICDAR 2019's competition): data/img, data/box
plates    plates without their province, at 94x24, half and a third of it; github sirius-ai/LPRNet_Pytorch (Apache
          2.0): data/test
IIIT5K    words at most 20 px high, case ignored; github gsy-cv/IIIT5K (for research; Mishra et al., BMVC 2012)
meters    single digits of meters; github haverland/Tenth-of-step-of-a-meter-digit (Apache 2.0)
PDF       words of any folder of PDFs, rendered by poppler (pdftoppm, pdftotext) at 30 to 72 dpi. Some that Debian's
          packages hold, which need not be installed for it:
          apt-get download r-doc-pdf gnuplot-doc debian-policy maint-guide developers-reference debian-faq octave-doc
          apt-get download maxima-doc doxygen-doc ghostscript-doc libtasn1-doc ledger debian-reference-en aspell-doc
          apt-get download texlive-fonts-recommended-doc
          for package in *.deb; do dpkg-deb -x $package pdfs; done
"""

import mlx_pixword  # noqa: F401  # isort: skip  (before mlx, so that Linux finds OpenBLAS)

import base64
import csv
import gzip
import hashlib
import io
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from shared.record import keep, with_machine

from mlx_pixword.common.blas import limit_threads
from mlx_pixword.common.cli import notice, parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting
from mlx_pixword.data.text_file import SUFFIX, write_text_file
from mlx_pixword.evaluation.scores import calibration_error, wilson
from mlx_pixword.inference.read import Reading, read_batch
from mlx_pixword.weights.directory import load

RESULTS = Path(__file__).parent / "results"
PARTS = ("pretraining", "development", "closed")
NUMBER = re.compile(r"[\d.,:/\-]*\d[\d.,:/\-]*")
LONGEST = 12  # characters of a number or a word
PDF_PAGES = ("-f", "3", "-l", "12")  # behind the title
PDF_WORDS = 400  # of a document, evenly chosen
Crop = tuple[np.ndarray, str, str]  # pixels uint8 [height, width, 3], what it says, the document that it is of


@dataclass(frozen=True)
class RealTextArgs:
    """Prepare crops of real small text, or read them and print exact match by set."""

    prepare: bool = setting(False, "cut the crops out of the sets given, instead of reading them")
    sroie: Path | None = setting(None, "clone of zzzDavid/ICDAR-2019-SROIE", metavar="DIR")
    plates: Path | None = setting(None, "clone of sirius-ai/LPRNet_Pytorch", metavar="DIR")
    iiit5k: Path | None = setting(None, "clone of gsy-cv/IIIT5K", metavar="DIR")
    meters: Path | None = setting(None, "clone of haverland/Tenth-of-step-of-a-meter-digit", metavar="DIR")
    pdfs: Path | None = setting(None, "folder with PDF files", metavar="DIR")
    crops: Path = setting(Path("real_text"), "folder of the crops", metavar="DIR")
    sets: str = setting("", "names of sets such as sroie-6, with commas between; all where it is empty")
    engine: str = setting("ours", "any of ours, rapidocr and tesseract, with commas between")
    model: str | None = setting(
        None, "model of ours (default: the reader that comes with the library)", metavar="DIR_OR_REPO"
    )
    margins: int = setting(0, "margins in which ours reads a crop; 0: the model's own number")
    one_core: bool = setting(False, "read one crop at a time on one core, and tell the median of the times (Linux)")
    part: str = setting("development", "third to read", choices=PARTS)
    limit: int = setting(1000, "crops of a set to read, 0 for all")
    save: bool = setting(False, "keep the result in benchmarks/results")


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare, or read and print."""
    args = parse(RealTextArgs, "benchmarks/real_text.py", argv)
    if args.prepare:
        prepare(args)
        return
    if args.one_core:
        stay_on_one_core()
    names = [name.strip() for name in args.engine.split(",")]
    if unknown := [name for name in names if name not in ENGINES]:
        raise PixWordError(f"--engine takes {', '.join(ENGINES)}, got {unknown[0]!r}")
    sets = [path for path in sorted(args.crops.glob(f"*-{args.part}{SUFFIX}"))
            if wanted(path.name.removesuffix(f"-{args.part}{SUFFIX}"), args)]  # fmt: skip
    if not sets:
        which = f"crops of {args.sets}" if args.sets else "crops"
        raise PixWordError(f"--crops {args.crops} holds no {which} of the part {args.part}; make them with --prepare")
    scores = {name: score(ENGINES[name](args), sets, args) for name in names}
    if args.save:
        model = Path(args.model).name if args.model else "reader"
        how = {"part": args.part, "model": model, "one_core": args.one_core, "margins": args.margins}
        keep(with_machine({"benchmark": "real_text", **how, "scores": scores}), RESULTS)


# --- crops ------------------------------------------------------------------------------------------------------------


def prepare(args: RealTextArgs) -> None:
    """Write a file of crops for each set, size and third."""
    args.crops.mkdir(parents=True, exist_ok=True)
    makers: list[tuple[str, Path | None, Callable[[Path], Iterator[Crop]]]] = [
        *[(f"sroie-{height}", args.sroie, lambda d, h=height: sroie(d, h)) for height in (16, 12, 8, 6)],
        *[(f"plates-{94 // k}x{24 // k}", args.plates, lambda d, k=k: plates(d, k)) for k in (1, 2, 3)],
        ("iiit5k", args.iiit5k, iiit5k),
        ("meters", args.meters, meters),
        *[(f"pdf-{dpi}", args.pdfs, lambda d, r=dpi: pdf_words(d, r)) for dpi in (30, 36, 48, 60, 72)],
    ]  # fmt: skip
    for name, folder, maker in makers:
        if folder is None or not wanted(name, args):
            continue
        if not folder.is_dir():
            raise PixWordError(f"{folder} is no folder")
        parts: dict[str, list[tuple[np.ndarray, str, dict[str, float]]]] = {part: [] for part in PARTS}
        numbers = dict[str, int]()
        for pixels, text, document in maker(folder):
            number = numbers.setdefault(document, len(numbers))
            parts[third(document)].append((pixels, text, {"document": number}))
        for part, crops in parts.items():
            if not crops:
                raise PixWordError(f"{folder}: nothing was found for {name}; is it the set that --help names?")
            write_text_file(args.crops / f"{name}-{part}{SUFFIX}", crops, {"set": name, "part": part})
        print(f"{name:<14} {', '.join(f'{len(crops):,} {part}' for part, crops in parts.items())}")


def wanted(name: str, args: RealTextArgs) -> bool:
    """Whether ``--sets`` names a set, or none at all."""
    return not args.sets or name in [part.strip() for part in args.sets.split(",")]


def third(document: str) -> str:
    """The part that a document belongs to, by the hash of its name."""
    return PARTS[hashlib.sha256(document.encode()).digest()[0] % 3]


def scaled(image: Image.Image, height: float) -> np.ndarray:
    """Pixels of an image brought to a height, the aspect ratio kept; an image that is lower stays as it is."""
    if image.height > height:
        width = max(1, round(image.width * height / image.height))
        image = image.resize((width, max(1, round(height))), Image.Resampling.BICUBIC)
    return np.asarray(image.convert("RGB"))


def sroie(folder: Path, height: int) -> Iterator[Crop]:
    """Numbers of receipts; a box is as high as its line."""
    for path in sorted((folder / "data" / "box").glob("*.csv")):
        image = Image.open(folder / "data" / "img" / f"{path.stem}.jpg")
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for row in csv.reader(file):
                text = ",".join(row[8:]).strip()
                if len(row) > 8 and NUMBER.fullmatch(text) and len(text) <= LONGEST:
                    x, y = [int(v) for v in row[:8:2]], [int(v) for v in row[1:8:2]]
                    box = (max(0, min(x)), max(0, min(y)), max(x), max(y))
                    if box[2] - box[0] > 3 and box[3] - box[1] >= height:
                        yield scaled(image.crop(box), height), text, f"sroie {path.stem}"


def plates(folder: Path, divisor: int) -> Iterator[Crop]:
    """Plates of 94x24 px, or of a part of it, without the province that fills the first seventh."""
    for path in sorted((folder / "data" / "test").glob("*.jpg")):
        text = path.stem.split("_")[0][1:]
        if re.fullmatch(r"[A-Z0-9]{5,7}", text):
            image = Image.open(path).convert("RGB")
            image = image.crop((round(image.width / 7), 0, image.width, image.height))
            yield scaled(image, image.height / divisor), text, f"plate {text}"


def iiit5k(folder: Path) -> Iterator[Crop]:
    """Words at most 20 px high."""
    for tags in ("train.tags", "test.tags"):
        for line in (folder / tags).read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            path = folder / name
            if path.is_file() and (image := Image.open(path)).height <= 20 and len(text) <= LONGEST:
                yield np.asarray(image.convert("RGB")), text, f"iiit5k {path.stem.split('_')[0]}"


def meters(folder: Path) -> Iterator[Crop]:
    """Digits that stand upright: a tenth of a step is 0; a meter is named by its collection."""
    for path in sorted((folder / "images").rglob("*.jpg")):
        if match := re.match(r"(\d)\.0_", path.name):
            pixels = scaled(Image.open(path), 20)
            yield pixels, match[1], f"meter {path.parent.name} {path.stem.split('_')[-1][:8]}"


def pdf_words(folder: Path, dpi: int) -> Iterator[Crop]:
    """Words of some pages of every PDF, also of one that gzip packed; copies and links of a file are one document."""
    seen = set[str]()
    for path in sorted((*folder.rglob("*.pdf"), *folder.rglob("*.pdf.gz"))):
        content = path.read_bytes() if path.is_file() else b""
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        digest = hashlib.sha256(content).hexdigest()
        if content.startswith(b"%PDF") and digest not in seen:
            seen.add(digest)
            words = list(_document_words(content, dpi, path.name))
            for n in chosen_crops(len(words), PDF_WORDS):
                yield words[n]


def _document_words(content: bytes, dpi: int, name: str) -> Iterator[Crop]:
    """Words of a PDF as poppler places and renders them."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "a.pdf"
        file.write_bytes(content)
        words = _poppler("pdftotext", "-bbox", *PDF_PAGES, str(file), "-")
        drawn = _poppler("pdftoppm", "-r", str(dpi), *PDF_PAGES, str(file), f"{place}/p")
        if words.returncode or drawn.returncode:
            notice(f"{name}: no pages {PDF_PAGES[1]} to {PDF_PAGES[3]}, or poppler cannot read it")
            return
        images = sorted(Path(place).glob("p-*.ppm"))
        text = re.sub(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]", b"", words.stdout)
        pages = ElementTree.fromstring(text).iter("{http://www.w3.org/1999/xhtml}page")
        for page, image in zip(pages, images, strict=False):
            yield from _page_words(page, Image.open(image), dpi / 72, f"pdf {name}")


def _poppler(*command: str) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise PixWordError(f"{command[0]}: {error.strerror}; apt-get install poppler-utils") from error


def _page_words(page: ElementTree.Element, image: Image.Image, scale: float, document: str) -> Iterator[Crop]:
    for word in page.iter("{http://www.w3.org/1999/xhtml}word"):
        text = word.text or ""
        if re.fullmatch(r"[\x21-\x7e]{2,12}", text) and any(c.isalnum() for c in text):
            left, top, right, bottom = (float(word.get(k, 0)) * scale for k in ("xMin", "yMin", "xMax", "yMax"))
            box = (int(left) - 1, int(top), int(right) + 2, int(bottom) + 1)
            upright = right - left > 0.3 * (bottom - top)
            if upright and box[0] >= 0 and box[1] >= 0 and box[2] <= image.width and box[3] <= image.height:
                yield np.asarray(image.crop(box).convert("RGB")), text, document


# --- engines ----------------------------------------------------------------------------------------------------------

Engine = Callable[[Sequence[np.ndarray]], Sequence[str | Reading]]


def stay_on_one_core() -> None:
    """Keep this process, all its threads and what it starts on one core."""
    if not hasattr(os, "sched_setaffinity"):
        raise PixWordError("--one-core: only Linux keeps a process on a core")
    core = {min(os.sched_getaffinity(0))}
    for thread in Path("/proc/self/task").iterdir():  # new ones inherit it
        os.sched_setaffinity(int(thread.name), core)
    limit_threads(1)


def ours(args: RealTextArgs) -> Engine:
    """This library, 64 crops at a time."""
    model, processor = load(args.model)

    def read(images: Sequence[np.ndarray]) -> list[Reading]:
        found = list[Reading]()
        for n in range(0, len(images), 64):
            batch = processor.batch([[Image.fromarray(rgb)] for rgb in images[n : n + 64]])
            found += read_batch(model, processor, batch, max_tokens=LONGEST + 4, margins=args.margins)
        return found

    return read


def rapidocr(_: RealTextArgs) -> Engine:
    """rapidocr's recogniser, whose weights lie in its wheel."""
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise PixWordError("--engine rapidocr: pip install rapidocr==3.10.0 onnxruntime") from error
    engine = RapidOCR()

    def read(images: Sequence[np.ndarray]) -> list[str]:
        results = [engine(rgb[..., ::-1], use_det=False, use_cls=False, use_rec=True) for rgb in images]
        return ["".join(r.txts or ()) if r is not None else "" for r in results]

    return read


def tesseract(_: RealTextArgs) -> Engine:
    """Tesseract on a single line."""

    def read_one(rgb: np.ndarray) -> str:
        contents = io.BytesIO()
        Image.fromarray(rgb).save(contents, "PNG")
        command = ["tesseract", "stdin", "stdout", "--psm", "7"]
        try:
            done = subprocess.run(command, input=contents.getvalue(), capture_output=True, check=False)
        except OSError as error:
            raise PixWordError("--engine tesseract: apt-get install tesseract-ocr") from error
        return done.stdout.decode(errors="replace").strip()

    return lambda images: [read_one(rgb) for rgb in images]


ENGINES: dict[str, Callable[[RealTextArgs], Engine]] = {"ours": ours, "rapidocr": rapidocr, "tesseract": tesseract}


def score(engine: Engine, sets: Sequence[Path], args: RealTextArgs) -> dict[str, Any]:
    """Exact match of every set with its interval, printed as it comes; ``right`` has a bit for each crop.

    Where there are confidences, ``expected_calibration_error`` is of a set, and under "all" of all sets together.
    """
    scores, sure, good = dict[str, Any](), list[float](), list[bool]()
    if args.one_core:
        engine([np.full((12, 40, 3), 255, np.uint8)])  # what is done once is no part of a crop's time
    for path in sets:
        name = path.name.removesuffix(f"-{args.part}{SUFFIX}")
        images, written = read_crops(path, args.limit)
        found, milliseconds = timed(engine, images, args.one_core)
        plain = _plain_for(name)
        each = [plain(str(a)) == plain(b) for a, b in zip(found, written, strict=True)]
        right, bits = sum(each), base64.b64encode(np.packbits(each).tobytes()).decode()
        low, high = wilson(right, len(written))
        scores[name] = {"read": len(written), "exact_match": right / len(written), "exact_match_95": [low, high],
                        "ms_a_crop": milliseconds, "right": bits}  # fmt: skip
        line = f"{name:<14} {right / len(written):.3f}  ({low:.3f} to {high:.3f}) of {len(written):,}"
        confidences = [reading.confidence for reading in found if isinstance(reading, Reading)]
        if confidences:
            sure, good = sure + confidences, good + each
            error = scores[name]["expected_calibration_error"] = calibration_error(confidences, each)
            line += f", calibration error {error:.3f}"
        print(f"{line}, {milliseconds:.1f} ms a crop", flush=True)
    if sure:
        scores["all"] = {"read": len(good), "expected_calibration_error": calibration_error(sure, good)}
        print(f"{'all':<14} calibration error {scores['all']['expected_calibration_error']:.3f} of {len(good):,}")
    return scores


def timed(engine: Engine, images: Sequence[np.ndarray], one_by_one: bool) -> tuple[Sequence[str | Reading], float]:
    """Readings, and milliseconds a crop: the mean, or one by one the median."""
    groups = [[image] for image in images] if one_by_one else [images]
    found, seconds = list[str | Reading](), list[float]()
    for group in groups:
        start = time.perf_counter()
        found += engine(group)
        seconds.append((time.perf_counter() - start) / len(group))
    return found, 1000 * float(np.median(seconds))


def _plain_for(name: str) -> Callable[[str], str]:
    """How readings of a set are compared: without spaces; words of IIIT5K in any case; plates by letters and digits."""
    if name.startswith("iiit5k"):
        return lambda text: re.sub(r"\W", "", text).casefold()
    if name.startswith("plates"):
        return lambda text: re.sub(r"[^A-Z0-9]", "", text)
    return lambda text: re.sub(r"\s", "", text)


def chosen_crops(count: int, limit: int) -> np.ndarray:
    """Which crops of a set are read, and in which order."""
    return np.random.default_rng(0).permutation(count)[:limit] if limit and count > limit else np.arange(count)


def read_crops(path: Path, limit: int) -> tuple[list[np.ndarray], list[str]]:
    """Pixels and texts of a file of crops, evenly chosen where there are more than ``limit``."""
    from mlx_pixword.data.text_file import TextFile

    source = TextFile(path)
    images, texts = list[np.ndarray](), list[str]()
    for index in chosen_crops(len(source), limit).tolist():
        picture, text = source.parts(index)
        images.append(picture.rgb(2**15))  # type: ignore[union-attr]
        texts.append(str(text))
    return images, texts


if __name__ == "__main__":
    run_command(main)
