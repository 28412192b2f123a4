"""How good a list is, one number per person, so that intervals and paired tests can be made of them.

Everywhere `items` is int64 [B, k], best first, -1 where the list is empty; `targets` holds, per person, the int64 item
indices that were really used next. A function returns float64 [B], NaN for a person for whom the question has no answer
(no targets, no liked history, fewer than two items to compare). Lists are taken to be free of repeats.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

Ragged = Sequence[np.ndarray]
MAIN_TASTE = 0.1  # a cluster holding at least this share of what a person likes is one of their main tastes
STECK_ALPHA = 0.01  # Steck 2018, section 3: the part of the history mixed into the list so that KL stays finite


@dataclass(frozen=True)
class MetricInfo:
    """What a person needs to know to read a number."""

    title: str
    better: str  # "higher", "lower" or "zero" (the nearer to zero the better)
    low: float
    high: float
    meaning: str
    paper: str = ""

    @property
    def arrow(self) -> str:
        return {"higher": "↑", "lower": "↓", "zero": "→0"}[self.better]

    def goodness(self, value: float) -> float:
        """A number that is larger the better the value is."""
        return {"higher": value, "lower": -value, "zero": -abs(value)}[self.better]


METRICS: dict[str, MetricInfo] = {
    "recall": MetricInfo("Recall", "higher", 0, 1, "Share of what the person used next that the list holds."),
    "ndcg": MetricInfo(
        "NDCG",
        "higher",
        0,
        1,
        "As recall, but a hit near the top counts more; 1 is the best possible order.",
        "Järvelin & Kekäläinen 2002",
    ),
    "hit_rate": MetricInfo("Hit rate", "higher", 0, 1, "Share of people whose list holds at least one right item."),
    "mrr": MetricInfo(
        "MRR", "higher", 0, 1, "One over the rank of the first right item, 0 without one.", "TREC-8 1999"
    ),
    "coverage": MetricInfo(
        "Coverage",
        "higher",
        0,
        1,
        "Share of the catalog that is shown to anyone at all (no interval: it is not a mean over people).",
        "Ge et al. 2010",
    ),
    "popularity": MetricInfo(
        "Popularity",
        "lower",
        0,
        1,
        "Mean popularity percentile of what is shown; 0.5 would be a blind draw from the catalog.",
        "Abdollahpouri et al. 2019",
    ),
    "popularity_lift": MetricInfo(
        "Popularity lift",
        "zero",
        -1,
        1,
        "How much more popular the list is than the person's own history, in percentiles; 0 follows the person.",
        "Abdollahpouri et al. 2020",
    ),
    "diversity": MetricInfo(
        "Diversity",
        "higher",
        0,
        2,
        "1 minus the mean cosine between the items of one list: how unlike each other they are.",
        "Ziegler et al. 2005",
    ),
    "novelty": MetricInfo(
        "Novelty",
        "higher",
        0,
        np.inf,
        "Bits of surprise of an item: minus log2 of the share of people who used it.",
        "Zhou et al. 2010",
    ),
    "miscalibration_kl": MetricInfo(
        "Miscalibration (KL)",
        "lower",
        0,
        float(np.log(1 / STECK_ALPHA)),
        "KL divergence from the mix of tastes a person likes to the mix in the list.",
        "Steck 2018",
    ),
    "miscalibration": MetricInfo(
        "Miscalibration",
        "lower",
        0,
        1,
        "Share of the list that would have to change for its mix of tastes to be the person's (total variation).",
        "after Steck 2018",
    ),
    "mode_coverage": MetricInfo(
        "Taste coverage",
        "higher",
        0,
        1,
        "Share of the person's main tastes (at least 10 % of what they like) that the list touches.",
    ),
    "miscalibration_held_out": MetricInfo(
        "Miscalibration, held out",
        "lower",
        0,
        1,
        "Miscalibration against the mix of the likes that were held out, not of those shown.",
    ),
    "mode_coverage_held_out": MetricInfo(
        "Taste coverage, held out",
        "higher",
        0,
        1,
        "Share of the main tastes among the likes held out that the list touches.",
    ),
    "energy_score": MetricInfo(
        "Energy score",
        "lower",
        0,
        2,
        "How far the vectors handed over, as a distribution, are from the likes held out.",
        "Gneiting & Raftery 2007",
    ),
    "vendi": MetricInfo(
        "Vendi", "higher", 1, np.inf, "How many wholly different items the list is worth.", "Friedman & Dieng 2023"
    ),
    "cmmd": MetricInfo(
        "CMMD",
        "lower",
        -np.inf,
        np.inf,
        "Distance of everybody's vectors from everybody's held-out likes, times 1000.",
        "Jayasumana et al. 2024",
    ),
    "mauve": MetricInfo(
        "MAUVE", "higher", 0, 1, "Overlap of the two distributions that CMMD compares.", "Pillutla et al. 2021"
    ),
    "filled": MetricInfo("Filled", "higher", 0, 1, "Share of the places of the list that hold an item."),
    "valid": MetricInfo(
        "Valid",
        "higher",
        0,
        1,
        "Share of lists in which every item exists, none repeats and none is in the history; must be 1.",
    ),
    "users_per_second": MetricInfo("People/s", "higher", 0, np.inf, "People served per second on this machine."),
}


def base_name(metric: str) -> str:
    """The metric without its list length.

    >>> base_name("ndcg@10")
    'ndcg'
    """
    return metric.partition("@")[0]


def hits(items: np.ndarray, targets: Ragged) -> np.ndarray:
    """Bool [B, k]: is the item at this place one of the person's targets?"""
    users, flat = _flat(targets)
    width = int(max(items.max(initial=0), flat.max(initial=0))) + 1
    keys = np.arange(len(items))[:, None] * width + items  # [B, k]
    return np.isin(keys, users * width + flat) & (items >= 0)


def recall(items: np.ndarray, targets: Ragged, k: int) -> np.ndarray:
    """Hits in the first k over the number of targets. In [0, 1], higher is better."""
    return _over(hits(items[:, :k], targets).sum(axis=1), _sizes(targets))


def hit_rate(items: np.ndarray, targets: Ragged, k: int) -> np.ndarray:
    """1 if any of the first k is a target, else 0. Higher is better."""
    return _over(hits(items[:, :k], targets).max(axis=1, initial=False), np.minimum(_sizes(targets), 1))


def ndcg(items: np.ndarray, targets: Ragged, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain with binary gains (Järvelin & Kekäläinen 2002). In [0, 1],
    higher is better."""
    discount = 1 / np.log2(np.arange(k) + 2)  # [k]
    found = hits(items[:, :k], targets)  # [B, <= k]
    ideal = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(_sizes(targets), k)]
    return _over(found @ discount[: found.shape[1]], ideal)


def mrr(items: np.ndarray, targets: Ragged, k: int) -> np.ndarray:
    """Reciprocal rank of the first hit within k, 0 without one (Voorhees, TREC-8 1999). In [0, 1], higher is better."""
    found = hits(items[:, :k], targets)
    reciprocal = np.where(found.any(axis=1), 1 / (found.argmax(axis=1) + 1), 0.0)
    return _over(reciprocal, np.minimum(_sizes(targets), 1))


def coverage(items: np.ndarray, n_items: int, k: int) -> float:
    """Share of the catalog that appears in anyone's first k (Ge et al. 2010). In [0, 1], higher is better."""
    shown = items[:, :k]
    return len(np.unique(shown[shown >= 0])) / n_items


def item_counts(histories: Ragged, n_items: int) -> np.ndarray:
    """Int64 [N]: how many people used each item at least once."""
    _, used = _flat(histories, once=True)
    return np.bincount(used, minlength=n_items)


def popularity_percentile(counts: np.ndarray) -> np.ndarray:
    """Float64 [N] in (0, 1): share of the catalog less popular than the item, equally popular ones counting half.

    >>> popularity_percentile(np.array([5, 0, 0, 9]))
    array([0.625, 0.25 , 0.25 , 0.875])
    """
    from scipy.stats import rankdata

    return (rankdata(counts) - 0.5) / len(counts)


def popularity(items: np.ndarray, percentile: np.ndarray, k: int) -> np.ndarray:
    """Mean popularity percentile of the first k (Abdollahpouri et al. 2019). In (0, 1), lower is less biased."""
    return _mean_over_list(items[:, :k], percentile)


def popularity_lift(items: np.ndarray, histories: Ragged, percentile: np.ndarray, k: int) -> np.ndarray:
    """Popularity percentile of the list minus that of the person's history: the popularity lift of Abdollahpouri et al.
    2020 as a difference of percentiles. In [-1, 1], the nearer to zero the better."""
    users, flat = _flat(histories)
    total = np.bincount(users, weights=percentile[flat], minlength=len(histories))
    own = _over(total, np.bincount(users, minlength=len(histories)))
    return popularity(items, percentile, k) - own


def diversity(items: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    """1 - mean pairwise cosine of the first k (intra-list similarity, Ziegler et al. 2005). In [0, 2], higher is more
    diverse.

    The sum over pairs is (|sum of unit vectors|² - n) / 2, so no pair is ever formed.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)  # [N, D]
    lists = _membership(items[:, :k], len(vectors))  # [B, N]
    n = np.asarray(lists.sum(axis=1)).ravel()
    pairs = ((lists @ unit.astype(np.float64)) ** 2).sum(axis=1) - n
    return 1 - _over(pairs, n * (n - 1))


def novelty(items: np.ndarray, counts: np.ndarray, n_users: int, k: int) -> np.ndarray:
    """Mean self-information -log2 p(item used), with one imagined person who uses everything so that an unseen item
    stays finite (Zhou et al. 2010). In [0, log2(n_users + 1)], higher is more novel."""
    return _mean_over_list(items[:, :k], -np.log2((counts + 1) / (n_users + 1)))


def taste_clusters(vectors: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Int64 [N]: the taste every item belongs to, by k-means over unit item vectors; at most `n` clusters."""
    from sklearn.cluster import KMeans

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    n = min(n, len(np.unique(unit, axis=0)))
    return KMeans(n, n_init=3, random_state=seed).fit_predict(unit).astype(np.int64)


def taste_mix(lists: Ragged, clusters: np.ndarray) -> np.ndarray:
    """Float64 [B, C]: how each list (or history) is spread over the clusters; NaN for empty ones. -1 is skipped."""
    users, flat = _flat(lists)
    n = int(clusters.max(initial=0)) + 1
    keys = users[flat >= 0] * n + clusters[flat[flat >= 0]]
    mix = np.bincount(keys, minlength=len(lists) * n).reshape(len(lists), n).astype(np.float64)  # [B, C]
    return mix / np.where(mix.sum(axis=1, keepdims=True) > 0, mix.sum(axis=1, keepdims=True), np.nan)


def liked_part(histories: Ragged, preferences: Ragged | None) -> list[np.ndarray]:
    """The items of each history with a preference above zero; all of them if no preferences are known."""
    if preferences is None:
        return list(histories)
    return [np.asarray(h)[np.asarray(p) > 0] for h, p in zip(histories, preferences, strict=True)]


def miscalibration_kl(liked: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Calibration metric C_KL of Steck 2018, eq. 5-6: KL(p || (1 - a) q + a p) of the mixes p (liked) and q (shown),
    both [B, C] from `taste_mix`, a = 0.01. In [0, ln 100], 0 is perfect."""
    smoothed = (1 - STECK_ALPHA) * shown + STECK_ALPHA * liked
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(liked == 0, 0.0, liked * np.log(liked / smoothed))
    return np.where(_answerable(liked, shown), terms.sum(axis=1), np.nan)


def miscalibration(liked: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Total variation between two mixes [B, C]: the share of the list that is of the wrong taste. In [0, 1], 0 is
    perfect."""
    return np.abs(liked - shown).sum(axis=1) / 2


def mode_coverage(liked: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Share of the person's main tastes (clusters with at least 10 % of what they like) present in the list.
    Both [B, C] from `taste_mix`. In [0, 1], higher is better."""
    main = liked >= MAIN_TASTE - 1e-9
    touched = (main & (shown > 0)).sum(axis=1)
    return np.where(_answerable(liked, shown), _over(touched, main.sum(axis=1)), np.nan)


def bootstrap_interval(
    values: np.ndarray, seed: int, *, resamples: int = 1000, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the mean over people (Efron 1979).

    `values` is [n] or [n, m] (m measures of the same people, resampled together); NaNs are left out.
    Returns (low, high), each of shape [] or [m].
    """
    columns = values.reshape(len(values), -1).astype(np.float64)  # [n, m]
    known = (~np.isnan(columns)).astype(np.float64)
    filled = np.nan_to_num(columns)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, columns.shape[1]))
    for row in range(resamples):
        weight = np.bincount(rng.integers(0, len(columns), len(columns)), minlength=len(columns)).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            means[row] = (weight @ filled) / (weight @ known)
    tail = (1 - level) / 2
    lowhigh = np.full((2, columns.shape[1]), np.nan)
    measured = known.any(axis=0)
    lowhigh[:, measured] = np.nanquantile(means[:, measured], [tail, 1 - tail], axis=0)
    return lowhigh[0].reshape(values.shape[1:]), lowhigh[1].reshape(values.shape[1:])


def paired_permutation(a: np.ndarray, b: np.ndarray, seed: int, *, permutations: int = 10_000) -> float:
    """Two-sided p-value that a and b, measured on the same people, differ in mean by chance alone: the signs of the
    differences are flipped at random (Fisher 1935; Smucker et al. 2007 for ranked lists). In (0, 1]."""
    if a.shape != b.shape:
        raise ValueError(f"a paired test needs the same people on both sides, got {a.shape} and {b.shape}")
    difference = (a - b)[~np.isnan(a - b)].astype(np.float64)
    difference = difference[difference != 0]  # people on whom both agree cannot change the sum
    if not len(difference):
        return 1.0
    rng = np.random.default_rng(seed)
    observed, extreme = abs(difference.sum()), 0
    step = max(1, 4_000_000 // len(difference))
    for start in range(0, permutations, step):
        flips = rng.integers(0, 2, (min(step, permutations - start), len(difference)), dtype=np.int8)
        sums = 2 * (flips @ difference) - difference.sum()
        extreme += int((np.abs(sums) >= observed - 1e-12).sum())
    return (extreme + 1) / (permutations + 1)


def _flat(lists: Ragged, *, once: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(person, item) of every entry, two int64 arrays; `once` drops a person's repeats."""
    users = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
    flat = np.concatenate([np.asarray(items, dtype=np.int64) for items in lists] or [np.empty(0, np.int64)])
    if not once or not len(flat):
        return users, flat
    width = int(flat.max()) + 1
    return np.divmod(np.unique(users * width + flat), width)


def _sizes(targets: Ragged) -> np.ndarray:
    users, _ = _flat(targets, once=True)
    return np.bincount(users, minlength=len(targets))


def _over(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, NaN where bottom is 0."""
    return np.asarray(top, dtype=np.float64) / np.where(bottom > 0, bottom, np.nan)


def _mean_over_list(items: np.ndarray, value: np.ndarray) -> np.ndarray:
    filled = items >= 0
    return _over(np.where(filled, value[items], 0.0).sum(axis=1), filled.sum(axis=1))


def _membership(items: np.ndarray, n_items: int) -> sparse.csr_matrix:
    """Sparse [B, N], 1 where the item is in the list."""
    filled = items >= 0
    ends = np.concatenate([[0], np.cumsum(filled.sum(axis=1))])
    return sparse.csr_matrix((np.ones(ends[-1]), items[filled], ends), shape=(len(items), n_items))


def _answerable(liked: np.ndarray, shown: np.ndarray) -> np.ndarray:
    return ~(np.isnan(liked).any(axis=1) | np.isnan(shown).any(axis=1))
