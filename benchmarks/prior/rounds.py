"""Rounds: does what was refused make the next list better? (Ada-Retrieval, Li et al. 2024; GenIR, Sun et al. 2025)

Each person is shown a list and refuses what is known to be no like of theirs among the held-out ratings. *Learned*:
the refused are dislikes for the dreams when the next list is made. *Hidden only*: it is made of the same knowledge as
the first. Both hide all that was shown. What is compared is the share of liked items in the second and third lists.
Worth is told in neither: on the people set aside that made the next list worse, for what was rated at all is what such
people use, liked or not.
"""

from __future__ import annotations

import numpy as np

from benchmarks.prior.rows import SEEDS, Bench
from diffusion.guidance import Dials
from diffusion.prior import POOL, Conditions
from retrieval.grounding import ground_by_votes

ROUNDS = 3
WAYS = ("refusals learned", "refusals hidden only")


def rounds(bench: Bench) -> dict[str, np.ndarray]:
    """Per way and round the share of liked items in each person's list, float [B]; NaN once nothing is left to show."""
    found = {}
    for way in WAYS:
        for number, shares in enumerate(_session(bench, learns=way == WAYS[0]), start=1):
            found[f"{way}, round {number}"] = shares
    return found


def _session(bench: Bench, *, learns: bool) -> list[np.ndarray]:
    q, unseen = bench.asked, bench.study.unseen
    liked = [set(targets.tolist()) for targets in q.targets]
    told = [(h, p) for h, p in zip(q.histories, q.preferences, strict=True)]
    met: list[list[int]] = [[] for _ in told]
    shares = []
    for _ in range(ROUNDS):
        lists = _lists(bench, [h for h, _ in told], [p for _, p in told], met)
        shares.append(
            np.array([
                np.mean([item in liked[row] for item in items]) if len(items) else np.nan
                for row, items in enumerate(lists)
            ])
        )  # fmt: skip
        for row, items in enumerate(lists):
            met[row] += items.tolist()
            known = np.intersect1d(items, unseen.items[row])
            refused = np.array([item for item in known if item not in liked[row]], np.int64)
            if learns and len(refused):
                h, p = told[row]
                told[row] = np.concatenate([h, refused]), np.concatenate([p, np.full(len(refused), -1.0, p.dtype)])
    return shares


def _lists(
    bench: Bench, histories: list[np.ndarray], preferences: list[np.ndarray], met: list[list[int]]
) -> list[np.ndarray]:
    """A list for each person out of what is known of them, without what they have met."""
    conditions = Conditions.from_histories(histories, preferences, bench.vectors, ordered=False)
    dials = Dials(likes=bench.chosen["likes"])
    seeds = bench.prior.sample(conditions, SEEDS, dials=dials, seed=bench.seed, pool=POOL)
    lists = []
    for row, worth in enumerate(bench.worth):
        allowed = bench.permitted(row)
        allowed[met[row]] = False
        grounded = ground_by_votes(
            seeds[row], worth, bench.index, bench.k, allowed=allowed, reach=bench.chosen["reach"]
        )
        lists.append(grounded.items[grounded.items >= 0])
    return lists
