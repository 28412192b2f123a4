"""The two living peers of the prior, as references: REBECA, and a prior in the manner of The Other Tiger."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.guidance import Dials
from diffusion.prior import POOL, Conditions, Prior
from diffusion.training import train_prior

if TYPE_CHECKING:
    from benchmarks.prior.rows import Answer, Bench

TOKENS, WIDTH, LAYERS = 32, 128, 6
LEVELS = 1000
GUIDANCE = 3.0
DROPPED = 0.15


class Rebeca(nn.Module):
    """REBECA's network: the vector as 32 tokens of 128, six transformer layers, an embedding per user ID, like or
    dislike, and the time step as further tokens; it predicts x0."""

    def __init__(self, dim: int, users: int) -> None:
        super().__init__()
        self.dim = dim
        self.into = nn.Linear(math.ceil(dim / TOKENS), WIDTH)
        self.place = nn.Parameter(0.02 * torch.randn(TOKENS, WIDTH))
        self.user = nn.Embedding(users + 1, WIDTH)  # the last one is nobody
        self.like = nn.Embedding(3, WIDTH)  # disliked, liked, not said
        self.time = nn.Sequential(nn.Linear(64, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.out = nn.Linear(WIDTH, math.ceil(dim / TOKENS))

    def forward(self, x: Tensor, level: Tensor, user: Tensor, like: Tensor) -> Tensor:
        """x [B, D], level [B] in [0, 1], user and like int64 [B] -> x0 [B, D]"""
        padded = F.pad(x, (0, -self.dim % TOKENS)).unflatten(1, (TOKENS, -1))  # [B, 32, D / 32]
        frequencies = torch.exp(torch.linspace(0, math.log(1000.0), 32))
        angles = level[:, None] * frequencies
        told = torch.stack(
            [self.user(user), self.like(like), self.time(torch.cat([angles.sin(), angles.cos()], 1))], 1
        )  # [B, 3, 128]
        hidden = self.body(torch.cat([self.into(padded) + self.place, told], 1))[:, :TOKENS]
        return self.out(hidden).flatten(1)[:, : self.dim]


def signal(level: Tensor) -> Tensor:
    """alpha-bar of the cosine schedule (Nichol & Dhariwal 2021, eq. 17)."""
    return torch.cos((level + 0.008) / 1.008 * math.pi / 2).square().clamp(1e-5, 0.9999)


def train(
    histories: list[np.ndarray], preferences: list[np.ndarray], vectors: np.ndarray, steps: int, seed: int
) -> Rebeca:
    generator = torch.Generator().manual_seed(seed)
    people = torch.from_numpy(np.repeat(np.arange(len(histories)), [len(h) for h in histories]))
    items = torch.from_numpy(np.concatenate(histories))
    liked = torch.from_numpy((np.concatenate(preferences) > 0).astype(np.int64))
    table = torch.from_numpy(vectors * math.sqrt(vectors.shape[1]))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Rebeca(vectors.shape[1], len(histories))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        pick = torch.randint(len(items), (64,), generator=generator)
        user, like = people[pick].clone(), liked[pick].clone()
        user[torch.rand(64, generator=generator) < DROPPED] = len(histories)
        like[torch.rand(64, generator=generator) < DROPPED] = 2
        level = torch.rand(64, generator=generator)
        x0 = table[items[pick]].float()
        alpha = signal(level)[:, None]
        x = alpha.sqrt() * x0 + (1 - alpha).sqrt() * torch.randn(x0.shape, generator=generator)
        loss = (model(x, level, user, like) - x0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def sample(model: Rebeca, users: np.ndarray, n: int, seed: int, levels: int = LEVELS) -> np.ndarray:
    """n seeds for each user by ancestral sampling (Ho et al. 2020, algorithm 2), two forwards a step. [B, n, D]"""
    generator = torch.Generator().manual_seed(seed)
    user = torch.from_numpy(np.repeat(users, n))
    x = torch.randn(len(user), model.dim, generator=generator)
    nobody, unsaid = torch.full_like(user, model.user.num_embeddings - 1), torch.full_like(user, 2)
    grid = torch.linspace(1, 0, levels + 1)
    for i in range(levels):
        level = grid[i].expand(len(user))
        told = model(x, level, user, torch.ones_like(user))
        free = model(x, level, nobody, unsaid)
        x0 = free + GUIDANCE * (told - free)
        now, then = signal(grid[i]), signal(grid[i + 1])
        beta = 1 - now / then
        mean = then.sqrt() * beta / (1 - now) * x0 + (now / then).sqrt() * (1 - then) / (1 - now) * x
        x = mean + (beta * (1 - then) / (1 - now)).sqrt() * torch.randn(x.shape, generator=generator)
    return F.normalize(x, dim=1).view(len(users), n, -1).numpy()


def rebeca(bench: Bench, people: int = 12, n: int = 4, steps: int = 600) -> Answer:
    """REBECA cannot serve a person it was not trained with: what is shown of the asked is put into its training, which
    is the retraining each new person would need; a few people with a few seeds are asked, for it is slow."""
    from benchmarks.prior.rows import Answer

    learned, q = bench.study.train, bench.asked
    rows = np.arange(min(people, len(q)))
    model = train(
        [*learned.items, *q.histories], [*learned.preferences, *q.preferences], bench.vectors, steps, bench.seed
    )
    start = time.process_time()
    seeds = sample(model, len(learned) + rows, n, bench.seed)
    rate = len(rows) * n / (time.process_time() - start)
    return Answer(bench.plain(list(seeds)), list(seeds), rate, 2 * LEVELS, rows)


def other_tiger(bench: Bench, n: int = 8, steps: int = 50) -> Answer:
    """rynmurdock/preference-prior: a few liked vectors with their scores condition a prior, no training for a new
    person, 50 steps. Here: our network shown the last eight rated items, no dials, plain grounding."""
    from benchmarks.prior.rows import Answer

    few = 8
    config = bench.config(max_history=few)
    prior = bench.model("other-tiger", train_prior, Prior, config)
    q = bench.asked
    conditions = Conditions.from_histories(q.histories, q.preferences, bench.vectors, max_history=few, ordered=False)
    start = time.process_time()
    seeds = prior.sample(conditions, n, steps=steps, dials=Dials(likes=2.0), seed=bench.seed, pool=POOL)
    rate = len(seeds) * n / (time.process_time() - start)
    return Answer(bench.plain(list(seeds)), list(seeds), rate, POOL * 2 * steps)
