"""HSTU (Zhai et al. 2024, "Actions Speak Louder than Words", section 3.1): attention without a softmax, gated.

The block takes the place of the transformer block in SASRec; items, loss and training stay, so the difference between
the two rows is the block. Attention weights are SiLU(q k + bias by distance), divided by the length instead of by their
sum, so that how much was read is not lost; the result is normalised and gated element by element.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrieval.baselines.item_model import CausalModel, ItemBaseline
from retrieval.model import sampled_softmax


class HSTUBlock(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm, self.mixed_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.uvqk = nn.Linear(dim, 4 * dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.by_distance = nn.Parameter(torch.zeros(heads, window))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]; no position reads a later one."""
        steps = x.shape[1]
        u, v, q, k = F.silu(self.uvqk(self.norm(x))).chunk(4, dim=-1)
        v, q, k = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (v, q, k)
        )  # [B, heads, T, d / heads]
        at = torch.arange(steps, device=x.device)
        distance = at.unsqueeze(1) - at  # [T, T]
        bias = self.by_distance[:, distance.clamp(min=0)]  # [heads, T, T]
        weights = F.silu(q @ k.transpose(2, 3) + bias) * (distance >= 0) / self.window
        mixed = (weights @ v).transpose(1, 2).flatten(-2)  # [B, T, d]
        return x + self.out(self.dropout(self.mixed_norm(mixed) * u))


class HSTU(ItemBaseline):
    name = "hstu"

    def network(self, items: int) -> CausalModel:
        model, config = CausalModel(self.config, items), self.config
        window = config.max_history + 1
        model.backbone.blocks = nn.ModuleList(
            HSTUBlock(config.dim, config.heads, config.dropout, window) for _ in range(config.blocks)
        )
        return model

    def loss(self, model: CausalModel, sequences: Tensor) -> Tensor:
        h, target = model.pairs(sequences)
        items = len(model.items.weight)
        if items <= self.config.full_softmax_up_to:
            return F.cross_entropy(h @ model.items.weight.T, target)
        negatives = torch.randint(items, (self.config.negatives,), device=sequences.device)
        return sampled_softmax(h, model.items.weight, target, negatives, items)
