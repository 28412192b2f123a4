"""The denoiser: a residual MLP that looks at everything known about a person.

AdaLN as in DiT (Peebles & Xie 2023, section 3.2) with one shared modulation as in PixArt-alpha (Chen et al. 2023,
section 2.3, "adaLN-single"); cross-attention to a set of condition tokens. A guidance branch is only another mask over
the same tokens, so keys and values are computed once per call whatever the number of branches, seeds and steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn

KINDS = ("likes", "dislikes", "text", "image", "audio", "avoid")
"""What a condition token can be. Each kind is dropped on its own in training, and is a dial when sampling."""
STEERS = KINDS[2:]


Count = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class PriorConfig:
    """Shape of the network and how it is trained. `dim` 0 means: take it from the item vectors."""

    dim: Annotated[int, Ge(0)] = 0
    width: Count = 256
    depth: Count = 4
    heads: Count = 4
    context_width: Count = 128
    max_history: Count = 50
    noise_shift: Annotated[float, Gt(0)] = 4.0  # see flow.levels
    batch_size: Count = 128
    targets: Count = 8  # noised targets per person and step; they share the person's keys and values
    steps: Count = 400
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    weight_decay: Annotated[float, Ge(0)] = 0.01
    ema_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.995
    checkpoint_every: Count = 100

    def __post_init__(self) -> None:
        if self.context_width % self.heads:
            raise ValueError(f"context_width={self.context_width} is not a multiple of heads={self.heads}")


@dataclass
class Context:
    """Condition tokens of B people, read once. S = 1 (nothing known) + T (history) + 4 (steers)."""

    tokens: Tensor  # [B, S, C]
    kind: Tensor  # [B, S] index into KINDS, -1 for the token that is always there
    present: Tensor  # [B, S] bool
    keys_values: list[tuple[Tensor, Tensor]]  # per block: [B, H, S, C/H] each


class Block(nn.Module):
    """Cross-attention, then an MLP; both modulated by (shift, scale, gate)."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        width, inner = config.width, config.context_width
        self.heads = config.heads
        self.query, self.out = nn.Linear(width, inner, bias=False), nn.Linear(inner, width)
        self.key_value = nn.Linear(inner, 2 * inner, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.modulation = nn.Parameter(torch.zeros(6, width))

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens [B, S, C] -> two of [B, H, S, C/H]."""
        batch, length, inner = tokens.shape
        both = self.key_value(tokens).view(batch, length, 2, self.heads, inner // self.heads)  # [B, S, 2, H, C/H]
        keys, values = both.permute(2, 0, 3, 1, 4)  # 2 x [B, H, S, C/H]
        return keys, values

    def forward(self, x: Tensor, modulation: Tensor, keys_values: tuple[Tensor, Tensor], visible: Tensor) -> Tensor:
        """x [B, Q, W], modulation [B, Q, 6, W], visible bool [B, Q, S] -> [B, Q, W]"""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (modulation + self.modulation).unbind(2)
        y = F.layer_norm(x, x.shape[-1:]) * (1 + scale_a) + shift_a
        query = self.query(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, Q, C/H]
        seen = F.scaled_dot_product_attention(query, *keys_values, attn_mask=visible.unsqueeze(1))
        x = x + gate_a * self.out(seen.transpose(1, 2).flatten(2))  # [B, Q, C] -> [B, Q, W]
        y = F.layer_norm(x, x.shape[-1:]) * (1 + scale_m) + shift_m
        return x + gate_m * self.mlp(y)


class Denoiser(nn.Module):
    """(noisy vectors, noise level, what is known of the person) -> a correction of the vectors, same shape."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        if config.dim < 1:
            raise ValueError(f"PriorConfig.dim is {config.dim}: the network needs that of the item vectors")
        self.config = config
        width, inner = config.width, config.context_width
        self.item = nn.Linear(config.dim, inner)
        self.preference = nn.Sequential(nn.Linear(3, inner), nn.SiLU(), nn.Linear(inner, inner))
        self.recency = nn.Parameter(0.02 * torch.randn(config.max_history, inner))
        self.steer = nn.ModuleList(nn.Linear(config.dim, inner) for _ in STEERS)
        self.nothing = nn.Parameter(0.02 * torch.randn(inner))
        self.normalise = nn.LayerNorm(inner)
        self.time = nn.Sequential(nn.Linear(64, width // 2), nn.SiLU(), nn.Linear(width // 2, width // 2))
        self.summary = nn.Sequential(nn.Linear(len(KINDS) * (inner + 1), width), nn.SiLU())
        self.summary_to_condition = nn.Linear(width, width // 2)
        self.summary_to_input = nn.Linear(width, width)
        self.modulation = nn.Linear(width // 2, 6 * width)
        self.input = nn.Linear(config.dim, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.output = nn.Linear(width, config.dim)
        for layer in (self.modulation, self.output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def read(
        self, history: Tensor, preferences: Tensor, mask: Tensor, steers: Tensor, given: Tensor, ordered: Tensor
    ) -> Context:
        """Turn conditions into tokens, keys and values.

        history [B, T, D] unit vectors, oldest first; preferences [B, T]; mask bool [B, T]; steers [B, 4, D] in the
        order of STEERS with given bool [B, 4]; ordered bool [B]: False where the order of the history means nothing.
        """
        batch, scale = len(history), math.sqrt(self.config.dim)
        recency = (mask.flip(1).cumsum(1).flip(1) - 1).clamp(0, self.config.max_history - 1)  # [B, T] 0 = latest
        rated = torch.stack([preferences, preferences.abs(), (preferences < 0).float()], -1)  # [B, T, 3]
        events = self.item(history * scale) + self.preference(rated)
        events = events + self.recency[recency] * ordered[:, None, None]
        pushes = torch.stack([layer(steers[:, i] * scale) for i, layer in enumerate(self.steer)], 1)  # [B, 4, C]
        tokens = torch.cat([self.nothing.expand(batch, 1, -1), events, pushes], 1)  # [B, S, C]
        tokens = self.normalise(tokens)
        kind = torch.cat(
            [
                torch.full((batch, 1), -1, device=tokens.device),
                (preferences < 0).long(),
                torch.arange(2, len(KINDS), device=tokens.device).expand(batch, -1),
            ],
            1,
        )
        present = torch.cat([mask.new_ones(batch, 1), mask, given], 1)
        return Context(tokens, kind, present, [cast(Block, block).read(tokens) for block in self.blocks])

    def summarise(self, context: Context, visible: Tensor) -> Tensor:
        """Mean of the visible tokens of each kind, and whether there are any. visible [B, G, S] -> [B, G, W]"""
        kinds = torch.arange(len(KINDS), device=visible.device)
        of_kind = (context.kind.unsqueeze(1) == kinds[:, None]).unsqueeze(1) & visible.unsqueeze(2)  # [B, G, K, S]
        weight = of_kind.to(context.tokens.dtype)
        count = weight.sum(-1, keepdim=True)  # [B, G, K, 1]
        mean = torch.einsum("bgks,bsc->bgkc", weight, context.tokens) / count.clamp(min=1)
        return self.summary(torch.cat([mean, (count > 0).to(mean.dtype)], -1).flatten(2))

    def forward(self, x: Tensor, level: Tensor, context: Context, visible: Tensor, summary: Tensor) -> Tensor:
        """x [B, G, n, D]; level in [0, 1], broadcast to [B, G, n]; visible bool [B, G, S]; summary [B, G, W]."""
        batch, branches, n, _ = x.shape
        frequencies = torch.exp(torch.linspace(0, math.log(200.0), 32, device=x.device))
        angles = level.expand(batch, branches, n).unsqueeze(-1) * frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))  # [B, G, n, W/2]
        condition = time + self.summary_to_condition(summary).unsqueeze(2)
        modulation = self.modulation(F.silu(condition)).flatten(1, 2).unflatten(-1, (6, -1))  # [B, Gn, 6, W]
        hidden = (self.input(x) + self.summary_to_input(summary).unsqueeze(2)).flatten(1, 2)  # [B, Gn, W]
        seen = visible.unsqueeze(2).expand(-1, -1, n, -1).flatten(1, 2)  # [B, Gn, S]
        for block, keys_values in zip(self.blocks, context.keys_values, strict=True):
            hidden = block(hidden, modulation, keys_values, seen)
        return self.output(F.layer_norm(hidden, hidden.shape[-1:])).view(batch, branches, n, -1)
