"""What one contender's answer to one study is worth: a number per person, kept in a file."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.prior.people import DATASETS
from benchmarks.prior.rows import Answer, Bench
from diffusion.guidance import Dials
from diffusion.prior import POOL
from mmrec.evaluation import distributions, metrics

PEOPLE = ("recall", "ndcg", "miscalibration", "miscalibration_shown", "mode_coverage", "energy_score", "vendi",
          "novelty")  # fmt: skip
"""Numbers per person; the others are one per study."""
VERIFIED = 16  # dreams of each person that verifiers judge


def measure(bench: Bench, row: str, answer: Callable[[Bench], Answer], folder: Path) -> None:
    """Keep the numbers of one row in `folder`, unless they are there."""
    file = folder / f"{slug(row)}.npz"
    if file.is_file():
        return
    print(f"{bench.study.name}, {'aside' if bench.study.seed is None else f'seed {bench.seed}'}: {row}", flush=True)
    numbers = judge(bench, answer(bench))
    folder.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part.npz")
    np.savez(part, **numbers)  # type: ignore[arg-type]
    part.rename(file)


def judge(bench: Bench, answer: Answer) -> dict[str, np.ndarray]:
    study, k = bench.study, bench.k
    people = range(len(study.asked)) if answer.rows is None else answer.rows
    q = study.asked
    targets = [q.targets[row] for row in people]
    clusters = metrics.taste_clusters(bench.vectors, DATASETS[study.name]["clusters"], bench.seed)
    wanted = metrics.taste_mix(targets, clusters)
    shown = metrics.taste_mix([bench.liked[row] for row in people], clusters)
    mix = metrics.taste_mix(list(answer.items), clusters)
    likes = [h[p > 0] for h, p in zip(study.train.items, study.train.preferences, strict=True)]
    held_out = [bench.vectors[t] for t in targets]
    numbers: dict[str, np.ndarray] = {
        "people": np.array([q.users[row] for row in people]),
        "recall": metrics.recall(answer.items, targets, k),
        "ndcg": metrics.ndcg(answer.items, targets, k),
        "miscalibration": metrics.miscalibration(wanted, mix),
        "miscalibration_shown": metrics.miscalibration(shown, mix),
        "mode_coverage": metrics.mode_coverage(wanted, mix),
        "energy_score": distributions.energy_score(answer.samples, held_out),
        "vendi": distributions.vendi(bench.listed(answer.items)),
        "novelty": metrics.novelty(answer.items, metrics.item_counts(likes, len(bench.vectors)), len(likes), k),
    }
    pooled, real = some(answer.samples, bench.seed), some(held_out, bench.seed)
    numbers["cmmd"] = np.array(distributions.cmmd(pooled, real))
    numbers["mauve"] = np.array(distributions.mauve(pooled, real, bench.seed))
    numbers["per_second"], numbers["evaluations"] = np.array(answer.per_second), np.array(answer.evaluations)
    return numbers


def verify(bench: Bench, folder: Path) -> None:
    """Keep what verifiers say of everybody's dreams, and as a ceiling of the likes that were shown, unless it is
    there."""
    from benchmarks.prior.verifier import verify as judged

    def dreams() -> np.ndarray:
        dials = Dials(likes=bench.chosen["likes"])
        return bench.prior.sample(bench.conditions, VERIFIED, dials=dials, seed=bench.seed, pool=POOL)

    def likes() -> np.ndarray:
        rng = np.random.default_rng([bench.seed, 9])
        return np.stack([bench.vectors[rng.choice(liked, VERIFIED)] for liked in bench.liked])

    folder.mkdir(parents=True, exist_ok=True)
    for name, seeds in (("verified", dreams), ("verified-likes", likes)):
        file = folder / f"{name}.npz"
        if not file.is_file():
            np.savez(file, **asdict(judged(bench.study, seeds(), bench.seed)))


def go_on(bench: Bench, folder: Path) -> None:
    """Keep what rounds bring, unless it is there."""
    from benchmarks.prior.rounds import rounds

    file = folder / "rounds.npz"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(file, **rounds(bench))  # type: ignore[arg-type]


def steer(bench: Bench, folder: Path) -> None:
    """Keep the curves of steering, unless they are there."""
    from benchmarks.prior.steering import curves

    for kind in [*bench.bridged, "avoid"]:
        file = folder / f"steering-{kind}.npz"
        if not file.is_file():
            print(f"{bench.study.name}: steering by {kind}", flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(file, **curves(bench, kind))


def some(parts: list[np.ndarray], seed: int, most: int = 2000) -> np.ndarray:
    """At most so many of everybody's vectors, each person weighing as much as there is of them."""
    together = np.concatenate([part for part in parts if len(part)])
    rows = np.random.default_rng(seed).permutation(len(together))[:most]
    return together[rows]


def slug(row: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-")
