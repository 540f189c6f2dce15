"""The model written from its mathematics: NumPy, float64, one document, one window, one head at a time.

It shares no code with the library, on purpose: a mistake would have to be made twice to go unseen. Weights are a dict
under the names of the authors' program. Source: arXiv 2605.14028; layers and RoPE scaling as in Llama 3.1.

V  words            K  pix tokens, C**3      f  fold factor      C  levels a channel, 256 / f
D  width            H  heads (h_kv: kv)      d  head width, D/H  F  FFN width
n  valid pixels of a window                  N  windows          L  elements of a document
w  window side       P  w * w                e  width of the image block, D in the paper
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Weights = dict[str, np.ndarray]
Part = Sequence[int] | np.ndarray  # word ids, or a uint8 image [h, w, 3]
EOS = 2


@dataclass(frozen=True)
class Config:
    """What the shapes of the weights do not say."""

    heads: int
    kv_heads: int
    window_size: int
    fold_factor: int
    qk_norm: bool = False
    eps: float = 1e-5
    theta: float = 500000.0
    rope_factor: float = 8.0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_context: int = 8192
    grid: bool = False  # positions have a row and a column, in the sequence and inside windows
    image_heads: int = 0  # of the image block, with its own width; 0: as above
    image_kv_heads: int = 0
    window_theta: float = 0.0  # 0: as above

    def image(self) -> "Config":
        """What the image block's layers need to know."""
        return replace(
            self, heads=self.image_heads or self.heads, kv_heads=self.image_kv_heads or self.kv_heads,
            theta=self.window_theta or self.theta,
        )  # fmt: skip


# --- pixels -----------------------------------------------------------------------------------------------------------


def fold(rgb: np.ndarray, fold_factor: int) -> np.ndarray:
    """uint8 ``[h, w, 3]`` to int64 ``[h, w]``: ``t = r' + C g' + C^2 b'`` with ``c' = c // f``."""
    height, width, _ = rgb.shape
    levels = 256 // fold_factor
    tokens = np.zeros((height, width), np.int64)
    for y in range(height):
        for x in range(width):
            red, green, blue = (int(c) // fold_factor for c in rgb[y, x])
            tokens[y, x] = red + levels * green + levels * levels * blue
    return tokens


def windows(tokens: np.ndarray, window_size: int) -> list[np.ndarray]:
    """int ``[h, w]`` to the valid pixels of each window: windows row-major, pixels row-major inside a window."""
    height, width = tokens.shape
    result = []
    for top in range(0, height, window_size):
        for left in range(0, width, window_size):
            rows = range(top, min(top + window_size, height))
            columns = range(left, min(left + window_size, width))
            result.append(np.array([tokens[y, x] for y in rows for x in columns]))
    return result


def window_widths(height: int, width: int, window_size: int) -> list[int]:
    """Columns of pixels of each window of an image, in the order of ``windows``."""
    return [min(window_size, width - x) for _ in range(0, height, window_size) for x in range(0, width, window_size)]


def part_windows(part: np.ndarray, cfg: Config) -> list[np.ndarray]:
    """A uint8 image ``[h, w, 3]`` to its windows of pix tokens."""
    return windows(fold(part, cfg.fold_factor), cfg.window_size)


# --- layers -----------------------------------------------------------------------------------------------------------


def inverse_frequencies(
    head_dim: int, theta: float, factor: float = 8.0, low: float = 1.0, high: float = 4.0, context: int = 8192
) -> np.ndarray:
    """RoPE's angle a position ``[d / 2]``: ``theta^(-2i/d)``, then slowed down as Llama 3.1 does.

    Waves much shorter than ``context`` stay, waves much longer are slowed by ``factor``, those between are mixed.
    """
    result = []
    for i in range(head_dim // 2):
        frequency = theta ** (-2 * i / head_dim)
        wavelength = 2 * math.pi / frequency
        if wavelength > context / low:
            frequency = frequency / factor
        elif wavelength >= context / high:
            smooth = (context / wavelength - low) / (high - low)
            frequency = frequency * ((1 - smooth) / factor + smooth)
        result.append(frequency)
    return np.array(result)


def rope(x: np.ndarray, positions: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Rotate each pair ``(x[2i], x[2i+1])`` of ``x [L, d]`` by the angle ``position * frequency[i]``.

    Positions ``[L, 2]`` are rows and columns: an even pair turns by the column, an odd one by the row.
    """
    angle = np.empty((len(x), len(frequencies)))
    for i, frequency in enumerate(frequencies):
        counted = positions if positions.ndim == 1 else positions[:, 1 - i % 2]
        angle[:, i] = counted * frequency
    even, odd = x[:, 0::2], x[:, 1::2]
    result = np.empty_like(x)
    result[:, 0::2] = even * np.cos(angle) - odd * np.sin(angle)
    result[:, 1::2] = even * np.sin(angle) + odd * np.cos(angle)
    return result


def rms_norm(x: np.ndarray, eps: float) -> np.ndarray:
    """``x / sqrt(mean(x^2) + eps)`` over the last axis."""
    normed: np.ndarray = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    return normed


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis; ``-inf`` counts as probability 0."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = e / e.sum(axis=-1, keepdims=True)
    return probabilities


def linear(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """``x W^T``, no bias; ``x [..., in]``, ``W [out, in]``."""
    return x @ weights[f"{name}.weight"].astype(np.float64).T


def attention(weights: Weights, name: str, cfg: Config, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Causal grouped-query attention of ``x [L, D]``: query head ``h`` reads key and value head ``h // (H / h_kv)``."""
    length, width = x.shape
    d = width // cfg.heads
    frequencies = inverse_frequencies(d, cfg.theta, cfg.rope_factor, cfg.rope_low, cfg.rope_high, cfg.rope_context)
    q, k, v = (linear(weights, f"{name}.{w}", x) for w in ("wq", "wk", "wv"))
    future = np.triu(np.ones((length, length), bool), 1)
    outputs = []
    for head in range(cfg.heads):
        group = head // (cfg.heads // cfg.kv_heads)
        mine, shared = slice(head * d, (head + 1) * d), slice(group * d, (group + 1) * d)
        q_h, k_h, v_h = q[:, mine], k[:, shared], v[:, shared]
        if cfg.qk_norm:
            q_h, k_h = rms_norm(q_h, cfg.eps), rms_norm(k_h, cfg.eps)
        q_h, k_h = rope(q_h, positions, frequencies), rope(k_h, positions, frequencies)
        scores = np.where(future, -np.inf, q_h @ k_h.T / math.sqrt(d))
        outputs.append(softmax(scores) @ v_h)
    return linear(weights, f"{name}.wo", np.concatenate(outputs, axis=-1))


def feed_forward(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """SwiGLU: ``w2(silu(w1 x) * w3 x)``."""
    gate = linear(weights, f"{name}.w1", x)
    return linear(weights, f"{name}.w2", gate / (1 + np.exp(-gate)) * linear(weights, f"{name}.w3", x))


def layers(weights: Weights, prefix: str, cfg: Config, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """All pre-norm layers under ``prefix`` in turn, ``[L, D]`` to ``[L, D]``."""
    number = 0
    while f"{prefix}layers.{number}.attention_norm.weight" in weights:
        name = f"{prefix}layers.{number}"
        normed = rms_norm(x, cfg.eps) * weights[f"{name}.attention_norm.weight"]
        x = x + attention(weights, f"{name}.attention", cfg, normed, positions)
        normed = rms_norm(x, cfg.eps) * weights[f"{name}.ffn_norm.weight"]
        x = x + feed_forward(weights, f"{name}.feed_forward", normed)
        number += 1
    return x


# --- the model --------------------------------------------------------------------------------------------------------


def image_states(
    weights: Weights, cfg: Config, windows: list[np.ndarray], positions: str = "local",
    widths: Sequence[int] | None = None,
) -> np.ndarray:  # fmt: skip
    """States ``s_1 .. s_N`` of an image's windows, float64 ``[N, D]``: the hidden state of each one's last valid pixel.

    ``positions``: "local" counts the valid pixels of a window from 0, "global" all pixels of the image in window order.
    ``widths``: columns of pixels of each window, which a grid and a concatenated summary ask for; None: all are full.
    """
    if positions not in ("local", "global"):
        raise ValueError(positions)
    states, seen = [], 0
    for number, window in enumerate(windows):
        width = cfg.window_size if widths is None else widths[number]
        first = seen if positions == "global" else 0
        x = weights["imgblk.pix_emb.weight"].astype(np.float64)[window]  # [n, e]
        counted = first + np.arange(len(window))
        if cfg.grid:
            counted = np.array([(i // width, i % width) for i in range(len(window))])
        y = layers(weights, "imgblk.", cfg.image(), x, counted)
        states.append(window_state(weights, cfg, x, y[-1], width))  # no norm: the authors' `imgblk.norm` is not applied
        seen += len(window)
    return np.array(states)


def window_state(weights: Weights, cfg: Config, x: np.ndarray, last: np.ndarray, width: int) -> np.ndarray:
    """From embeddings ``x [n, e]`` and the last pixel's hidden state ``[e]`` to the window's state ``[D]``."""
    state = linear(weights, "imgblk.state_proj", last) if "imgblk.state_proj.weight" in weights else last
    if "imgblk.summary.weight" in weights:
        matrix = weights["imgblk.summary.weight"].astype(np.float64)
        side = cfg.window_size
        total = np.zeros(len(matrix))
        for i, embedding in enumerate(x):
            place = i // width * side + i % width  # in the full window
            total += matrix[:, place * len(embedding) : (place + 1) * len(embedding)] @ embedding
        if "imgblk.summary_out.weight" in weights:
            total = linear(weights, "imgblk.summary_out", total)
        state = state + total
    return state


def element_positions(parts: Sequence[Part], cfg: Config) -> np.ndarray:
    """Positions of a document's elements: ``[L]``, or with a grid rows and columns ``[L, 2]``."""
    found, p = [], 0
    for part in parts:
        if isinstance(part, np.ndarray):
            rows, columns = (math.ceil(size / cfg.window_size) for size in part.shape[:2])
            found += [(p + row, p + column) for row in range(rows) for column in range(columns)]
            p += max(rows, columns)
        else:
            found += [(p + n, p + n) for n in range(len(part))]
            p += len(part)
    return np.array(found) if cfg.grid else np.arange(len(found))


def logits(weights: Weights, cfg: Config, parts: Sequence[Part], positions: str = "local") -> np.ndarray:
    """Logits of one document, float64 ``[L, V + K]``; the parts are laid out as they are, no mark is put in.

    Args:
        parts: lists of word ids, and uint8 images ``[h, w, 3]``.
        positions: as in ``image_states``; in the language block an element's position is its index, or see
            ``element_positions``.
    """
    embeddings = weights["tok_embeddings.weight"].astype(np.float64)
    rows = []
    for part in parts:
        if isinstance(part, np.ndarray):
            widths = window_widths(*part.shape[:2], cfg.window_size)
            rows.append(image_states(weights, cfg, part_windows(part, cfg), positions, widths))
        elif len(part):
            rows.append(embeddings[list(part)])
    return sequence_logits(weights, cfg, np.concatenate(rows), element_positions(parts, cfg))


def sequence_logits(weights: Weights, cfg: Config, x: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
    """The language block and the head on elements that are embedded already: ``[L, D]`` to ``[L, V + K]``."""
    x = layers(weights, "", cfg, x, np.arange(len(x)) if positions is None else positions)
    return linear(weights, "output", rms_norm(x, cfg.eps) * weights["norm.weight"])


def boundary_targets(parts: Sequence[Part], cfg: Config, num_words: int, closed: bool = False) -> list[int | None]:
    """What each of the L elements predicts: a word id, ``V +`` the first pixel of a window, or None at an open end."""
    ids: list[int | None] = []
    for part in parts:
        if isinstance(part, np.ndarray):
            ids += [num_words + int(window[0]) for window in part_windows(part, cfg)]
        else:
            ids += [int(word) for word in part]
    return [*ids[1:], EOS if closed else None]


def boundary_loss(
    logits: np.ndarray, targets: Sequence[int | None], num_words: int, a: float = 1.0, b: float = 1.0
) -> float:
    """``(a sum_words + b sum_pixels) / Z`` of ``-log softmax`` over all ``V + K``; ``Z`` counts the targets of both.

    Args:
        logits: ``[L, V + K]``, of one document or of several joined.
        targets: L of them, from ``boundary_targets``.
        num_words: ``V``.
        a, b: weights of the word and the pixel part.
    """
    total, count = 0.0, 0
    for row, target in zip(logits, targets, strict=True):
        if target is None:
            continue
        weight = a if target < num_words else b
        total += weight * -math.log(softmax(row)[target])
        count += 1
    return total / count


# --- random weights ---------------------------------------------------------------------------------------------------


def random_weights(
    rng: np.random.Generator,
    D: int,
    heads: int,
    kv_heads: int,
    layers: int,
    image_layers: int,
    ffn: int,
    V: int,
    f: int,
) -> Weights:
    """Float32 weights under the authors' names; every part, norms too, far enough from 0 and 1 to be noticed."""
    num_pix, kv_width = (256 // f) ** 3, D // heads * kv_heads

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

    def norm() -> np.ndarray:
        return rng.uniform(0.5, 1.5, D).astype(np.float32)

    weights = {
        "tok_embeddings.weight": rng.normal(size=(V, D)).astype(np.float32),
        "imgblk.pix_emb.weight": rng.normal(size=(num_pix + 1, D)).astype(np.float32),
        "imgblk.norm.weight": norm(),
        "norm.weight": norm(),
        "output.weight": matrix(V + num_pix, D),
    }
    for prefix, number in (("", layers), ("imgblk.", image_layers)):
        for n in range(number):
            name = f"{prefix}layers.{n}"
            weights |= {f"{name}.attention_norm.weight": norm(), f"{name}.ffn_norm.weight": norm()}
            for part, rows, columns in (
                ("attention.wq", D, D),
                ("attention.wk", kv_width, D),
                ("attention.wv", kv_width, D),
                ("attention.wo", D, D),
                ("feed_forward.w1", ffn, D),
                ("feed_forward.w3", ffn, D),
                ("feed_forward.w2", D, ffn),
            ):
                weights[f"{name}.{part}.weight"] = matrix(rows, columns)
    return weights
