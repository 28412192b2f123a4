"""Which FAISS structure to build for a budget of memory, recall and time: tried on a sample, chosen by measurement.

In the spirit of autofaiss (Criteo), whose releases need NumPy 1. Every candidate is built over a sample, tuned to the
least effort that reaches the recall, and timed; of many vectors, the best graph and the best of the others are tried on
a larger sample. The fastest that fits is built in full and tuned again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retrieval.vector_store import faiss_index
from retrieval.vector_store.faiss_index import Effort

PROCESS = 150 << 20
"""Bytes that a serving Python process with NumPy and FAISS holds before it has opened an index."""
PILOT = 30_000
"""Rows of the sample that candidates are tried on."""
FINAL = 200_000
"""Rows that the best graph and the best of the others are tried on again, where there are many more: a small sample
lies in the processor's cache, where a graph looks quicker than it is."""
EQUAL = 0.9
"""Of two finalists of which the slower has this share of the other's rate, the smaller is built."""
QUERIES = 500
NEIGHBOURS = 10
SMALL = 10_000
"""Below so many rows everything is compared with everything."""


@dataclass(frozen=True)
class Budget:
    """What is asked of an index. memory: bytes resident in the serving process (None: no limit). recall: least
    recall@10 against exact search. latency: most milliseconds for one query alone (None: no limit)."""

    memory: int | None = None
    recall: float = 0.95
    latency: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1:
            raise ValueError(f"recall is {self.recall}; it must lie in (0, 1]")
        if self.memory is not None and self.memory <= PROCESS:
            raise ValueError(f"memory is {self.memory:,} bytes; Python and FAISS alone take {PROCESS:,}")


@dataclass(frozen=True)
class Measured:
    """recall: recall@10 against exact search, and the standard error of that mean over queries. queries_per_second:
    many at once, on all threads. latency: milliseconds for one query alone (median). bytes_per_vector: of the index as
    it lies in memory."""

    recall: float
    queries_per_second: float
    latency: float
    bytes_per_vector: float
    recall_error: float = 0.0

    @property
    def sure_recall(self) -> float:
        """What other queries, too, will find at the least, in five cases of six: one standard error below."""
        return self.recall - self.recall_error


@dataclass(frozen=True)
class Trial:
    """A candidate on the sample; `memory` is what it would hold in full, with the process around it."""

    factory: str
    effort: Effort
    measured: Measured
    memory: float
    fits: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def candidates(dim: int, rows: int) -> list[list[str]]:
    """Factory strings to try, `IVF{lists}` left open, in tiers: the next is tried only if nothing before it will do."""
    if rows < SMALL:
        return [["Flat", "SQ8"], ["SQ4"]]
    fine = ["Flat", "HNSW32,Flat", "IVF{lists},Flat", "IVF{lists},SQ8", "IVF{lists},RaBitQfs,Refine(SQ8)"]
    if dim % 16 == 0:
        fine.append(f"OPQ{dim // 8}_{dim // 2},IVF{{lists}},PQ{dim // 8}x4fs,Refine(SQ8)")
    thin = max(16, dim // 80 * 16)  # 512 -> 96
    if dim >= 4 * thin:
        graphs = (f"PCAR{thin},HNSW16", f"PCAR{thin},HNSW32", f"PCAR{2 * thin},HNSW32")
        fine += [f"{graph}_SQ8_direct,Refine(SQ8)" for graph in graphs]
    coarse = ["IVF{lists},RaBitQ4", "IVF{lists},SQ4"]
    tiny = [f"OPQ{m}_{4 * m},IVF{{lists}},PQ{m}" for m in (dim // 8, dim // 16)] if dim % 16 == 0 else []
    return [fine, coarse, tiny]


def inverted_lists(rows: int) -> int:
    """The power of two nearest to 4 * sqrt(rows) that leaves `faiss_index.TRAINING_POINTS` vectors for each list."""
    most = max(1, rows // faiss_index.TRAINING_POINTS)
    return int(2 ** min(round(np.log2(4 * rows**0.5)), int(np.log2(most))))


def choose(
    sample: np.ndarray, rows: int, budget: Budget, seed: int, progress: Callable[[int, int], None] | None = None
) -> list[Trial]:
    """Try the candidates for `rows` vectors on `sample_size(rows)` of them, unit float32 [n, D]; best first.

    The sample is shuffled in place: it may be as large as the memory allows. Raises ValueError, with what was measured,
    if none keeps the budget.
    """
    np.random.default_rng(seed).shuffle(sample)
    asked = min(QUERIES, max(1, len(sample) // 10))
    queries, known = sample[:asked], sample[asked : asked + PILOT]
    truth = exact(queries, iter([known]))
    tiers = candidates(sample.shape[1], rows)
    trials: dict[str, Trial] = {}  # by template
    for tier in tiers:
        for template in tier:
            trials[template] = _try(template, known, queries, truth, rows, budget)
            if progress is not None:
                progress(len(trials), sum(map(len, tiers)))
        if any(trial.fits for trial in trials.values()):
            break

    def rank(template: str) -> tuple[bool, float]:
        return not trials[template].fits, -trials[template].measured.queries_per_second

    best = sorted(trials, key=rank)
    kinds = [[t for t in best if trials[t].fits and ("HNSW" in t) == graph] for graph in (True, False)]
    if len(sample) > PILOT + QUERIES and all(kinds):
        known = sample[asked:]
        truth = exact(queries, iter([known]))
        finalists = [kind[0] for kind in kinds]
        trials |= {template: _try(template, known, queries, truth, rows, budget) for template in finalists}
        best = sorted(finalists, key=rank) + [template for template in best if template not in finalists]
        best.sort(key=lambda template: not trials[template].fits)
        first, second = (trials[template] for template in best[:2])
        equal = second.measured.queries_per_second > EQUAL * first.measured.queries_per_second
        if best[1] in finalists and second.fits and equal and second.memory < first.memory:
            best[:2] = best[1::-1]
    if not trials[best[0]].fits:
        told = "; ".join(
            f"{t.factory}: recall {t.measured.recall:.3f}, {t.measured.latency:.2f} ms, {t.memory / 1e6:,.0f} MB"
            for t in (trials[template] for template in best)
        )
        raise ValueError(f"nothing keeps {budget} over {rows:,} vectors; on a sample, {told}: ask for less")
    return [trials[template] for template in best]


def sample_size(rows: int) -> int:
    """How many of so many vectors `choose` is shown."""
    return min(rows, QUERIES + (FINAL if rows >= 2 * FINAL else PILOT))


def _try(template: str, known: np.ndarray, queries: np.ndarray, truth: np.ndarray, rows: int, budget: Budget) -> Trial:
    dim = known.shape[1]
    index = faiss_index.create(dim, template.format(lists=inverted_lists(len(known))))
    faiss_index.train(index, known)
    fixed = faiss_index.size(index)
    faiss_index.append(index, known, 0)
    per_vector = (faiss_index.size(index) - fixed) / len(known)
    effort, measured = tune(index, queries, truth, budget)
    more_lists = inverted_lists(rows) - inverted_lists(len(known)) if "{lists}" in template else 0
    memory = PROCESS + fixed + more_lists * 4 * faiss_index.core(index).d + per_vector * rows
    fits = (
        measured.sure_recall >= budget.recall
        and (budget.memory is None or memory <= budget.memory)
        and (budget.latency is None or measured.latency <= budget.latency)
    )
    return Trial(template.format(lists=inverted_lists(rows)), effort, measured, memory, fits)


def tune(index: Any, queries: np.ndarray, truth: np.ndarray, budget: Budget) -> tuple[Effort, Measured]:
    """The quickest effort that surely reaches the recall, or the one that comes nearest where none does.

    Recall grows with the reach, so for every re-ranking the least reach is found by bisection.
    """
    efforts, best = faiss_index.efforts(index), None
    for rerank in faiss_index.reranks(index):
        low, high = 0, len(efforts) - 1
        while low < high:
            middle = (low + high) // 2
            recall, error = recall_of(index, queries, truth, Effort(efforts[middle], rerank))
            low, high = (low, middle) if recall - error >= budget.recall else (middle + 1, high)
        effort = Effort(efforts[low], rerank)
        measured = measure(index, queries, truth, effort)
        enough = measured.sure_recall >= budget.recall
        key = (enough, measured.queries_per_second if enough else measured.recall)
        if best is None or key > best[0]:
            best = key, effort, measured
        elif enough and best[0][0]:
            break  # more re-ranking only costs more from here on
    assert best is not None
    return best[1], best[2]


def recall_of(index: Any, queries: np.ndarray, truth: np.ndarray, effort: Effort) -> tuple[float, float]:
    """Share of the true neighbours int64 [B, k] that come back among k, and its standard error over queries."""
    _, found = faiss_index.search(index, queries, truth.shape[1], effort)
    shares = [len(np.intersect1d(a, b)) / truth.shape[1] for a, b in zip(found, truth, strict=True)]
    return float(np.mean(shares)), float(np.std(shares) / len(shares) ** 0.5)


def measure(index: Any, queries: np.ndarray, truth: np.ndarray, effort: Effort) -> Measured:
    """Recall, and time after a first round that warms the caches: the best of three rounds, for a busy machine only
    ever adds to it."""
    recall, error = recall_of(index, queries, truth, effort)
    k = truth.shape[1]

    def seconds(asked: np.ndarray) -> float:
        started = time.perf_counter()
        faiss_index.search(index, asked, k, effort)
        return time.perf_counter() - started

    batch = min(seconds(queries) for _ in range(3))
    alone = float(np.median([seconds(query[None]) for query in queries[:50]]))
    size = faiss_index.size(index) / max(int(index.ntotal), 1)
    return Measured(recall, len(queries) / batch, alone * 1e3, size, error)


def exact(queries: np.ndarray, blocks: Iterator[np.ndarray], k: int = NEIGHBOURS) -> np.ndarray:
    """Rows int64 [B, k] of the nearest unit vectors among all blocks, compared one by one."""
    scores = np.full((len(queries), 0), 0, np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    start = 0
    for block in blocks:
        cosines = queries @ block.T  # [B, n]
        kept = np.argpartition(-cosines, min(k, len(block)) - 1, axis=1)[:, :k]
        scores = np.concatenate([scores, np.take_along_axis(cosines, kept, axis=1)], axis=1)
        rows = np.concatenate([rows, kept + start], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, rows = np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)
        start += len(block)
    return rows
