"""Hybrid retrieval: what spelling semantic IDs, the neighbours of a history and the dreams of the prior propose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmrec.config import Recipe
from mmrec.errors import MmrecError
from mmrec.workspace import Artifact, Workspace

if TYPE_CHECKING:
    from retrieval.hybrid import Vote
    from retrieval.index import VectorIndex
    from retrieval.ranking import Ranked

EACH = 50
"""How many items each source proposes."""
RECENT = 20
"""Liked items of a history whose neighbours are proposed."""
DREAMS = 16
PEOPLE, FEWEST = 500, 20
"""Validation events that the scores are calibrated on, at most and at least."""
SAID = {"codes": "spelt by its semantic ID", "neighbours": "near what you liked", "prior": "dreamt for you"}


class TooFewEvents(MmrecError):
    """The log is too short to say what the scores of the sources are worth."""


def proposals(
    retriever: Any,
    prior: Any,
    index: VectorIndex,
    vectors: np.ndarray,
    histories: Sequence[np.ndarray],
    preferences: Sequence[np.ndarray],
    *,
    allowed: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Ranked]:
    """Per source items int64 [B, n] and its own scores float32 [B, n]: log-probabilities of the beam, and cosines to
    the liked item or to the dream that brought the item. Nothing of the history comes back."""
    from diffusion.prior import POOL, Conditions

    found = {
        "codes": retriever.recommend(histories, EACH, preferences=preferences, mode="codes", allowed=allowed, beam=EACH)
    }
    liked = [history[liking > 0][-RECENT:] for history, liking in zip(histories, preferences, strict=True)]
    found["neighbours"] = _grounded([vectors[items] for items in liked], index, histories, allowed)
    conditions = Conditions.from_histories(histories, preferences, vectors)
    dreams = prior.sample(conditions, DREAMS, seed=seed, pool=POOL)  # [B, DREAMS, D]
    found["prior"] = _grounded(list(dreams), index, histories, allowed)
    return found


def calibrate(workspace: Workspace, recipe: Recipe) -> tuple[Artifact, bool]:
    """The stage `hybrid`: what each source's scores are worth, learned on the validation part of the split.

    Raises:
        TooFewEvents: if the validation part says nothing about any source.
    """
    from mmrec.stages import load_split, load_vectors

    stages = ("vectors", "ids", "index", "interactions", "retriever", "prior")
    inputs = {stage: workspace.require(stage).fingerprint for stage in stages}

    def write(folder: Any) -> None:
        from diffusion.prior import Prior
        from retrieval.hybrid import Hybrid
        from retrieval.index import VectorIndex
        from retrieval.retriever import Retriever

        _, _, split = load_split(workspace, recipe)
        part = split.valid
        if len(part) < FEWEST:
            raise TooFewEvents(f"{len(part)} validation events, {FEWEST} are needed", mend="ingest a longer log")
        rows = np.random.default_rng(recipe.seed).permutation(len(part.targets))[:PEOPLE]
        found = proposals(
            Retriever.from_pretrained(workspace.require("retriever").path),
            Prior.from_pretrained(workspace.require("prior").path),
            VectorIndex.load(workspace.require("index").path),
            load_vectors(workspace),
            [part.histories[row] for row in rows],
            [part.preferences[row] for row in rows],
            seed=recipe.seed,
        )
        targets = np.array([part.targets[row][0] for row in rows])
        able = {name: ranked for name, ranked in found.items() if (ranked[0] == targets[:, None]).any()}
        if not able:
            raise TooFewEvents(f"no source found any of {len(rows)} next items", mend="ingest a longer log")
        Hybrid.fit(able, targets).save(folder)
        hits = ", ".join(
            f"{name} {(items == targets[:, None]).any(1).mean():.0%}" for name, (items, _) in found.items()
        )
        print(f"  the next item is among the {EACH} that each source proposes for {len(rows):,} people: {hits}")

    return workspace.build("hybrid", inputs, {"split": recipe.split, "seed": recipe.seed}, write)


def told(votes: Sequence[Vote]) -> str:
    """Who proposed an item, in words: "spelt by its semantic ID (2nd), dreamt for you (1st)"."""
    return ", ".join(f"{SAID[vote.source]} ({_nth(vote.rank)})" for vote in votes)


def _nth(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _grounded(
    seeds: list[np.ndarray], index: VectorIndex, histories: Sequence[np.ndarray], allowed: np.ndarray | None
) -> Ranked:
    from retrieval.grounding import ground

    items = np.full((len(seeds), EACH), -1, np.int64)
    scores = np.full((len(seeds), EACH), -np.inf, np.float32)
    for row, (mine, history) in enumerate(zip(seeds, histories, strict=True)):
        if len(mine):
            grounding = ground(mine, None, index, EACH, exclude=history, allowed=allowed)
            items[row], scores[row] = grounding.items, grounding.scores
    return items, scores
