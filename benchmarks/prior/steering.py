"""Steering: how near dreams come to what is asked for, and what that costs of the person's own taste.

The baseline is the obvious one: move the person's unsteered dreams in a straight line toward the steer (away from it,
for avoid). Both are turned up notch by notch; likeness is the mean cosine to the steer, the personal score the mean
cosine to the third of the held-out likes nearest to the dream.
"""

from __future__ import annotations

import numpy as np

from benchmarks.prior.rows import Bench
from diffusion.guidance import Dials
from diffusion.prior import POOL, Conditions

NOTCHES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
PEOPLE, SEEDS = 60, 16


def personal(seeds: np.ndarray, liked: np.ndarray) -> float:
    """Mean cosine of seeds [S, D] to the third of the held-out likes [L, D] that is nearest to each."""
    near = max(1, len(liked) // 3)
    return float(np.sort(seeds @ liked.T, axis=1)[:, -near:].mean())


def steers(bench: Bench, kind: str) -> np.ndarray:
    """For each of `PEOPLE` an item drawn at random, as words, a picture or a sound lead to it through a bridge; to
    avoid, one of the person's own tastes: an item among the likes shown."""
    rng = np.random.default_rng([bench.seed, 7])
    through = bench.bridged.get("text" if kind == "avoid" and "text" in bench.bridged else kind, bench.vectors)
    picked = [
        rng.choice(bench.liked[row]) if kind == "avoid" else rng.integers(len(bench.vectors))
        for row in range(min(PEOPLE, len(bench.asked)))
    ]
    return through[picked]


def curves(bench: Bench, kind: str) -> dict[str, np.ndarray]:
    """Per contender [notches, 2]: likeness to the steer and personal score, the first row unsteered."""
    toward = steers(bench, kind)
    q, n = bench.asked, len(toward)
    rows = slice(0, n)
    liked = [bench.vectors[t] for t in q.targets[rows]]

    def told(**steer: np.ndarray) -> Conditions:
        return Conditions.from_histories(q.histories[rows], q.preferences[rows], bench.vectors, ordered=False, **steer)

    def point(seeds: np.ndarray) -> tuple[float, float]:
        likeness = np.einsum("bsd,bd->bs", seeds, toward).mean()
        return float(likeness), float(np.mean([personal(s, t) for s, t in zip(seeds, liked, strict=True)]))

    base = bench.prior.sample(told(), SEEDS, dials=Dials(likes=bench.chosen["likes"]), seed=bench.seed, pool=POOL)
    ours = [point(base)]
    for notch in NOTCHES:
        dials = Dials(**{"likes": bench.chosen["likes"], kind: notch})
        ours.append(point(bench.prior.sample(told(**{kind: toward}), SEEDS, dials=dials, seed=bench.seed, pool=POOL)))
    straight = [point(base)]
    for share in SHARES:
        moved = (1 - share) * base + (-share if kind == "avoid" else share) * toward[:, None]
        straight.append(point(moved / np.linalg.norm(moved, axis=-1, keepdims=True)))
    return {"prior": np.array(ours), "straight line": np.array(straight)}


def gain_over_line(ours: np.ndarray, straight: np.ndarray) -> float:
    """Mean personal score that ours keeps beyond the straight line at the same likeness, over the likenesses that both
    reach."""
    order, other = np.argsort(ours[:, 0]), np.argsort(straight[:, 0])
    low = max(ours[:, 0].min(), straight[:, 0].min())
    high = min(ours[:, 0].max(), straight[:, 0].max())
    grid = np.linspace(low, high, 50)
    kept = np.interp(grid, ours[order, 0], ours[order, 1]) - np.interp(grid, straight[other, 0], straight[other, 1])
    return float(kept.mean())


def draw(panels: dict[str, dict[str, np.ndarray]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(panels) // 4)
    figure, axes = pyplot.subplots(rows, 4, figsize=(14, 3.4 * rows), layout="constrained", squeeze=False)
    for unused in axes.flat[len(panels) :]:
        unused.set_visible(False)
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        for (name, line), style in zip(lines.items(), ("o-", "s--"), strict=True):
            axis.plot(line[:, 0], line[:, 1], style, label=name, markersize=4)
        axis.set(title=title, xlabel="cosine to the steer", ylabel="cosine to held-out likes")
        axis.legend(frameon=False)
    figure.savefig(path, dpi=110)
