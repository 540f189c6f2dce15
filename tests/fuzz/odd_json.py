"""Broken JSON documents that still parse: values, keys and structure are changed at random places."""

import json
import random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**40, 2**62, 2**63, 2**64, 10**400, -(2**63),
    0.5, -0.0, 1e-320, float("nan"), float("inf"), "", "x", "x\ny", "\ud800", "\0", "y" * 5000,
    "F64", "BF16", "F8_E4M3", "BOOL", "float16", "auto",
    [], {}, [0], [0, 0], [[]], {"x": 1}, [2**31], [-1, 1], [0] * 40, [2**31 - 1, 0],
)  # fmt: skip


def odd_json(text: bytes, rng: random.Random) -> bytes:
    """A document with one to four changes; raises ``ValueError`` if the text is not JSON."""
    document = [json.loads(text)]
    for _ in range(rng.randint(1, 4)):
        _change(document, rng)
    return json.dumps(document[0]).encode()


def _change(document: list[Any], rng: random.Random) -> None:
    """Change a value, a key, or what lies in a list or object."""
    holder, key = rng.choice(_places(document))
    value, action = holder[key], rng.randrange(6)
    if action == 0 and isinstance(value, int) and not isinstance(value, bool):
        holder[key] = value + rng.choice((-1, 1, value, 2**31, -2 * value))
    elif action == 1 and isinstance(value, dict):
        value[rng.choice([*map(str, value), "", "x\ny", "unk_token", "type", "k" * 3000])] = rng.choice(ODD)
    elif action == 2 and isinstance(value, dict | list) and value:
        value.pop(rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value)))
    elif action == 3 and isinstance(value, list):
        value.extend(value[:20] or [rng.choice(ODD)])
    elif action == 4:
        other, place = rng.choice(_places(document))
        holder[key] = json.loads(json.dumps(other[place]))
    else:
        holder[key] = rng.choice(ODD)


def _places(document: list[Any]) -> list[tuple[Any, Any]]:
    """Where values lie: what holds each, and its key or index; no more than some of a long list or object."""
    found, todo = list[tuple[Any, Any]](), [(document, 0)]
    while todo and len(found) < 2000:
        holder, key = todo.pop(0)
        found.append((holder, key))
        value = holder[key]
        keys = (
            list(value)[:60]
            if isinstance(value, dict)
            else range(min(len(value), 60))
            if isinstance(value, list)
            else ()
        )
        todo += [(value, inner) for inner in keys]
    return found
