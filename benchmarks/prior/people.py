"""Who is learned from, who is asked, and what is shown of those who are asked.

Nobody who is asked is learned from. A fifth of the people who can be asked are set aside for all choices; the others
fall into five parts, and seed s asks part s and learns from everybody else but those set aside. Half of what an asked
person rated is shown, the likes of the other half are held out. None of the three logs has times, so a person's events
are in an order drawn once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mmrec import stages
from mmrec.catalog import Catalog
from mmrec.config import Recipe
from mmrec.interactions import Histories, Queries, load_histories
from mmrec.workspace import Workspace

PARTS = 5
SHOWN = 50
MOST_LIKES = 100  # of a person, for what is used together
DATASETS: dict[str, dict[str, Any]] = {
    "ml1m_posters": {"fewest": 10, "asked": 200, "dim": 128, "k": 10, "clusters": 20, "assigned": False},
    "emotify": {"fewest": 4, "asked": None, "dim": 64, "k": 5, "clusters": 8, "assigned": True},
    "oasis_beauty": {"fewest": 4, "asked": None, "dim": 64, "k": 5, "clusters": 8, "assigned": True},
}
"""Likes a person needs to be asked, people asked per seed (None: all), dimensions of the item space, list length."""


@dataclass(frozen=True)
class Study:
    """One question: what is learned from, who is asked, in which item space."""

    name: str
    seed: int | None  # None: the people set aside for choices
    train: Histories
    asked: Queries
    aside: Histories
    unseen: Histories  # all that the asked rated and were not shown
    vectors: np.ndarray  # float32 [N, D], unit length
    embeddings: stages.Embeddings
    catalog: Catalog

    @property
    def assigned(self) -> bool:
        """Whether people were given the items they rated, so that only what they were given can be asked for."""
        return bool(DATASETS[self.name]["assigned"])

    @property
    def k(self) -> int:
        return int(DATASETS[self.name]["k"])


def build(name: str, folder: Path) -> Workspace:
    """The data set's catalog, log and embeddings, made by the stages of its recipe."""
    recipe = Recipe.load(Path("recipes") / f"{name}.yaml")
    space = Workspace(folder / name)
    stages.ingest(space, recipe)
    stages.embed(space, recipe)
    return space


@lru_cache(maxsize=4)
def study(name: str, seed: int | None, folder: Path, dim: int | None = None) -> Study:
    """The question of one seed, or with None the one that choices are made by."""
    from encoders.fusion import Fusion, FusionConfig

    space = Workspace(folder / name)
    catalog = Catalog.load(space.require("catalog").path)
    everyone = _shuffled(load_histories(space.require("interactions").path, catalog.index))
    options = DATASETS[name]
    liked = np.array([(p > 0).sum() for p in everyone.preferences])
    can = np.flatnonzero(liked >= options["fewest"])
    can = np.random.default_rng(20).permutation(can)
    aside, parts = can[: len(can) // PARTS], np.array_split(can[len(can) // PARTS :], PARTS)
    asked = aside if seed is None else parts[seed]
    if options["asked"] is not None:
        asked = asked[: options["asked"]]
    train = np.setdiff1d(np.arange(len(everyone)), np.concatenate([aside, parts[seed] if seed is not None else aside]))
    learned = _some(everyone, train)
    embeddings = stages.load_embeddings(space)
    likes = [h[p > 0][:MOST_LIKES] for h, p in zip(learned.items, learned.preferences, strict=True)]
    pairs = stages.used_together(likes)
    config = FusionConfig(dim=dim or options["dim"])
    vectors = Fusion.fit(embeddings.vectors, embeddings.present, pairs, config, 0).transform(
        embeddings.vectors, embeddings.present
    )
    questions, unseen = _questions(everyone, asked)
    return Study(name, seed, learned, questions, _some(everyone, aside), unseen, vectors, embeddings, catalog)


def _shuffled(everyone: Histories) -> Histories:
    items, preferences = [], []
    for person, (h, p) in enumerate(zip(everyone.items, everyone.preferences, strict=True)):
        order = np.random.default_rng([21, person]).permutation(len(h))
        items.append(h[order])
        preferences.append(p[order])
    return Histories(everyone.user_ids, items, preferences, everyone.times)


def _some(everyone: Histories, rows: np.ndarray) -> Histories:
    return Histories(
        [everyone.user_ids[i] for i in rows],
        [everyone.items[i] for i in rows],
        [everyone.preferences[i] for i in rows],
        [everyone.times[i] for i in rows],
    )


def _questions(everyone: Histories, rows: np.ndarray) -> tuple[Queries, Histories]:
    """Of each person half of the likes and half of the rest, at most `SHOWN` in all; the other half is held out."""
    shown, rated, targets, rest, said = [], [], [], [], []
    for person in rows:
        h, p = everyone.items[person], everyone.preferences[person]
        first = np.zeros(len(h), bool)
        for kind in (p > 0, p <= 0):
            where = np.flatnonzero(kind)
            first[where[: len(where) // 2]] = True
        show = np.flatnonzero(first)[:SHOWN]
        hide = np.setdiff1d(np.arange(len(h)), show)
        shown.append(h[show])
        rated.append(p[show])
        targets.append(h[hide][p[hide] > 0])
        rest.append(h[hide])
        said.append(p[hide])
    ids = [everyone.user_ids[i] for i in rows]
    return Queries(rows, shown, rated, targets), Histories(ids, rest, said, [np.full(len(r), np.nan) for r in rest])
