"""A small world with structure: eight clusters of items, people who stay in one or two of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from retrieval.model import RetrieverConfig
from retrieval.semantic_ids import ResidualKMeans, SemanticIds, assign_unique

SMALL = RetrieverConfig(dim=32, blocks=1, heads=2, epochs=6, batch_size=32, learning_rate=5e-3, max_history=8)


@dataclass(frozen=True)
class World:
    vectors: np.ndarray
    histories: list[np.ndarray]
    targets: np.ndarray
    tokenizer: ResidualKMeans
    ids: SemanticIds


@pytest.fixture(scope="session")
def small() -> RetrieverConfig:
    """Trains in a second."""
    return SMALL


@pytest.fixture(scope="session")
def world() -> World:
    random = np.random.default_rng(7)
    centers = random.standard_normal((8, 16))
    vectors = np.repeat(centers, 15, axis=0) + 0.3 * random.standard_normal((120, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    histories, targets = [], []
    for _ in range(150):
        tastes = random.choice(8, 2, replace=False)
        length = int(random.integers(4, 20))
        events = random.choice(tastes, length + 1) * 15 + random.integers(15, size=length + 1)
        histories.append(events[:-1].astype(np.int64))
        targets.append(events[-1])
    tokenizer = ResidualKMeans(levels=2, codebook_size=8)
    tokenizer.fit(vectors, seed=0)
    return World(
        vectors, histories, np.array(targets), tokenizer, assign_unique(tokenizer.encode(vectors), vectors, tokenizer)
    )
