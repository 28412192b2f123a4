"""From dreamt vectors to real items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval.index import VectorIndex, unit
from retrieval.ranking import check_allowed


@dataclass(frozen=True)
class Grounding:
    """Real items near S seeds, in the order to show them; empty places hold -1 and -inf.

    items int64 [k]; scores float32 [k], the cosine between the item and the seed that brought it; seed_of int64 [k];
    novelty float32 [S] in [0, 1]: the share of catalog items that lie nearer to their nearest neighbour than the seed
    to the item nearest to it (0: the seed lies on an item, 1: farther out than any item from its neighbour).
    """

    items: np.ndarray
    scores: np.ndarray
    seed_of: np.ndarray
    novelty: np.ndarray


def ground(
    seeds: np.ndarray,
    weights: np.ndarray | None,
    index: VectorIndex,
    k: int,
    exclude: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
) -> Grounding:
    """Neighbours of the seeds float32 [S, D], merged in proportion to where the seeds lie.

    The rule. Seeds fall together if they share their nearest permitted item or lie closer to each other than an item of
    the catalog typically lies to its neighbour (the median); chains of such pairs make one group. A group's share is
    the sum of its seeds' `weights` [S] (default: equal). Places go to the group with the largest share / (2 * places
    it has + 1), Sainte-Laguë's rule for seats; inside the group the same rule picks the seed whose turn it is (ties:
    the earlier seed), and the seed brings the nearest item that nobody has brought yet. So twenty seeds on one taste
    and ten on another give two items of the first to one of the second, and a lone seed gets its place before a crowd
    fills the list.

    exclude: item indices to leave out; allowed: bool [N]. k items come back wherever k are permitted.
    Raises ValueError for wrong shapes or a weight that is negative, not finite, or zero for all.
    """
    seeds = unit(seeds)
    weights = np.ones(len(seeds)) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.shape != (len(seeds),) or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"weights {list(weights.shape)}: need one finite number >= 0 for each of {len(seeds)} seeds")
    if len(seeds) and weights.sum() == 0:
        raise ValueError("all weights are zero: no seed may bring anything")
    permitted = check_allowed(allowed, len(index))
    permitted = np.ones(len(index), dtype=bool) if permitted is None else permitted.copy()
    if exclude is not None:
        permitted[np.asarray(exclude, dtype=np.int64)] = False

    items = np.full(k, -1, dtype=np.int64)
    scores = np.full(k, -np.inf, dtype=np.float32)
    seed_of = np.full(k, -1, dtype=np.int64)
    if len(seeds) == 0:
        return Grounding(items, scores, seed_of, np.empty(0, np.float32))
    # Others can take at most k - 1 of a seed's neighbours before its last turn.
    cosines, neighbours = index.search(seeds, k, permitted)
    groups = _groups(seeds, neighbours[:, 0], index.spacing)
    share = np.bincount(groups, weights)
    got = np.zeros(len(share))
    brought = np.zeros(len(seeds))
    cursor = np.zeros(len(seeds), dtype=np.int64)
    taken: set[int] = set()
    for place in range(min(k, int(permitted.sum()))):
        group = int(np.argmax(share / (2 * got + 1)))
        turn = np.where(groups == group, weights / (2 * brought + 1), -1.0)
        seed = int(np.argmax(turn))
        while int(neighbours[seed, cursor[seed]]) in taken:
            cursor[seed] += 1
        items[place] = neighbours[seed, cursor[seed]]
        scores[place] = cosines[seed, cursor[seed]]
        seed_of[place] = seed
        taken.add(int(items[place]))
        got[group] += 1
        brought[seed] += 1
    return Grounding(items, scores, seed_of, novelty(seeds, index))


def novelty(seeds: np.ndarray, index: VectorIndex) -> np.ndarray:
    """How far from the catalog each seed [S, D] lies, float32 [S] in [0, 1]; see `Grounding`."""
    nearest, _ = index.search(seeds, 1)
    distance = np.clip(1.0 - nearest[:, 0], 0.0, 2.0)
    if len(index.spacing) == 0:
        return (distance > 0).astype(np.float32)
    # The margin is float32 rounding: a seed exactly on an item must not be farther than a duplicate item.
    return (np.searchsorted(index.spacing, distance - 1e-6) / len(index.spacing)).astype(np.float32)


def _groups(seeds: np.ndarray, nearest: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """A group number per seed, int64 [S]."""
    from scipy.sparse.csgraph import connected_components

    together = nearest[:, None] == nearest
    if len(spacing):
        together |= 1.0 - seeds @ seeds.T <= np.median(spacing)
    return connected_components(together, directed=False)[1].astype(np.int64)
