"""The rows of the table: how each contender answers one study, and what answering cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.prior.people import Study
from diffusion.guidance import Dials
from diffusion.network import PriorConfig
from diffusion.prior import POOL, Conditions, Prior
from diffusion.regression import RegressionPrior, train_regression
from diffusion.training import train_prior
from retrieval.grounding import ground, ground_by_votes
from retrieval.index import VectorIndex
from retrieval.ranking import rank
from retrieval.worth import Worth

STEPS = (1, 2, 4, 8, 16)
SEEDS = 64
LISTED = 64  # items that stand for a recommender without seeds where vectors are judged
REFERENCES = ("in the manner of The Other Tiger", "REBECA-faithful")
"""Asked with seed 0 alone: they are slow."""
TRAINING: dict[str, Any] = {"width": 128, "depth": 2, "context_width": 64, "learning_rate": 2e-3}
CHOSEN: dict[str, dict[str, Any]] = {
    "ml1m_posters": {"reach": 8.0, "couse": 30.0, "shrink": 300.0, "trust": 1.0, "likes": 1.0,
                     "training": {"steps": 1200, "batch_size": 32, "targets": 8}},
    "emotify": {"reach": 2.0, "couse": 6.0, "shrink": 300.0, "trust": 8.0, "likes": 1.0,
                "training": {"steps": 300, "batch_size": 64, "targets": 4}},
    "oasis_beauty": {"reach": 3.0, "couse": 6.0, "shrink": 300.0, "trust": 2.0, "likes": 1.0,
                     "training": {"steps": 1000, "batch_size": 64, "targets": 4}},
}  # fmt: skip
"""What was chosen on the people set aside."""


@dataclass
class Answer:
    """Lists int64 [B, k]; per person vectors [n, D] that stand for the taste; what it cost."""

    items: np.ndarray
    samples: list[np.ndarray]
    per_second: float = np.nan  # seeds (or people, of a recommender without seeds) per CPU-second
    evaluations: float = np.nan  # of the network, per seed
    rows: np.ndarray | None = field(default=None)  # people that were asked, None: all


class Bench:
    """One study with all that its rows share, each made when first needed."""

    def __init__(self, study: Study, models: Path) -> None:
        self.study, self.models = study, models
        self.chosen = CHOSEN[study.name]
        self.asked, self.vectors, self.k = study.asked, study.vectors, study.k
        self.seed = study.seed or 0

    @cached_property
    def index(self) -> VectorIndex:
        return VectorIndex.build(self.vectors)

    @cached_property
    def worth(self) -> np.ndarray:
        train = self.study.train
        model = Worth(
            train.items,
            train.preferences,
            len(self.vectors),
            shrink=self.chosen["shrink"],
            couse=self.chosen["couse"],
            trust=self.chosen["trust"],
            rate=self.study.assigned,
        )
        return model.of(self.asked.histories, self.asked.preferences)

    @cached_property
    def conditions(self) -> Conditions:
        q = self.asked
        return Conditions.from_histories(q.histories, q.preferences, self.vectors, ordered=False)

    @cached_property
    def liked(self) -> list[np.ndarray]:
        return [h[p > 0] for h, p in zip(self.asked.histories, self.asked.preferences, strict=True)]

    def config(self, **changes: Any) -> PriorConfig:
        return PriorConfig(**{**TRAINING, **self.chosen["training"], **changes})

    @cached_property
    def bridged(self) -> dict[str, np.ndarray]:
        """What each modality alone says of every item, carried into the item space: steers."""
        from encoders.bridge import Bridge

        embeddings = self.study.embeddings
        steers = {}
        for modality, present in embeddings.present.items():
            bridge = Bridge.fit(embeddings.vectors[modality][present], self.vectors[present], seed=0)
            steers[modality] = np.where(present[:, None], bridge.transform(embeddings.vectors[modality]), 0)
        return steers

    def model(self, name: str, train: Callable[..., Any], kind: type, config: PriorConfig) -> Any:
        """The model of that name, trained if it is not there."""
        folder = self.models / name
        if not (folder / "config.json").is_file():
            learned = self.study.train
            train(
                learned.items,
                learned.preferences,
                self.vectors,
                config,
                steers=self.bridged,
                seed=self.seed,
                checkpoint_dir=self.models / f".{name}",
            ).save_pretrained(folder)
        return kind.from_pretrained(folder)

    @cached_property
    def prior(self) -> Prior:
        return self.model("prior", train_prior, Prior, self.config())

    @cached_property
    def regression(self) -> RegressionPrior:
        return self.model("regression", train_regression, RegressionPrior, self.config())

    def permitted(self, row: int) -> np.ndarray:
        """Which items may be listed: all the person has not met, or where items were given to people, the rest of
        what the person was given."""
        allowed = np.zeros(len(self.vectors), bool)
        if self.study.assigned:
            allowed[self.study.unseen.items[row]] = True
        else:
            allowed[:] = True
        allowed[self.asked.histories[row]] = False
        return allowed

    def plain(self, seeds: Sequence[np.ndarray]) -> np.ndarray:
        """The nearest items of the seeds, merged in proportion to where the seeds lie."""
        return np.stack([
            ground(s, None, self.index, self.k, allowed=self.permitted(row)).items if len(s) else self.by_score(
                self.worth[row : row + 1], [row])[0]
            for row, s in enumerate(seeds)
        ])  # fmt: skip

    def votes(self, seeds: Sequence[np.ndarray]) -> np.ndarray:
        """The seeds' votes over items that the log says are not worth the same."""
        return np.stack([
            ground_by_votes(s, self.worth[row], self.index, self.k, allowed=self.permitted(row),
                            reach=self.chosen["reach"]).items
            for row, s in enumerate(seeds)
        ])  # fmt: skip

    def by_score(self, scores: np.ndarray, rows: Sequence[int] | None = None, k: int | None = None) -> np.ndarray:
        rows = range(len(scores)) if rows is None else rows
        masked = np.where(np.stack([self.permitted(row) for row in rows]), scores, -np.inf)
        return rank(masked, k or self.k)[0]

    def listed(self, items: np.ndarray) -> list[np.ndarray]:
        return [self.vectors[row[row >= 0]] for row in items]


def ours(bench: Bench, steps: int, *, by: str = "votes") -> Answer:
    dials = Dials(likes=bench.chosen["likes"])
    prior, conditions = bench.prior, bench.conditions
    start = time.process_time()
    seeds = prior.sample(conditions, SEEDS, steps=steps, dials=dials, seed=bench.seed, pool=POOL)
    seconds = time.process_time() - start
    branches = 1 if bench.chosen["likes"] == 1 else 2
    return Answer(getattr(bench, by)(seeds), list(seeds), len(seeds) * SEEDS / seconds, POOL * steps * branches)


def regression(bench: Bench, *, by: str = "plain") -> Answer:
    model, conditions = bench.regression, bench.conditions
    start = time.process_time()
    means = model.predict(conditions)[:, None]
    seconds = time.process_time() - start
    return Answer(getattr(bench, by)(means), list(means), len(means) / seconds, 1)


def history_as_seeds(bench: Bench) -> Answer:
    seeds = [bench.vectors[liked] for liked in bench.liked]
    return Answer(bench.votes(seeds), seeds)


def log_alone(bench: Bench) -> Answer:
    met = [np.isin(np.arange(len(bench.vectors)), history) for history in bench.asked.histories]
    long, _ = rank(np.where(np.stack(met), -np.inf, bench.worth), LISTED)
    return Answer(bench.by_score(bench.worth), bench.listed(long))


def baseline(bench: Bench, name: str, **options: Any) -> Answer:
    """A baseline of the registry, which is told likes and nothing else, as all are."""
    from retrieval.baselines import make_baseline

    model = make_baseline(name, **options)
    learned = bench.study.train
    model.fit(
        [h[p > 0] for h, p in zip(learned.items, learned.preferences, strict=True)], None, bench.vectors, bench.seed
    )
    return _asked(bench, model.recommend, history=name == "history_knn")


def _asked(bench: Bench, recommend: Callable[..., Any], *, history: bool = False) -> Answer:
    """Where vectors are judged a long list over the whole catalog stands for a recommender, as dreams are not told
    what the person was given either; for history-kNN its events do."""
    q = bench.asked
    told = [np.where(p > 0, 1.0, -1.0) for p in q.preferences]
    start = time.process_time()
    long, _ = recommend(q.histories, LISTED, preferences=told)
    rate = len(q) / max(time.process_time() - start, 1e-6)
    items = long[:, : bench.k]
    if bench.study.assigned:
        items = np.concatenate([
            recommend([h], bench.k, preferences=[p], allowed=bench.permitted(row))[0]
            for row, (h, p) in enumerate(zip(q.histories, told, strict=True))
        ])  # fmt: skip
    samples = [bench.vectors[liked] for liked in bench.liked] if history else bench.listed(long)
    return Answer(items, samples, rate)


def retriever(bench: Bench) -> Answer:
    """Generative retrieval, the fused mode."""
    from retrieval.model import RetrieverConfig
    from retrieval.retriever import Retriever
    from retrieval.semantic_ids import assign_unique, make_tokenizer
    from retrieval.training import train_retriever

    folder = bench.models / "retriever"
    if not (folder / "config.json").is_file():
        size = 256 if len(bench.vectors) > 1000 else 16
        tokenizer = make_tokenizer("residual_kmeans", levels=2, codebook_size=size)
        ids = assign_unique(tokenizer.fit(bench.vectors, bench.seed), bench.vectors, tokenizer, seed=bench.seed)
        learned = bench.study.train
        likes = [h[p > 0][:50] for h, p in zip(learned.items, learned.preferences, strict=True)]
        config = RetrieverConfig(dim=64, epochs=3 if len(likes) > 1000 else 15)
        train_retriever(likes, bench.vectors, ids, config, seed=bench.seed,
                        checkpoint_dir=bench.models / ".retriever").save_pretrained(folder)  # fmt: skip
    return _asked(bench, partial(Retriever.from_pretrained(folder).recommend, beam=LISTED))


def rows() -> dict[str, Callable[[Bench], Answer]]:
    """Every row by the name it has in the table."""
    from benchmarks.prior.references import other_tiger, rebeca

    table: dict[str, Callable[[Bench], Answer]] = {
        f"prior, {steps} step{'s' if steps > 1 else ''}": lambda bench, s=steps: ours(bench, s)  # type: ignore[misc]
        for steps in STEPS
    }
    return table | {
        "prior, 8 steps, plain grounding": lambda bench: ours(bench, 8, by="plain"),
        "regression": regression,
        "regression, our grounding": lambda bench: regression(bench, by="votes"),
        "mean of history": lambda bench: baseline(bench, "mean_history"),
        "history-kNN": lambda bench: baseline(bench, "history_knn", decay=1.0),
        "history as seeds, our grounding": history_as_seeds,
        "popularity": lambda bench: baseline(bench, "popularity"),
        "item-kNN": lambda bench: baseline(bench, "item_knn", decay=1.0),
        "the log alone": log_alone,
        "retriever": retriever,
        **dict(zip(REFERENCES, (other_tiger, rebeca), strict=True)),
    }
