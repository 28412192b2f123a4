"""From dreamt vectors to real items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval.index import VectorIndex, unit
from retrieval.ranking import check_allowed

REACH = 4.0
CONSIDERED = 500


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
    permitted = _permitted(index, exclude, allowed)
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


def ground_by_votes(
    seeds: np.ndarray,
    worth: np.ndarray,
    index: VectorIndex,
    k: int,
    exclude: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
    reach: float = REACH,
) -> Grounding:
    """Seeds float32 [S, D] as voters over items that are not all worth the same, as `worth` [N] says on a log scale.

    The rule. A seed spreads its vote over the items, to item i as exp(worth_i + reach * cosine_i). Places are filled
    one by one with the item for which most of the votes not yet spent speak; it costs 1 / k of all votes, paid by the
    seeds that want it most. So a taste that holds a third of the seeds gets a third of the list (proportional
    representation as in the method of equal shares, Peters & Skowron 2020), and each place goes to what is worth most
    in that taste.

    exclude, allowed and what comes back: as in `ground`; the items considered are, per seed, the `CONSIDERED` nearest,
    and as many again that are worth most.
    """
    seeds = unit(seeds)
    worth = np.asarray(worth, np.float64)
    if worth.shape != (len(index),) or not np.isfinite(worth).all():
        raise ValueError(f"worth {list(worth.shape)}: need one finite number for each of {len(index)} items")
    permitted = _permitted(index, exclude, allowed)
    items, scores = np.full(k, -1, np.int64), np.full(k, -np.inf, np.float32)
    seed_of = np.full(k, -1, np.int64)
    if len(seeds) == 0 or not permitted.any():
        return Grounding(items, scores, seed_of, novelty(seeds, index) if len(seeds) else np.empty(0, np.float32))
    candidates = np.flatnonzero(permitted)
    wide = max(CONSIDERED, k)
    if len(candidates) > wide:
        near = index.search(seeds, wide, permitted)[1]
        best = candidates[np.argpartition(-worth[candidates], wide - 1)[:wide]]
        candidates = np.union1d(near[near >= 0], best)
    cosine = index.vectors(candidates) @ seeds.T  # [C, S]
    wish = worth[candidates, None] + reach * cosine
    wish = np.exp(wish - wish.max(axis=0))
    wish /= wish.sum(axis=0)
    votes = np.full(len(seeds), 1.0 / len(seeds))
    free = np.ones(len(candidates), bool)
    for place in range(min(k, len(candidates))):
        wanted = np.where(free, wish @ votes, -1.0)
        won = int(np.argmax(wanted))
        keenest = int(np.argmax(wish[won] * votes))
        items[place], scores[place], seed_of[place] = candidates[won], cosine[won, keenest], keenest
        free[won] = False
        payers = np.argsort(-wish[won], kind="stable")
        spent = np.minimum(np.cumsum(votes[payers]), 1.0 / k)
        votes[payers] -= np.diff(spent, prepend=0.0)
        np.maximum(votes, 1e-9 / len(seeds), out=votes)  # rounding must not leave the last places to nobody
    return Grounding(items, scores, seed_of, novelty(seeds, index))


def novelty(seeds: np.ndarray, index: VectorIndex) -> np.ndarray:
    """How far from the catalog each seed [S, D] lies, float32 [S] in [0, 1]; see `Grounding`."""
    nearest, _ = index.search(seeds, 1)
    distance = np.clip(1.0 - nearest[:, 0], 0.0, 2.0)
    if len(index.spacing) == 0:
        return (distance > 0).astype(np.float32)
    # The margin is float32 rounding: a seed exactly on an item must not be farther than a duplicate item.
    return (np.searchsorted(index.spacing, distance - 1e-6) / len(index.spacing)).astype(np.float32)


def _permitted(index: VectorIndex, exclude: np.ndarray | None, allowed: np.ndarray | None) -> np.ndarray:
    permitted = check_allowed(allowed, len(index))
    permitted = np.ones(len(index), dtype=bool) if permitted is None else permitted.copy()
    if exclude is not None:
        permitted[np.asarray(exclude, dtype=np.int64)] = False
    return permitted


def _groups(seeds: np.ndarray, nearest: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """A group number per seed, int64 [S]."""
    from scipy.sparse.csgraph import connected_components

    together = nearest[:, None] == nearest
    if len(spacing):
        together |= 1.0 - seeds @ seeds.T <= np.median(spacing)
    return connected_components(together, directed=False)[1].astype(np.int64)
