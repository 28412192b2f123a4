"""Checks before anything dreamt is shown (GeneRec, Wang et al. 2023): not a copy, not off the person's taste."""

from __future__ import annotations

import numpy as np

from diffusion.prior import Conditions

CHUNK = 4096


def copy_threshold(catalog_vectors: np.ndarray) -> float:
    """Cosine above which a seed counts as a copy: 99 % of items are less similar than this to their nearest neighbour.

    At least .95, so that a catalog of duplicates does not excuse copies, nor one of strangers forbid likeness. Measured
    on at most 4096 items against all.
    """
    sample = np.random.default_rng(0).permutation(len(catalog_vectors))[:CHUNK]
    cosine = catalog_vectors[sample] @ catalog_vectors.T
    cosine[np.arange(len(sample)), sample] = -1
    return float(np.clip(np.quantile(cosine.max(1), 0.99), 0.95, 0.999))


def taste_scores(seeds: np.ndarray, liked: np.ndarray, disliked: np.ndarray) -> np.ndarray:
    """How much nearer each seed [S, D] is to what is liked [L, D] than to what is disliked [M, D]. -> [S]

    Mean cosine to the nearest third of the likes (a mixed taste need not be liked all at once), minus the largest
    cosine to a dislike where that is positive. Without likes the first part is 0.
    """
    score = np.zeros(len(seeds), np.float32)
    if len(liked):
        near = max(1, len(liked) // 3)
        score += np.sort(seeds @ liked.T, axis=1)[:, -near:].mean(1)
    if len(disliked):
        score -= np.maximum((seeds @ disliked.T).max(1), 0)
    return score


def checks(
    seeds: np.ndarray, catalog_vectors: np.ndarray, liked: np.ndarray, disliked: np.ndarray
) -> dict[str, np.ndarray]:
    """Look at one person's seeds [S, D]; all vectors unit length, liked [L, D] and disliked [M, D] may be empty.

    -> "nearest" int64 [S] catalog row, "nearest_cosine" [S], "copy" bool [S], "taste" [S] (see taste_scores), and
    "off_taste" bool [S]: less to the person's taste than half of the catalog. Without likes and dislikes nothing is.
    """
    cosine = np.concatenate([seeds[i : i + CHUNK] @ catalog_vectors.T for i in range(0, len(seeds), CHUNK)])
    nearest = cosine.argmax(1)
    nearest_cosine = np.take_along_axis(cosine, nearest[:, None], 1)[:, 0]
    taste = taste_scores(seeds, liked, disliked)
    known = len(liked) + len(disliked) > 0
    usual = np.median(taste_scores(catalog_vectors, liked, disliked))
    return {
        "nearest": nearest,
        "nearest_cosine": nearest_cosine,
        "copy": nearest_cosine > copy_threshold(catalog_vectors),
        "taste": taste,
        "off_taste": (taste < usual) & known,
    }


def select(seeds: np.ndarray, conditions: Conditions, n: int, diversity: float = 0.5) -> np.ndarray:
    """Rejection sampling: keep n of M seeds [B, M, D] by taste and by difference from those kept. -> [B, n, D]

    Greedy maximal marginal relevance (Carbonell & Goldstein 1998): next is the seed with the largest
    (1 - diversity) * taste - diversity * (largest cosine to a seed already kept).
    """
    if not 1 <= n <= seeds.shape[1]:
        raise ValueError(f"select can keep 1 to {seeds.shape[1]} of {seeds.shape[1]} seeds per person, not {n}")
    history, rated = np.asarray(conditions.history), np.asarray(conditions.preferences)
    mask = np.asarray(conditions.mask)
    kept = np.empty((len(seeds), n), np.int64)
    for row, candidates in enumerate(seeds):
        events, preference = history[row][mask[row]], rated[row][mask[row]]
        taste = taste_scores(candidates, events[preference > 0], events[preference < 0])
        cosine = candidates @ candidates.T
        closest = np.zeros(len(candidates), np.float32)
        for place in range(n):
            gain = (1 - diversity) * taste - diversity * closest
            gain[kept[row, :place]] = -np.inf
            kept[row, place] = gain.argmax()
            closest = np.maximum(closest, cosine[kept[row, place]])
    return np.take_along_axis(seeds, kept[:, :, None], 1)
