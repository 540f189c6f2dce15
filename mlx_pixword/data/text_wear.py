"""Worn text, as boxes cut it out of scans and photographs: close to the ink or through it, spaced, bold, broken.

The other crops of `text_images` have paper around even ink. A box around a number of a receipt, a word of a page or a
number plate has not: a model that never saw ink at the edge of its crop reads half as many of them. The height that is
drawn for worn text is that of its capitals, so that "are" is lower than "All", as it is on a page.
"""

import math
from collections.abc import Mapping
from random import Random
from typing import Any

from .strings import between
from .text_pixels import NOISE

Neighbors = tuple[tuple[str, str, float], ...]  # see `Looks.neighbors`

SIDES = (("above", "below"), ("left", "right"))


def spread(kind: str, text: str, r: Random) -> dict[str, Any]:
    """``tracking``, ``dot``, ``weight`` and ``angle`` of `Looks`: what decides how much room a text takes.

    Number plates often have a raised dot behind the first one or two characters, which is no part of the number.
    """
    dotted = kind == "registrations" and len(text) > 4 and r.random() < 0.5
    return {
        "tracking": 0.14 * r.random() ** 2 if r.random() < 0.5 else 0.0,
        "dot": between(r, 1, 2) if dotted else 0,
        "weight": 0.02 + 0.05 * r.random() if r.random() < 0.25 else 0.0,
        "angle": (0.5 + 5.0 * r.random() ** 2) * (1 if r.random() < 0.5 else -1) if r.random() < 0.25 else 0.0,
    }


def stretched(r: Random) -> float:
    """A factor of the width: cameras see plates from the side, printers have narrow and wide faces."""
    return math.exp(0.3 * (2 * r.random() - 1)) if r.random() < 0.5 else 0.9 + 0.2 * r.random()


def frame(capitals: float, r: Random) -> Neighbors:
    """The rim of a plate or the cell of a table: four rules around the text."""
    return tuple((side, "", capitals * (0.12 + 0.4 * r.random())) for sides in SIDES for side in sides)


def cut(
    capitals: float, ink: tuple[float, float], image_size: int, neighbors: Neighbors, r: Random
) -> tuple[tuple[int, int], float, float]:
    """Size of the crop ``(h, w)``, left and top of the ink box ``(h, w)`` in it: see `Looks`.

    Six sides of ten are cut where a careful hand would cut them, within a tenth of a capital inside the ink to a
    quarter outside of it; the others are anywhere up to a capital away. A neighbour makes room for its own edge.
    """
    gaps = {side: gap for side, _, gap in neighbors}
    size, first = list[int](), list[float]()
    for sides, length in zip(SIDES, ink, strict=True):
        margins = [_margin(side, gaps, capitals, r) for side in sides]
        excess = length + sum(margins) - image_size
        for n in (0, 1):  # no side is longer than the image size
            taken = max(0.0, min(excess, margins[n]))
            margins[n], excess = margins[n] - taken, excess - taken
        size.append(max(2, min(image_size, round(length + sum(margins)))))
        first.append(margins[0])
    return (size[0], size[1]), first[1], first[0]


def _margin(side: str, gaps: Mapping[str, float], capitals: float, r: Random) -> float:
    if side in gaps:
        return gaps[side] + capitals * (0.1 + 0.25 * r.random())
    return capitals * (-0.1 + 0.35 * r.random() if r.random() < 0.6 else r.random())


def worn_surface(capitals: float, share: float, r: Random) -> dict[str, Any]:
    """Missing ink, light from a side, blur, noise and JPEG of `Looks`; ``share`` is `TextStyle.distort`."""
    level = 90.0 * r.random() ** 2
    turn = 2 * math.pi * r.random()
    return {
        "mottle": 0.7 * r.random() if r.random() < 0.3 * share else 0.0,
        "shade": (level * math.cos(turn), level * math.sin(turn)) if r.random() < 0.3 * share else (0.0, 0.0),
        "blur": min(1.2, capitals * (0.03 + 0.09 * r.random())) if r.random() < 0.4 * share else 0.0,
        "noise": 1 + 9 * r.random() if r.random() < 0.4 * share else 0.0,
        "noise_at": int(r.random() * NOISE),
        "jpeg": between(r, 30, 95) if r.random() < 0.2 * share else 0,
    }
