"""Ask every recommender the same questions, check what it returns, and say how good it is and how sure that is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mmrec.evaluation import metrics
from mmrec.interactions import Histories, Queries

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

BASELINES = ("popularity", "item_knn", "mean_history")
SIGNIFICANT = 0.05


class Recommender(Protocol):
    """What is measured: lists of items the person has not met, best first."""

    @property
    def name(self) -> str: ...

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        *,
        preferences: Sequence[np.ndarray] | None = None,
        allowed: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]: ...


def evaluate(
    recommenders: Sequence[Recommender],
    queries: Queries,
    *,
    vectors: np.ndarray,
    train: Histories,
    ks: Sequence[int] = (10, 20),
    seed: int = 0,
    batch: int = 512,
    clusters: int = 20,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """One row per recommender and metric.

    Columns: `recommender`, `metric` (as `ndcg@10`), `value`, `low` and `high` (95 % bootstrap interval over people, NaN
    for what is not a mean over people), `n` (people who could be asked), `people` (float32 [B], the value of every
    person in the order of `queries`, NaN where it has no answer; empty for what is not a mean over people).

    `vectors` float32 [N, D] are the items of the catalog, `train` the interactions popularity is counted on, `clusters`
    the number of tastes for calibration. The longest of `ks` is asked for once; the shorter lists are its beginnings.
    An item that does not exist, repeats or is in the history makes its list invalid (metric `valid`), scores nothing,
    and is logged as an error, except the history where a recommender's `hide_history` is False: there it is wanted.
    Raises `ValueError` for no people, two recommenders of one name, or an answer of the wrong shape.
    """
    import pandas as pd

    names = [r.name for r in recommenders]
    if len(set(names)) < len(names):
        raise ValueError(f"two recommenders of one name cannot be told apart: {sorted(names)}; rename one")
    if not len(queries):
        raise ValueError("there is nobody to ask: the split has no queries; use a larger log or another split")
    measures = _Measures(queries, vectors, train, ks, seed, clusters)
    rows, total = [], len(recommenders) * len(queries)
    for at, recommender in enumerate(recommenders):

        def tell(done: int, before: int = at * len(queries)) -> None:
            if progress:
                progress(before + done, total)

        items, seconds = _ask(recommender, queries, max(ks), batch, tell)
        rows += measures.rows(recommender.name, items, seconds, shown=not getattr(recommender, "hide_history", True))
    return pd.DataFrame(rows)


def check_lists(items: np.ndarray, histories: Sequence[np.ndarray], n_items: int) -> tuple[np.ndarray, dict[str, int]]:
    """Find what a list must not hold: ids outside the catalog (other than -1), repeats, items of the history.

    Returns (bad, counts): bool like `items`, and how many items break each rule.
    """
    unknown = (items < -1) | (items >= n_items)
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    again = np.zeros_like(unknown)
    np.put_along_axis(again, order[:, 1:], (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != -1), axis=1)
    met = metrics.hits(items, histories)
    counts = {"does not exist": unknown, "repeats": again, "is in the history": met}
    return unknown | again | met, {rule: int(broken.sum()) for rule, broken in counts.items()}


def summarise_seeds(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Several runs of `evaluate` with different seeds as `recommender, metric, mean, std, seeds`.

    `std` is the sample standard deviation over seeds, NaN with one.
    """
    import pandas as pd

    runs = pd.concat([f[["recommender", "metric", "value"]] for f in frames], ignore_index=True)
    grouped = runs.groupby(["recommender", "metric"], sort=False)["value"]
    return grouped.agg(mean="mean", std="std", seeds="size").reset_index()


@dataclass(frozen=True)
class Claim:
    """`ours` is better than `rival` on `metric`."""

    ours: str
    rival: str
    metric: str = "ndcg@10"


@dataclass(frozen=True)
class Verdict:
    """What the measurement says about a claim; `p` is the paired two-sided permutation p-value over people."""

    claim: Claim
    ours: float
    rival: float
    p: float

    @property
    def better(self) -> bool:
        info = metrics.METRICS[metrics.base_name(self.claim.metric)]
        return info.goodness(self.ours) > info.goodness(self.rival)

    @property
    def holds(self) -> bool:
        return self.better and self.p < SIGNIFICANT

    def __str__(self) -> str:
        relation = "beats" if self.holds else "loses to" if self.p < SIGNIFICANT else "cannot be told from"
        p = "< 0.001" if self.p < 0.001 else f"= {self.p:.3f}"
        return (
            f"{self.claim.ours} {relation} {self.claim.rival} on {title(self.claim.metric)}: "
            f"{self.ours:.4f} against {self.rival:.4f} (paired p {p})"
        )


def claims_against(ours: str, rivals: Sequence[str] = BASELINES, metric: str = "ndcg@10") -> list[Claim]:
    """The claims that `ours` beats each of the rivals."""
    return [Claim(ours, rival, metric) for rival in rivals]


def verdict(frame: pd.DataFrame, claims: Sequence[Claim], *, seed: int = 0) -> list[Verdict]:
    """Judge each claim by a paired permutation test on the same people.

    All of several claims may be stated together without correction: each of them has to hold on its own.
    Raises `ValueError` if the frame has no (or more than one) measurement of what is claimed.
    """
    measured = frame.set_index(["recommender", "metric"])
    verdicts = []
    for claim in claims:
        values = []
        for name in (claim.ours, claim.rival):
            found = int((measured.index == (name, claim.metric)).sum())
            if found != 1:
                raise ValueError(f"{name!r} has {found} measurements of {claim.metric!r}, one is needed for a verdict")
            values.append(np.asarray(measured.loc[(name, claim.metric), "people"], dtype=np.float64))
        p = metrics.paired_permutation(values[0], values[1], seed)
        verdicts.append(Verdict(claim, float(np.nanmean(values[0])), float(np.nanmean(values[1])), p))
    return verdicts


def title(metric: str) -> str:
    """The metric as people read it.

    >>> title("ndcg@10")
    'NDCG@10'
    """
    base, at, k = metric.partition("@")
    return (metrics.METRICS[base].title if base in metrics.METRICS else base) + at + k


def _ask(
    recommender: Recommender, queries: Queries, k: int, batch: int, tell: Callable[[int], None]
) -> tuple[np.ndarray, float]:
    """The lists of everyone, int64 [B, k], and the seconds spent inside `recommend`."""
    lists, seconds = [], 0.0
    for start in range(0, len(queries), batch):
        part = slice(start, start + batch)
        histories, preferences = queries.histories[part], queries.preferences[part]
        began = time.perf_counter()
        items, scores = recommender.recommend(histories, k, preferences=preferences)
        seconds += time.perf_counter() - began
        items = np.asarray(items)
        if items.shape != (len(histories), k) or np.shape(scores) != items.shape or items.dtype.kind != "i":
            raise ValueError(
                f"{recommender.name} returned items {items.dtype}{list(items.shape)} and scores "
                f"{list(np.shape(scores))} for {len(histories)} people and k = {k}; integers and scores of "
                f"[{len(histories)}, {k}] are expected, -1 where there is no item"
            )
        lists.append(items.astype(np.int64))
        tell(start + len(histories))
    return np.concatenate(lists), max(seconds, 1e-9)


class _Measures:
    """What is the same for every recommender, worked out once."""

    def __init__(
        self,
        queries: Queries,
        vectors: np.ndarray,
        train: Histories,
        ks: Sequence[int],
        seed: int,
        clusters: int,
    ) -> None:
        self.queries, self.vectors, self.ks, self.seed = queries, vectors, ks, seed
        self.counts = metrics.item_counts(train.items, len(vectors))
        self.n_train = sum(len(items) > 0 for items in train.items)
        self.percentile = metrics.popularity_percentile(self.counts)
        self.clusters = metrics.taste_clusters(vectors, clusters, seed)
        liked = metrics.liked_part(queries.histories, queries.preferences)
        self.liked_mix = metrics.taste_mix(liked, self.clusters)

    def rows(self, name: str, items: np.ndarray, seconds: float, shown: bool) -> list[dict[str, object]]:
        """shown: whether the recommender was asked to show the history, which then is not logged as an error."""
        bad, broken = check_lists(items, self.queries.histories, len(self.vectors))
        for rule, count in broken.items():
            if count and not (shown and rule == "is in the history"):
                log.error("%s returned %d items of which each %s", name, count, rule)
        sound = np.where(bad, -1, items)
        people = {"valid": np.array(~bad.any(axis=1), dtype=np.float64)}
        for k in self.ks:
            people |= {f"{metric}@{k}": values for metric, values in self._per_person(sound, k).items()}
        table = np.stack(list(people.values()), axis=1)  # [B, M]
        low, high = metrics.bootstrap_interval(table, self.seed)
        rows = []
        for at, (metric, values) in enumerate(people.items()):
            known = values[~np.isnan(values)]
            mean = float(known.mean()) if len(known) else np.nan
            rows.append(_row(name, metric, mean, float(low[at]), float(high[at]), len(known), values))
        for k in self.ks:
            rows.append(_row(name, f"coverage@{k}", metrics.coverage(sound, len(self.vectors), k), n=len(items)))
        rows.append(_row(name, "users_per_second", len(items) / seconds, n=len(items)))
        return rows

    def _per_person(self, items: np.ndarray, k: int) -> dict[str, np.ndarray]:
        q = self.queries
        shown = metrics.taste_mix(list(items[:, :k]), self.clusters)
        return {
            "recall": metrics.recall(items, q.targets, k),
            "ndcg": metrics.ndcg(items, q.targets, k),
            "hit_rate": metrics.hit_rate(items, q.targets, k),
            "mrr": metrics.mrr(items, q.targets, k),
            "miscalibration": metrics.miscalibration(self.liked_mix, shown),
            "miscalibration_kl": metrics.miscalibration_kl(self.liked_mix, shown),
            "mode_coverage": metrics.mode_coverage(self.liked_mix, shown),
            "diversity": metrics.diversity(items, self.vectors, k),
            "novelty": metrics.novelty(items, self.counts, self.n_train, k),
            "popularity": metrics.popularity(items, self.percentile, k),
            "popularity_lift": metrics.popularity_lift(items, q.histories, self.percentile, k),
            "filled": (items[:, :k] >= 0).mean(axis=1),
        }


def _row(
    name: str,
    metric: str,
    value: float,
    low: float = np.nan,
    high: float = np.nan,
    n: int = 0,
    people: np.ndarray | None = None,
) -> dict[str, object]:
    values = np.empty(0) if people is None else people
    return {
        "recommender": name,
        "metric": metric,
        "value": value,
        "low": low,
        "high": high,
        "n": n,
        "people": values.astype(np.float32),
    }
