"""Real sets: which crops of `benchmarks/real_text.py` the arms read, and whether they did.

Of each set and third the same crops are chosen as that program reads, without those that no arm could read: texts
longer than the training's, characters that the tokenizer lacks, crops larger than S. Nothing of the sets is kept in the
repository: of a crop only its document's number and whether each run read it.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from real_text import chosen_crops

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.files import make_folder
from mlx_pixword.data.fonts import CHARACTERS
from mlx_pixword.data.text_file import SUFFIX, TextFile, write_text_file

from .batches import documents_of
from .crops import LENGTH
from .files import pack_column, read_json, unpack_column, write_json
from .learning import Learner
from .plan import Plan
from .run import load_weights, weights_path

REAL_SETS = ("sroie-6", "sroie-8", "pdf-36", "pdf-48", "plates-47x12")  # those of the protocol
DEVELOPMENT, CLOSED = "development", "closed"
REFERENCES = ("rapidocr", "tesseract")  # engines of `real_text.py` whose readings are shown beside the arms
PARTS = (DEVELOPMENT, CLOSED)  # the third for pretraining is not read
LIMIT = 1000  # crops of a set and third, before any are left out: as `real_text.py` has it


@dataclass(frozen=True)
class RealSet:
    """What is known of a set's third.

    Attributes:
        name, part: which.
        documents: ``[n]``, number of the document of each crop.
        chosen: ``[n]``, its place among those that `real_text.py` reads.
        left_out: how many were not taken, by reason.
        digest: of pixels and texts.
    """

    name: str
    part: str
    documents: np.ndarray
    chosen: np.ndarray
    left_out: Mapping[str, int]
    digest: str

    def __len__(self) -> int:
        return len(self.chosen)


def prepare_real(folder: Path, plan: Plan, results: Path, scratch: Path) -> list[str]:
    """Take the crops of all sets that a folder holds; returns the sets that it lacks."""
    if not folder.is_dir():
        raise PixWordError(f"--real {folder} is no folder; make it with benchmarks/real_text.py --prepare")
    found = [name for name in REAL_SETS if all((folder / f"{name}-{part}{SUFFIX}").exists() for part in PARTS)]
    if not found:
        raise PixWordError(
            f"--real {folder} holds none of {', '.join(REAL_SETS)}; make them with real_text.py --prepare"
        )
    added = [name for name in found if not _facts_path(results, name, CLOSED).exists()]
    if added and opened(results):
        raise PixWordError(f"--real {folder}: the closed third was opened without {added[0]}; it is opened once")
    for name in found:
        for part in PARTS:
            _take(folder / f"{name}-{part}{SUFFIX}", name, part, plan, results, scratch)
    return [name for name in REAL_SETS if name not in found]


def opened(results: Path) -> dict[str, Any] | None:
    """When the closed third was opened, for which sets and runs; None: it is closed."""
    return dict(read_json(path)) if (path := _opened_path(results)).exists() else None


def _take(path: Path, name: str, part: str, plan: Plan, results: Path, scratch: Path) -> None:
    source = TextFile(path)
    if "document" not in source.columns:
        raise PixWordError(f"{path} does not say which document a crop is of; make it again with real_text.py")
    order = chosen_crops(len(source), LIMIT)
    reasons = [why_not(source.text(n), source.crop(n), plan.shape.image_size) for n in order.tolist()]
    chosen = np.flatnonzero([not reason for reason in reasons]).astype(np.int32)
    if not len(chosen):
        raise PixWordError(f"{path}: no crop can be read: {reasons[0]}")
    digest, kept = hashlib.sha256(), order[chosen].tolist()
    for n in kept:
        digest.update(repr((source.crop(n).shape, source.text(n))).encode() + source.crop(n).tobytes())
    where = _facts_path(results, name, part)
    if where.exists() and (former := read_json(where)["digest"]) != digest.hexdigest():
        raise PixWordError(f"{path} has other crops than {where} tells of ({former[:12]}..); use that folder again")
    place = scratch / "real" / f"{name}-{part}{SUFFIX}"
    make_folder(place.parent)
    write_text_file(place, ((source.crop(n), source.text(n), {}) for n in kept), {"set": name, "part": part})
    documents = np.asarray(source.columns["document"])[order[chosen]].astype(np.int32)
    write_json(where, {
        "set": name, "part": part, "digest": digest.hexdigest(), "crops": len(chosen),
        "read": len(order),
        "left_out": {reason: reasons.count(reason) for reason in sorted(set(reasons) - {""})},
        "documents": pack_column(documents), "chosen": pack_column(chosen),
    })  # fmt: skip


def why_not(text: str, pixels: np.ndarray, image_size: int) -> str:
    """Why a crop is left out, or "" if it is not."""
    if len(text) > LENGTH:
        return f"over {LENGTH} characters"
    if set(text) - set(CHARACTERS):
        return "unknown characters"
    return f"over {image_size} px" if max(pixels.shape[:2]) > image_size else ""


def kept_real_sets(results: Path, part: str) -> dict[str, RealSet]:
    """What is known of the sets of a part, by name."""
    found = dict[str, RealSet]()
    for name in REAL_SETS:
        if (path := _facts_path(results, name, part)).exists():
            facts = read_json(path)
            documents, chosen = unpack_column(facts["documents"]), unpack_column(facts["chosen"])
            found[name] = RealSet(name, part, documents, chosen, facts["left_out"], facts["digest"])
    return found


def _facts_path(results: Path, name: str, part: str) -> Path:
    return results / "real" / f"{name}-{part}.json"


# --- reading ----------------------------------------------------------------------------------------------------------


def read_part(run: str, learner: Learner, part: str, results: Path, scratch: Path) -> None:
    """Read the sets of a part that a run has not read yet, and keep whether each crop was read."""
    path = _readings_path(results, run, part)
    kept: dict[str, Any] = read_json(path) if path.exists() else {"run": run, "part": part, "sets": {}}
    missing = [known for name, known in kept_real_sets(results, part).items() if name not in kept["sets"]]
    for known in missing:
        kept["sets"][known.name] = {"digest": known.digest, "right": pack_column(_right(learner, known, scratch))}
    if missing:
        write_json(path, kept)


def _right(learner: Learner, known: RealSet, scratch: Path) -> np.ndarray:
    path = scratch / "real" / f"{known.name}-{known.part}{SUFFIX}"
    if not path.exists():
        raise PixWordError(
            f"{path} is missing; run `python benchmarks/evidence prepare --real DIR` with this --scratch"
        )
    crops = TextFile(path)
    readings = learner.read(documents_of(learner.arm, learner.args, crops, range(len(crops))))
    return np.array([reading == crops.text(n) for n, reading in enumerate(readings)], np.int8)


def kept_readings(results: Path, run: str, part: str) -> dict[str, np.ndarray]:
    """Which crops a run read, int8 ``[n]`` by set; sets that were made anew since are left out."""
    path, known = _readings_path(results, run, part), kept_real_sets(results, part)
    if not path.exists():
        return {}
    sets = read_json(path)["sets"]
    return {name: unpack_column(entry["right"]) for name, entry in sets.items()
            if name in known and known[name].digest == entry["digest"]}  # fmt: skip


def _readings_path(results: Path, run: str, part: str) -> Path:
    return results / "real" / part / f"{run}.json"


def _opened_path(results: Path) -> Path:
    return results / "real" / "opened.json"


# --- reference engines ------------------------------------------------------------------------------------------------


def take_engines(kept: Path, results: Path) -> None:
    """From the results of `real_text.py`, which of the arms' crops reference engines read; the newest counts."""
    found = dict[str, Any]()
    for path in sorted(kept.glob("real_text-*.json")):
        record = read_json(path)
        for name, engine in product(REAL_SETS, REFERENCES):
            score = record.get("scores", {}).get(engine, {}).get(name, {})
            where = _facts_path(results, name, record["part"])
            if "right" not in score or not where.exists() or (facts := read_json(where))["read"] != score["read"]:
                continue  # of older versions, of a set that is not here, or of another number of crops
            bits = np.unpackbits(np.frombuffer(base64.b64decode(score["right"]), np.uint8), count=score["read"])
            right = bits[unpack_column(facts["chosen"])].astype(np.int8)
            found[f"{engine} {name} {record['part']}"] = {
                "digest": facts["digest"], "from": path.name, "right": pack_column(right)
            }  # fmt: skip
    if found:
        write_json(results / "real" / "engines.json", found)


def kept_engines(results: Path) -> dict[tuple[str, str, str], np.ndarray]:
    """Which crops engines read, int8 ``[n]``, by engine, set and part."""
    path, found = results / "real" / "engines.json", dict[tuple[str, str, str], np.ndarray]()
    for key, entry in (read_json(path) if path.exists() else {}).items():
        engine, name, part = key.split()
        known = kept_real_sets(results, part).get(name)
        if known is not None and known.digest == entry["digest"]:
            found[engine, name, part] = unpack_column(entry["right"])
    return found


# --- the closed third -------------------------------------------------------------------------------------------------


def read_again(records: Sequence[Mapping[str, Any]], plan: Plan, part: str, results: Path, scratch: Path) -> list[str]:
    """Read a part with the final weights of main runs; returns those whose weights are not there."""
    lost = list[str]()
    for record in records:
        if not weights_path(scratch, record["id"]).exists():
            lost += [] if _readings_path(results, record["id"], part).exists() else [record["id"]]
            continue
        spec = record["spec"]
        learner = Learner.new(plan.arm(spec["arm"], spec["changes"]), plan.shape, spec["seed"])
        load_weights(learner, weights_path(scratch, record["id"]))
        read_part(record["id"], learner, part, results, scratch)
    return lost


def open_closed(
    records: Sequence[Mapping[str, Any]], plan: Plan, results: Path, scratch: Path, stamp: Mapping[str, Any]
) -> list[str]:
    """Read the closed third, once: the first call fixes the runs, a later one only finishes them.

    Args:
        records: of all finished main runs.
        plan: of the runs.
        results, scratch: folders.
        stamp: what is kept of the opening beside its runs: when, and at which commit.

    Returns:
        Runs whose final weights are not there.
    """
    path = _opened_path(results)
    if not kept_real_sets(results, CLOSED):
        raise PixWordError("there are no real sets here; `python benchmarks/evidence prepare --real DIR` takes them")
    if not path.exists():
        if not records:
            raise PixWordError("no run of the main comparison is finished; the closed third is opened once, after them")
        sets = {name: known.digest for name, known in kept_real_sets(results, CLOSED).items()}
        write_json(path, {**stamp, "sets": sets, "runs": [record["id"] for record in records]})
    chosen = read_json(path)["runs"]
    return read_again([record for record in records if record["id"] in chosen], plan, CLOSED, results, scratch)
