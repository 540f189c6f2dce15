"""The paper's program in PyTorch, written from its description for comparison: arXiv 2605.14028, docs/model.md.

B  rows, a document each    N  windows of an image, a square    P  pixels a window    L  elements of a row
Q  query pixels a row    D  hidden size    H  query heads, G  key heads    d  head size    V  words, K  pix tokens

Images are padded to squares (see squares.py); every window goes through every layer of the image block in full. Eager
PyTorch in float32 as its users write it: rms_norm, scaled_dot_product_attention, cross_entropy, fused AdamW. Parameters
have the names of the MLX model's, whose weights it can take.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mlx_pixword.config.train import TrainArgs
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.ops.rotary import rotary_table
from mlx_pixword.pixels.colors import color_features
from mlx_pixword.training.optimizer import is_hidden_matrix
from peer.padding import IGNORE, SquareBatch

functional = torch.nn.functional


class Attention(torch.nn.Module):
    """Grouped-query attention."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        size = args.head_size
        self.q_proj = torch.nn.Linear(args.hidden_size, args.num_heads * size, bias=False)
        self.k_proj = torch.nn.Linear(args.hidden_size, args.num_kv_heads * size, bias=False)
        self.v_proj = torch.nn.Linear(args.hidden_size, args.num_kv_heads * size, bias=False)
        self.o_proj = torch.nn.Linear(args.num_heads * size, args.hidden_size, bias=False)
        self.args = args

    def forward(self, x: torch.Tensor, rotary: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """``x [B, L, D]``, ``rotary [B or 1, L, 1, d / 2]``; without a mask an element sees all before it."""
        shape = (*x.shape[:2], -1, self.args.head_size)
        q, k, v = self.q_proj(x).view(shape), self.k_proj(x).view(shape), self.v_proj(x).view(shape)
        if self.args.qk_norm:
            q, k = (functional.rms_norm(y, y.shape[-1:], eps=self.args.rms_norm_eps) for y in (q, k))
        q, k, v = (y.transpose(1, 2) for y in (rotate(q, rotary), rotate(k, rotary), v))
        # enable_gqa measured the same as repeated keys, or faster; complex rotation twice as fast as real
        y = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(-2))


def rotate(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """RoPE on interleaved pairs: ``x [B, L, n, d]`` by complex ``rotary [B or 1, L, 1, d / 2]``."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotary).flatten(-2)


class FeedForward(torch.nn.Module):
    """SwiGLU."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.gate_proj = torch.nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.up_proj = torch.nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.down_proj = torch.nn.Linear(args.intermediate_size, args.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(torch.nn.Module):
    """Pre-norm Llama layer."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.attention_norm = torch.nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.attention = Attention(args)
        self.ffn_norm = torch.nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.ffn = FeedForward(args)

    def forward(self, x: torch.Tensor, rotary: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, mask)
        return x + self.ffn(self.ffn_norm(x))


class Table(torch.nn.Module):
    """Rows of tokens: ``weight``, plus ``features @ factors`` where colours are factored."""

    features: torch.Tensor

    def __init__(self, rows: int, size: int, features: np.ndarray | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(0.02 * torch.randn(rows, size))
        if features is not None:
            self.factors = torch.nn.Parameter(0.02 * torch.randn(features.shape[1], size))
            self.register_buffer("features", torch.from_numpy(features).float(), persistent=False)

    def forward(self) -> torch.Tensor:
        return self.weight + self.features @ self.factors if hasattr(self, "factors") else self.weight


class ImageBlock(torch.nn.Module):
    """Causal attention inside each window."""

    rotary: torch.Tensor

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        features = np.vstack([color_features(args.fold_factor), np.zeros(27)]) if args.factored_colors else None
        self.embed_pixels = Table(args.num_pix + 1, args.hidden_size, features)
        self.layers = torch.nn.ModuleList(Layer(args) for _ in range(args.image_layers))
        self.register_buffer("rotary", complex_table(args.window_size**2, args), persistent=False)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Pix tokens ``[B, N, P]`` to the states of all pixels ``[B, N, P, D]``."""
        x = functional.embedding(windows.flatten(0, 1), self.embed_pixels())  # [B N, P, D]
        for layer in self.layers:
            x = layer(x, self.rotary[:, : x.shape[1]])
        return x.unflatten(0, windows.shape[:2])


class Peer(torch.nn.Module):
    """The whole model; its loss is that of `mlx_pixword.model.losses`, summed over a square batch."""

    rotary: torch.Tensor

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        features = None
        if args.factored_colors:
            features = np.vstack([np.zeros((args.vocab_size, 27)), color_features(args.fold_factor)])
        self.embed_words = Table(args.vocab_size, args.hidden_size)
        self.image_block = ImageBlock(args)
        self.layers = torch.nn.ModuleList(Layer(args) for _ in range(args.num_layers))
        self.norm = torch.nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.head = Table(args.vocab_size + args.num_pix, args.hidden_size, features)
        self.register_buffer("rotary", complex_table(args.max_seq_len, args), persistent=False)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Weighted sum of the nats of all targets, a scalar; not yet divided by Z."""
        states = self.image_block(batch["windows"])  # [B, N, P, D]
        x = self.elements(batch["before"], states[:, :, -1], batch["after"])
        if "picks" in batch:
            rows = torch.arange(len(x), device=x.device)[:, None]
            x = torch.cat([x, states.flatten(1, 2)[rows, batch["picks"]]], dim=1)  # [B, L + Q, D]
        logits = self.logits(self.language(x, batch["positions"], batch.get("mask")))
        nats = functional.cross_entropy(
            logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=IGNORE, reduction="none"
        )
        return (nats * batch["weights"].flatten()).sum()

    def elements(self, before: torch.Tensor, states: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Words ``[B, b]``, window states ``[B, N, D]`` and words ``[B, a]`` as one sequence ``[B, L, D]``."""
        words = self.embed_words()
        return torch.cat([functional.embedding(before, words), states, functional.embedding(after, words)], dim=1)

    def language(self, x: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The language block: ``x [B, L, D]`` at ``positions [B or 1, L]`` to normalised states."""
        rotary = self.rotary[0, positions]  # [B or 1, L, 1, d / 2]
        for layer in self.layers:
            x = layer(x, rotary, mask)
        return self.norm(x)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., D]`` to ``[..., V + K]``."""
        return functional.linear(x, self.head())


def complex_table(length: int, args: ModelArgs) -> torch.Tensor:
    """The library's rotary angles as complex numbers, ``[1, length, 1, d / 2]``."""
    cos, sin = torch.from_numpy(rotary_table(length, args.head_size, args.rope_theta))
    return torch.complex(cos, sin)[None, :, None]


def load_weights(peer: Peer, weights: Mapping[str, np.ndarray]) -> None:
    """Copy the parameters of an MLX model, as NumPy arrays by name."""
    peer.load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()})


def tensors(batch: SquareBatch) -> dict[str, torch.Tensor]:
    """The arrays of a batch as PyTorch takes them."""
    arrays = {name: value for name, value in vars(batch).items() if isinstance(value, np.ndarray)}
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def make_optimizer(peer: Peer, args: TrainArgs) -> torch.optim.Optimizer:
    """AdamW; weight decay falls on hidden matrices alone, as in the library."""
    hidden = [p for name, p in peer.named_parameters() if is_hidden_matrix(name)]
    rest = [p for name, p in peer.named_parameters() if not is_hidden_matrix(name)]
    groups: list[dict[str, Any]] = [{"params": hidden, "weight_decay": args.weight_decay}]
    groups.append({"params": rest, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True)


def train_step(
    peer: Peer, optimizer: torch.optim.Optimizer, batches: Sequence[dict[str, torch.Tensor]], normalizer: float,
    clip_norm: float,
) -> tuple[float, float]:  # fmt: skip
    """One optimiser step over all micro-batches: the loss, and the gradient's norm before clipping."""
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for batch in batches:
        loss = peer(batch) / normalizer
        loss.backward()
        total += loss.item()
    norm = torch.nn.utils.clip_grad_norm_(peer.parameters(), clip_norm)
    optimizer.step()
    return total, norm.item()
