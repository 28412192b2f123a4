"""Would this person like it? The verifier that stands between what was dreamt and what is shown.

Logistic regression over what a vector has in common with what the person liked and disliked: one small model for
everybody, so a new person needs no training. It learns from ratings: each target is held away from the rest of its
person's history, and likes stand against dislikes and against items never met, at even odds. So 1/2 is the border
between what is rather theirs and what is rather not. It is the check of fidelity that GeneRec (Wang et al. 2023) asks
for before anything generated is shown.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

FILE = "verifier.json"
PEOPLE = 4000  # at most so many are learned from
TARGETS = 8  # and so many likes, dislikes and unmet items of each
HELD_OUT = 0.2  # share of the people that it is measured on
BINS = 10  # of the calibration error


def taste_features(vectors: np.ndarray, liked: np.ndarray, disliked: np.ndarray) -> np.ndarray:
    """What vectors [S, D] have in common with what was liked [L, D] and disliked [M, D]; unit rows. -> [S, 8]

    Of each side the largest cosine, the mean of the largest third (a mixed taste need not be liked all at once), the
    mean of all, and how much is known (log of the count).
    """
    columns: list[np.ndarray] = []
    for known in (liked, disliked):
        if not len(known):
            columns += [np.zeros(len(vectors))] * 4
            continue
        cosine = np.sort(vectors @ known.T, axis=1)  # [S, L]
        near = cosine[:, -max(1, len(known) // 3) :].mean(axis=1)
        columns += [cosine[:, -1], near, cosine.mean(axis=1), np.full(len(vectors), np.log1p(len(known)))]
    return np.stack(columns, axis=1).astype(np.float64)


@dataclass(frozen=True)
class Verifier:
    """Made by `fit_verifier`. `held_out` tells what it is worth on people it has not seen.

    (The item space itself may have seen what they used together: the fusion learns from everybody's training events.)

    "auc" of likes against dislikes and unmet items, "auc_disliked" and "auc_unmet" against either alone,
    "calibration_error" (expected, ten bins) and "people"; a number that too few people can tell is left out.
    """

    weights: tuple[float, ...]  # of `taste_features`, after which comes the bias
    held_out: dict[str, float]

    def probability(self, vectors: np.ndarray, liked: np.ndarray, disliked: np.ndarray) -> np.ndarray:
        """That the person likes each of vectors [S, D], at even odds. -> float32 [S]"""
        logits = taste_features(vectors, liked, disliked) @ self.weights[:-1] + self.weights[-1]
        return (1 / (1 + np.exp(-logits))).astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write `verifier.json` into the folder."""
        (folder / f"{FILE}.part").write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(folder / f"{FILE}.part", folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Verifier:
        """Read what `save` wrote. Raises FileNotFoundError."""
        stored = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return cls(tuple(stored["weights"]), stored["held_out"])


def fit_verifier(
    histories: Sequence[np.ndarray], preferences: Sequence[np.ndarray], vectors: np.ndarray, *, seed: int
) -> Verifier:
    """Learn from people's rated histories (item indices, [-1, 1]) over item vectors [N, D].

    Raises ValueError if nobody liked anything beside something else.
    """
    random = np.random.default_rng(seed)
    people = random.permutation([row for row, history in enumerate(histories) if len(history) > 1])[:PEOPLE]
    examples = [_targets(np.asarray(histories[row]), np.asarray(preferences[row]), vectors, random) for row in people]
    if not any((sort > 0).any() for _, sort in examples):
        raise ValueError("nobody liked anything beside something else, so there is no taste to learn")
    held = int(HELD_OUT * len(examples))
    measured = _measure(_fit(examples[held:]), examples[:held]) if held else {}
    return Verifier(tuple(float(w) for w in _fit(examples)), measured)


def _targets(
    items: np.ndarray, preference: np.ndarray, vectors: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One person's features [S, 8], each target away from its history, and sorts [S]: 1 like, -1 dislike, 0 unmet.

    Whatever the target, one like and one dislike are taken out of the history (the target is one of the two, or they
    are drawn): otherwise how many are left would tell what the target was. Of the rest a share is known, any from one
    event to all, so that people of whom little is known are met too.
    """
    sides = {side: random.permutation(items[np.sign(preference) == side]) for side in (1, -1)}
    unmet = np.setdiff1d(random.integers(len(vectors), size=min(TARGETS, len(sides[1]))), items)
    targets = {1: sides[1][:TARGETS], -1: sides[-1][:TARGETS], 0: unmet}
    rows, sorts = [], []
    for sort, chosen in targets.items():
        for target in chosen:
            rest, share = {}, random.random()
            for side, known in sides.items():
                out = target if side == sort else known[random.integers(len(known))] if len(known) else -1
                left = known[known != out]
                rest[side] = vectors[left[: int(np.ceil(share * len(left)))]]
            rows.append(taste_features(vectors[target][None], rest[1], rest[-1]))
            sorts.append(sort)
    return np.concatenate(rows) if rows else np.zeros((0, 8)), np.array(sorts, np.int64)


def _fit(examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Weights and bias; likes count as much as all else together, dislikes as much as unmet items."""
    from sklearn.linear_model import LogisticRegression

    features, sort = (np.concatenate(part) for part in zip(*examples, strict=True))
    if len(np.unique(sort > 0)) < 2:
        return np.zeros(features.shape[1] + 1)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-6, scale, 1.0)
    model = LogisticRegression(max_iter=1000)
    model.fit((features - mean) / scale, sort > 0, sample_weight=_even(sort) * len(sort))
    weights = model.coef_[0] / scale
    return np.append(weights, model.intercept_[0] - weights @ mean)


def _even(sort: np.ndarray) -> np.ndarray:
    """Weights that sum to 1: half for likes, the rest for what there is of dislikes and unmet items."""
    weights = np.zeros(len(sort))
    others = [side for side in (-1, 0) if (sort == side).any()]
    for side, share in [(1, 0.5), *((side, 0.5 / len(others)) for side in others)]:
        weights[sort == side] = share / max(1, (sort == side).sum())
    return weights


def _measure(weights: np.ndarray, examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    features, sort = (np.concatenate(part) for part in zip(*examples, strict=True))
    said = 1 / (1 + np.exp(-(features @ weights[:-1] + weights[-1])))
    told = {"people": float(len(examples))}
    for name, others in (("auc", (-1, 0)), ("auc_disliked", (-1,)), ("auc_unmet", (0,))):
        asked = (sort > 0) | np.isin(sort, others)
        if len(np.unique(sort[asked] > 0)) == 2:
            told[name] = float(roc_auc_score(sort[asked] > 0, said[asked], sample_weight=_even(sort[asked])))
    weight, bin_of = _even(sort), np.minimum((said * BINS).astype(int), BINS - 1)
    gaps = [abs((weight * (said - (sort > 0)))[bin_of == b].sum()) for b in range(BINS)]
    return told | {"calibration_error": float(sum(gaps) / weight.sum())}
