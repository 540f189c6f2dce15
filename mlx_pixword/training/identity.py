"""What a checkpoint belongs to: its settings, data and tokenizer, and how those of a resumed run differ."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..common.errors import PixWordError
from ..common.settings import counted, flag
from ..config.run import RunConfig
from ..data.base import Source
from ..inputs.tokenizer import Tokenizer
from ..model.args import ModelArgs
from ..model.origin import KEY as ORIGIN
from ..model.origin import Origin

# Another value of these is another run: other weights, or other documents in another order.
_FIXED = (
    "preset", *(f.name for f in fields(ModelArgs) if f.name != "dtype"),
    "seed", "optimizer", "eval_documents",
    "plate_colors", "text_kinds", "text_heights", "text_contrast", "text_length", "text_curriculum", "text_wear",
    "caption_first", "batch_tokens", "pack", "group_size",
    "lora", "lora_scale", "lora_layers", "lora_image_block", "freeze_language", "mask_prompt",
    "new_words",
)  # fmt: skip
# These change how, where or how long a run goes on, and nothing of what it has learnt.
_FREE = (
    "out", "epochs", "minutes", "resume", "data", "images", "allow_outside", "tokenizer", "cache", "text_words",
    "fonts", "threads", "streams", "zero_init", "log_every", "eval_every", "save_every", "save_minutes",
    "sample_images", "draw_images", "report_to", "max_bad", "keep", "keep_best", "cache_gb", "max_nonfinite",
    "free_memory_gb", "decode_seconds", "rank_timeout", "init", "language_from", "patience",
)  # fmt: skip
_SHOWN = 4  # differences in a message


def identity_of(
    config: RunConfig, sources: Sequence[Source], tokenizer: Tokenizer | None, origin: Origin | None = None
) -> dict[str, Any]:
    """What is kept in a checkpoint to know the run again: settings, digests of the data and of the tokenizer.

    ``origin`` stands there too, so that a run goes on where the language model that it started from is gone.
    """
    return {
        ORIGIN: None if origin is None else origin.to_dict(),
        "config": config.to_flat(),
        "data": [describe(source) for source in sources],
        "tokenizer": hashlib.sha256(tokenizer.contents).hexdigest() if tokenizer else None,
    }


def describe(source: Source) -> dict[str, Any]:
    """A source's name, number of documents (None if endless) and digest."""
    documents = None if source.endless else len(source)
    return {"name": source.name, "documents": documents, "digest": source.digest()}


def check_identity(old: dict[str, Any], new: dict[str, Any], where: str) -> list[str]:
    """Compare the identity in a checkpoint with that of a resumed run.

    Returns:
        Settings that differ and may, such as "learning_rate 0.01, now 0.005"; the run goes on with the new ones.

    Raises:
        PixWordError: settings, data or tokenizer of another run; the differences are shown.
    """
    if not old:  # version 1 kept none
        return []
    changed = {name: (old["config"].get(name), value) for name, value in new["config"].items()}
    changed = {name: pair for name, pair in changed.items() if name in old["config"] and pair[0] != pair[1]}
    wrong = [_told(name, *changed[name]) for name in _FIXED if name in changed]
    wrong += _other_data(old["data"], new["data"])
    if old["tokenizer"] != new["tokenizer"]:
        wrong.append(f"tokenizer {_short(old['tokenizer'])}, now {_short(new['tokenizer'])}")
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise PixWordError(
            f"--resume: {where} is of another run: {'; '.join(wrong[:_SHOWN])}{more}; "
            f"resume with the run's own settings, or choose another {flag('out')}"
        )
    return [_told(name, *pair) for name, pair in changed.items() if name not in _FREE]


def _other_data(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    if len(old) != len(new):
        return [f"{len(old)} sources of data, now {len(new)}"]
    return [
        f"data {_source(one)}, now {_source(two)}"
        for one, two in zip(old, new, strict=True)
        if (one["documents"], one["digest"]) != (two["documents"], two["digest"])
    ]


def _source(source: dict[str, Any]) -> str:
    count = "" if source["documents"] is None else f"{counted(source['documents'], 'document')}, "
    return f"{source['name']} ({count}digest {_short(source['digest'])})"


def _told(name: str, old: Any, new: Any) -> str:
    return f"{name} {old}, now {new}"


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]
