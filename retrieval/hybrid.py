"""Several retrievers merged into one list: their scores become probabilities, and every item tells who brought it.

Scores of different retrievers do not compare: a beam gives log-probabilities, neighbours give cosines. Each source is
calibrated by itself (Platt 1999, "Probabilistic outputs for support vector machines"): a logistic regression on
events it never learned from turns score and rank into the probability that the item is the next one wanted. An item
that several sources bring has the probability that one of them is right: 1 - (1 - p1)(1 - p2)..., as if they erred
independently (Fox & Shaw 1994 weigh the same evidence by CombMNZ: more sources, more trust).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from retrieval.files import read_json, write_json
from retrieval.ranking import Ranked


@dataclass(frozen=True)
class Vote:
    """One source that proposed an item: at which rank (from 1), with which score of its own, and what that is worth."""

    source: str
    rank: int
    score: float
    probability: float


@dataclass(frozen=True)
class Calibration:
    """sigmoid(bias + by_score * (score - mean) / spread + by_rank * log(rank)), never higher at a worse rank."""

    mean: float
    spread: float
    bias: float
    by_score: float
    by_rank: float

    def probability(self, scores: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """float64, of the shape of both."""
        z = (np.where(np.isfinite(scores), scores, self.mean) - self.mean) / self.spread
        return 1 / (1 + np.exp(-(self.bias + self.by_score * z + self.by_rank * np.log(ranks))))


class Hybrid:
    """Sources by name with the calibration of each. Made by `fit` or `load`."""

    def __init__(self, sources: Mapping[str, Calibration]) -> None:
        self.sources = dict(sources)

    @classmethod
    def fit(cls, proposals: Mapping[str, Ranked], targets: np.ndarray) -> Hybrid:
        """Calibrate on people whose next item is known, int64 [B]: per source items and scores [B, n], best first.

        Raises ValueError for a source that never proposed the next item, or nobody to learn from.
        """
        return cls({name: _calibrate(name, *found, np.asarray(targets)) for name, found in proposals.items()})

    def merge(self, proposals: Mapping[str, Ranked], k: int) -> tuple[np.ndarray, np.ndarray, list[list[list[Vote]]]]:
        """Items int64 [B, k] (-1), probabilities float32 [B, k] (-inf), and per person and place the votes for it, the
        weightiest first. Ties go to the lower item. Raises ValueError for a source that was not calibrated."""
        unknown = set(proposals) - set(self.sources)
        if unknown:
            raise ValueError(f"{sorted(unknown)[0]!r} was not calibrated; {', '.join(self.sources)} were")
        people = len(next(iter(proposals.values()))[0])
        items = np.full((people, k), -1, np.int64)
        scores = np.full((people, k), -np.inf, np.float32)
        told: list[list[list[Vote]]] = []
        for person in range(people):
            votes: dict[int, list[Vote]] = {}
            for name, (found, own) in proposals.items():
                worth = self.sources[name].probability(own[person], np.arange(1, len(found[person]) + 1))
                for place in np.flatnonzero(found[person] >= 0):
                    vote = Vote(name, int(place) + 1, float(own[person, place]), float(worth[place]))
                    votes.setdefault(int(found[person, place]), []).append(vote)
            merged = {item: 1 - np.prod([1 - vote.probability for vote in by]) for item, by in votes.items()}
            best = sorted(merged, key=lambda item: (-merged[item], item))[:k]
            items[person, : len(best)] = best
            scores[person, : len(best)] = [merged[item] for item in best]
            told.append([sorted(votes[item], key=lambda vote: -vote.probability) for item in best])
        return items, scores, told

    def save(self, path: Path) -> None:
        """Write `hybrid.json` into the folder `path`."""
        write_json(Path(path) / "hybrid.json", {name: asdict(one) for name, one in self.sources.items()})

    @classmethod
    def load(cls, path: Path) -> Hybrid:
        """Read what `save` wrote. Raises FileNotFoundError or ValueError."""
        try:
            return cls({name: Calibration(**one) for name, one in read_json(Path(path) / "hybrid.json").items()})
        except TypeError as error:
            raise ValueError(f"{path} holds no calibration of this version ({error}): make it again") from error


def _calibrate(name: str, items: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> Calibration:
    from sklearn.linear_model import LogisticRegression

    there = items >= 0
    hit = (items == targets[:, None])[there]
    if not hit.any():
        raise ValueError(f"{name} never proposed what came next for any of {len(targets)} people: leave it out")
    own = scores[there].astype(np.float64)
    ranks = np.broadcast_to(np.arange(1, items.shape[1] + 1), items.shape)[there]
    mean, spread = float(own.mean()), float(own.std()) + 1e-9
    features = np.stack([(own - mean) / spread, np.log(ranks)], axis=1)
    model = LogisticRegression().fit(features, hit)
    by_score, by_rank = model.coef_[0]
    if by_score < 0 or by_rank > 0:  # the one explains the other: keep the order of the source
        model = LogisticRegression().fit(features[:, 1:], hit)
        by_score, by_rank = 0.0, min(float(model.coef_[0, 0]), 0.0)
    return Calibration(mean, spread, float(model.intercept_[0]), float(by_score), float(by_rank))
