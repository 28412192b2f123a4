"""Personal, not generic: do a person's dreams suit that person better than somebody else's dreams do?

The verifier of a person is learned from ratings that the prior never saw, those held out, and sees items by other
means: through the ratings of the people set aside (singular vectors of what is left of them when the means of people
and items are taken off) and by hashed tags (genres or categories). It is a ridge regression per person. A dream is
judged by the real item nearest to it; where people were given what they rated, by the nearest of those that this person
was given, so that nobody wins by what they were given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.prior.people import Study
from encoders.tags import HashedTags

FACTORS, TAGS = 16, 8
RIDGE = 8.0


@dataclass(frozen=True)
class Verified:
    """auc and auc_personal float64 [B]: how well a verifier tells likes from the rest among ratings it was not fitted
    on, with and without what everybody thinks of the items; chances and liked: its pooled calibrated predictions and
    what came true; scores [B, B]: the dreams of each person (column) in the eyes of each verifier (row)."""

    auc: np.ndarray
    auc_personal: np.ndarray
    chances: np.ndarray
    liked: np.ndarray
    scores: np.ndarray


def features(study: Study) -> tuple[np.ndarray, np.ndarray]:
    """What verifiers see: the items' mean rating float64 [N], and [N, F] features of about unit length."""
    from sklearn.decomposition import TruncatedSVD

    n = len(study.vectors)
    table, count = np.zeros((len(study.aside), n)), np.full(n, 5.0)
    total = np.zeros(n)
    for h, p in zip(study.aside.items, study.aside.preferences, strict=True):
        np.add.at(total, h, p)
        np.add.at(count, h, 1)
    mean = total / count
    for row, (h, p) in enumerate(zip(study.aside.items, study.aside.preferences, strict=True)):
        if len(h):
            left = p - mean[h]
            table[row, h] = left - left.mean()
    factors = TruncatedSVD(FACTORS, random_state=0).fit(table).components_.T  # [N, 16]
    words = ["|".join([*map(str, m.get("genres", [])), str(m.get("group", ""))]) for m in study.catalog.metadata]
    tags = HashedTags().encode(words, "tags").astype(np.float64)
    tags = TruncatedSVD(TAGS, random_state=0).fit_transform(tags - tags.mean(0))
    parts = [part / max(np.sqrt((part**2).sum(1).mean()), 1e-9) for part in (factors, tags)]
    return mean, np.concatenate(parts, axis=1)


def verify(study: Study, seeds: np.ndarray, seed: int) -> Verified:
    """seeds: the dreams of everybody asked, float32 [B, S, D]."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    mean, seen = features(study)
    people = len(study.asked)
    auc, personal = np.full((people, 2), np.nan), np.full((people, 2), np.nan)
    told: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0), np.empty(0))] * 2
    scores = np.full((people, people), np.nan)
    nearest = (seeds.reshape(-1, seeds.shape[-1]) @ study.vectors.T).argmax(1) if not study.assigned else None
    for row in range(people):
        items, rated = study.unseen.items[row], study.unseen.preferences[row]
        halves = np.random.default_rng([seed, row]).permutation(len(items)) % 2 == 0
        for at, half in enumerate((halves, ~halves)):
            weights = _ridge(seen[items[half]], rated[half] - mean[items[half]])
            own = seen[items[~half]] @ weights
            liked = rated[~half] > 0
            told[at] = np.append(told[at][0], mean[items[~half]] + own), np.append(told[at][1], liked)
            if 0 < liked.sum() < len(liked):
                auc[row, at] = roc_auc_score(liked, mean[items[~half]] + own)
                personal[row, at] = roc_auc_score(liked, own)
        own = seen @ _ridge(seen[items], rated - mean[items])
        if nearest is not None:
            judged = nearest
        else:
            given = np.union1d(items, study.asked.histories[row])
            judged = given[(seeds.reshape(-1, seeds.shape[-1]) @ study.vectors[given].T).argmax(1)]
        scores[row] = own[judged].reshape(people, -1).mean(1)
    chances, came = [], []
    for one, other in ((0, 1), (1, 0)):
        model = LogisticRegression().fit(told[one][0][:, None], told[one][1])
        chances.append(model.predict_proba(told[other][0][:, None])[:, 1])
        came.append(told[other][1])
    return Verified(np.nanmean(auc, 1), np.nanmean(personal, 1), np.concatenate(chances), np.concatenate(came), scores)


def calibration_error(chances: np.ndarray, liked: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error over bins of equal size (Naeini et al. 2015)."""
    order = np.array_split(np.argsort(chances), bins)
    return float(sum(len(b) * abs(chances[b].mean() - liked[b].mean()) for b in order) / len(chances))


def swap_margin(parts: list[np.ndarray], permutations: int = 10_000) -> tuple[float, float]:
    """How much better people's own dreams suit them than the dreams of others in their part do, in standard deviations
    of a verifier's scores [B, B], and the chance that dreams dealt out at random within the parts do as well."""
    standard = [(s - s.mean(1, keepdims=True)) / (s.std(1, keepdims=True) + 1e-9) for s in parts]
    people = sum(map(len, standard))
    rng = np.random.default_rng(0)
    own = sum(np.trace(s) for s in standard) / people
    dealt = np.zeros(permutations)
    for s in standard:
        rows = np.arange(len(s))
        dealt += [s[rows, rng.permutation(len(s))].sum() for _ in range(permutations)]
    margin = float(np.mean([np.trace(s) / (len(s) - 1) for s in standard]))
    return margin, float((1 + (dealt / people >= own - 1e-12).sum()) / (1 + permutations))


def _ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    centre, level = x.mean(0), y.mean()
    x = x - centre
    return np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (y - level))
