"""The sequence model: a causal transformer over items, a dense head, and a small decoder that spells codes.

The split into a large transformer over positions and a small one over the codes of one position is that of the
RQ-Transformer (Lee et al. 2022, "Autoregressive Image Generation using Residual Quantization", section 3.2): here the
depth part is an MLP per level, fed with the position's state and the codes spelled so far. The dense head beside it,
tied to the inputs, is what LIGER (Yang et al. 2024) found to lift quality and rescue new items. With neither item
vectors nor codes, what remains is SASRec (Kang & McAuley 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class RetrieverConfig:
    """Model and training knobs. `fusion_weight` is what codes count beside the dense head; validation chooses it."""

    dim: int = 128
    blocks: int = 2
    heads: int = 4
    dropout: float = 0.3
    max_history: int = 50
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    patience: int = 4
    code_weight: float = 0.1
    full_softmax_up_to: int = 5_000
    negatives: int = 512
    fusion_weight: float = 0.3


class ItemTower(nn.Module):
    """What an item looks like to the model: content projection + sum of its codes' embeddings + learned residual.

    The residual counts only for items seen in training, so an unseen item is judged by content and codes alone and
    never by what being a negative example taught.
    """

    vectors: Tensor
    codes: Tensor
    seen: Tensor

    def __init__(self, dim: int, vectors: Tensor, codes: Tensor, sizes: Sequence[int], seen: Tensor) -> None:
        """vectors float32 [N, D] (D may be 0), codes int64 [N, L] (L may be 0), seen bool [N]."""
        super().__init__()
        self.register_buffer("vectors", vectors)
        self.register_buffer("codes", codes)
        self.register_buffer("seen", seen)
        self.content = nn.Linear(vectors.shape[1], dim, bias=False) if vectors.shape[1] else None
        self.code_embeddings = nn.ModuleList(nn.Embedding(size, dim) for size in sizes)
        self.residual = nn.Embedding(len(vectors), dim)
        if self.content is not None:
            nn.init.normal_(self.content.weight, std=dim**-0.5)
        for embedding in (*self.code_embeddings, self.residual):
            assert isinstance(embedding, nn.Embedding)
            nn.init.normal_(embedding.weight, std=0.5 * dim**-0.5)

    def forward(self, items: Tensor) -> Tensor:
        """int64 [...] -> [..., d]"""
        total = self.residual(items) * self.seen[items].unsqueeze(-1)
        if self.content is not None:
            total = total + self.content(self.vectors[items])
        for level, embedding in enumerate(self.code_embeddings):
            total = total + embedding(self.codes[items, level])
        return total


class Block(nn.Module):
    """Pre-norm transformer block with causal attention."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        people, steps, dim = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(people, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [B, heads, T, d / heads]
        mixed = mixed.transpose(1, 2).reshape(people, steps, dim)  # [B, T, d]
        x = x + F.dropout(self.out(mixed), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training)


class Backbone(nn.Module):
    """Item embeddings [B, T, d] -> states [B, T + 1, d]; state t has read the first t items, state 0 nothing at all."""

    def __init__(self, config: RetrieverConfig) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(config.dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(config.max_history + 1, config.dim) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config.dim, config.heads, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.start.expand(len(x), 1, -1), x], dim=1)  # [B, T + 1, d]
        x = self.dropout(x + self.positions[: x.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class DepthDecoder(nn.Module):
    """Spells a code level by level: p(c_l | h, c_1..c_{l-1}), a softmax over all codes of the level.

    Its state [..., d] is h plus the embeddings of the codes spelled so far; each level has its own MLP.
    """

    def __init__(self, dim: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.embeddings = nn.ModuleList(nn.Embedding(size, dim) for size in sizes[:-1])
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)) for _ in sizes
        )
        self.heads = nn.ModuleList(nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, size)) for size in sizes)
        for embedding in self.embeddings:
            assert isinstance(embedding, nn.Embedding)
            nn.init.normal_(embedding.weight, std=0.3)

    def logits(self, level: int, state: Tensor) -> Tensor:
        """[..., d] -> [..., sizes[level]]"""
        return self.heads[level](state + self.mlps[level](state))

    def advance(self, level: int, state: Tensor, code: Tensor) -> Tensor:
        """The state after spelling `code` int64 [...] on `level`."""
        return state if level + 1 == len(self.sizes) else state + self.embeddings[level](code)

    def log_probs(self, h: Tensor, codes: Tensor) -> Tensor:
        """h [..., d], codes int64 [..., L] -> log p of each code given those before it, [..., L]"""
        state, parts = h, []
        for level in range(len(self.sizes)):
            code = codes[..., level]
            log_p = F.log_softmax(self.logits(level, state), dim=-1)
            parts.append(log_p.gather(-1, code.unsqueeze(-1)).squeeze(-1))
            state = self.advance(level, state, code)
        return torch.stack(parts, dim=-1)


class SequenceModel(nn.Module):
    """Item tower, backbone, dense head (state · item embedding) and depth decoder, trained at all positions at once."""

    def __init__(
        self, config: RetrieverConfig, vectors: Tensor, codes: Tensor, sizes: Sequence[int], seen: Tensor
    ) -> None:
        super().__init__()
        if config.dim % config.heads:
            raise ValueError(f"dim={config.dim} is not a multiple of heads={config.heads}")
        self.config = config
        self.sizes = tuple(int(size) for size in sizes)
        self.tower = ItemTower(config.dim, vectors, codes, self.sizes, seen)
        self.backbone = Backbone(config)
        self.decoder = DepthDecoder(config.dim, self.sizes) if self.sizes else None

    @property
    def items(self) -> int:
        return len(self.tower.seen)

    def item_embeddings(self, chunk: int = 65536) -> Tensor:
        """[N, d], every item of the catalog."""
        everything = torch.arange(self.items, device=self.tower.seen.device)
        return torch.cat([self.tower(part) for part in everything.split(chunk)])

    def states(self, history: Tensor, embeddings: Tensor) -> Tensor:
        """history int64 [B, T], padded with -1 at the end; embeddings [M, d] that it indexes -> [B, T + 1, d]"""
        # Padding comes last and attention is causal: no real position ever reads it.
        x = embeddings[history.clamp(min=0)] * self.config.dim**0.5
        return self.backbone(x)

    def forward(self, sequences: Tensor, negatives: Tensor | None) -> Tensor:
        """The training loss of sequences int64 [B, T], -1 padded at the end: each item predicted from those before.

        negatives: int64 [M] drawn uniformly, shared by all positions, for a sampled softmax; None for the full softmax.
        """
        if negatives is None:
            embeddings, local, shared = self.item_embeddings(), sequences, None
        else:
            wanted = torch.cat([sequences[sequences >= 0], negatives])
            unique, where = wanted.unique(return_inverse=True)
            embeddings = self.tower(unique)  # [U, d]
            local = sequences.clone()
            local[sequences >= 0] = where[: -len(negatives)]
            shared = where[-len(negatives) :]
        states = self.states(local[:, :-1], embeddings)  # [B, T, d]
        real = local >= 0
        h, target = states[real], local[real]  # [P, d], [P]
        if shared is None:
            loss = F.cross_entropy(h @ embeddings.T, target)
        else:
            loss = sampled_softmax(h, embeddings, target, shared, self.items)
        if self.decoder is not None:
            h = F.dropout(h, self.config.dropout, self.training)
            codes = self.tower.codes[sequences[real]]  # [P, L]
            loss = loss - self.config.code_weight * self.decoder.log_probs(h, codes).sum(dim=-1).mean()
        return loss


def sampled_softmax(h: Tensor, embeddings: Tensor, target: Tensor, negatives: Tensor, items: int) -> Tensor:
    """Cross-entropy against the target and a uniform sample that stands for all other items.

    The log-q correction (Bengio & Senécal 2008; Yi et al. 2019, section 4): each of M negatives drawn with probability
    1 / N counts for N / M items, so log(N / M) is added to its logit. A negative that hits the target is left out.
    """
    positive = (h * embeddings[target]).sum(dim=-1, keepdim=True)  # [P, 1]
    logits = h @ embeddings[negatives].T + torch.log(torch.tensor(items / len(negatives)))  # [P, M]
    logits = logits.masked_fill(target.unsqueeze(1) == negatives, -torch.inf)
    return (torch.cat([positive, logits], dim=1).logsumexp(dim=1) - positive.squeeze(1)).mean()
