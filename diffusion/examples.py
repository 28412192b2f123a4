"""Training examples for the prior: what was known of a person, what they liked then, and words that lead there.

Every batch is a function of (seed, step) alone, so a resumed run sees what an undisturbed one would have seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diffusion.network import STEERS, PriorConfig
from diffusion.prior import Conditions

NEIGHBOURS = 10
REFERENCE = 4096  # items that stand for the catalog when neighbours and nearness are measured


class Examples:
    """Draws (conditions, targets) from rated histories.

    - Targets are items the person liked, either among the next ten events after the history shown (time), or left out
      of it (set); both are mixed. The history shown has a random length from 0 to max_history.
    - Each kind of condition is dropped on its own.
    - A text, image or audio steer comes with one target, and is the bridge's output for that item (`steers`) or, where
      there is none, the target blended with its neighbours and with noise, since words only land near what they mean.
    - Avoid is an item none of the targets is near to: the person's likes near it are taken out of the targets first,
      so the prior learns what is left of a taste. Half of the time it is shown as a disliked event instead.
    """

    def __init__(
        self,
        histories: Sequence[np.ndarray],
        preferences: Sequence[np.ndarray],
        vectors: np.ndarray,
        config: PriorConfig,
        steers: Mapping[str, np.ndarray] | None = None,
        seed: int = 0,
    ) -> None:
        self.vectors, self.config, self.seed = np.asarray(vectors, np.float32), config, seed
        self.steers = {name: np.asarray(value, np.float32) for name, value in (steers or {}).items()}
        self._check(histories, preferences)
        rows = [i for i, p in enumerate(preferences) if (np.asarray(p) > 0).any()]
        if not rows:
            raise ValueError("no history holds a liked item (preference > 0); the prior has nothing to learn from")
        self.histories = [np.asarray(histories[i], np.int64) for i in rows]
        self.preferences = [np.asarray(preferences[i], np.float32) for i in rows]
        weight = np.sqrt([(p > 0).sum() for p in self.preferences])
        self.weight = weight / weight.sum()
        rng = np.random.default_rng([seed, 0])
        reference = rng.permutation(len(self.vectors))[:REFERENCE]
        self.neighbours = np.empty((len(self.vectors), min(NEIGHBOURS, len(reference))), np.int64)
        self.near = np.empty(len(self.vectors), np.float32)  # cosine above which an item is near: its closest tenth
        for start in range(0, len(self.vectors), 2048):
            cosine = self.vectors[start : start + 2048] @ self.vectors[reference].T
            nearest = np.argpartition(-cosine, self.neighbours.shape[1] - 1, axis=1)[:, : self.neighbours.shape[1]]
            order = np.argsort(-np.take_along_axis(cosine, nearest, axis=1), axis=1)
            self.neighbours[start : start + 2048] = reference[np.take_along_axis(nearest, order, axis=1)]
            self.near[start : start + 2048] = np.quantile(cosine, 0.9, axis=1)

    def _check(self, histories: Sequence[np.ndarray], preferences: Sequence[np.ndarray]) -> None:
        if len(histories) != len(preferences):
            raise ValueError(f"{len(histories)} histories but {len(preferences)} preferences; give one for each person")
        for i, (items, rated) in enumerate(zip(histories, preferences, strict=True)):
            if len(items) != len(rated):
                raise ValueError(f"history {i} has {len(items)} items but {len(rated)} preferences")
            if len(items) and not 0 <= np.min(items) <= np.max(items) < len(self.vectors):
                raise ValueError(f"history {i} names items outside 0..{len(self.vectors) - 1}, the rows of the vectors")
        lengths = np.linalg.norm(self.vectors, axis=1)
        if not np.allclose(lengths, 1, atol=1e-3):
            row = int(np.argmax(np.abs(np.nan_to_num(lengths, nan=np.inf) - 1)))
            raise ValueError(f"item vectors must have length 1; row {row} has {lengths[row]:.4g}. Normalise them")
        for name, value in self.steers.items():
            if name not in STEERS or value.shape != self.vectors.shape:
                raise ValueError(
                    f"steers[{name!r}] {value.shape} must be one of {STEERS} and shaped {self.vectors.shape}"
                )

    def batch(self, step: int) -> tuple[Conditions, np.ndarray, np.ndarray]:
        """(conditions of B people, ordered bool [B], targets [B, R] item indices)."""
        rng = np.random.default_rng([self.seed, 1, step, 0])
        people = rng.choice(len(self.histories), self.config.batch_size, p=self.weight)
        rows = [self._example(person, rng) for person in people]
        conditions = Conditions.from_histories(
            [row[0] for row in rows], [row[1] for row in rows], self.vectors, max_history=self.config.max_history
        )
        for i, name in enumerate(STEERS):
            setattr(conditions, name, np.stack([row[3][i] for row in rows]))
        return conditions, np.array([row[2] for row in rows]), np.stack([row[4] for row in rows])

    def _example(
        self, person: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, bool, np.ndarray, np.ndarray]:
        items, rated = self.histories[person], self.preferences[person]
        shown, pool, ordered = self._split(rated, rng)
        history, preferences = items[shown], rated[shown]
        keep = np.ones(len(history), bool)
        if rng.random() < 0.1:
            keep &= preferences < 0
        if rng.random() < 0.2:
            keep &= preferences >= 0
        history, preferences = history[keep], preferences[keep]
        steers = np.zeros((len(STEERS), self.vectors.shape[1]), np.float32)
        candidates = items[pool]
        if rng.random() < 0.4:
            candidates = candidates[rng.integers(len(candidates)), None]
            for i in np.flatnonzero(rng.random(3) < 0.5):
                steers[i] = self._steer(STEERS[i], int(candidates[0]), rng)
            if rng.random() < 0.3:
                history, preferences = history[:0], preferences[:0]
        if rng.random() < 0.3:
            avoided = self._avoided(items, rated, rng)
            rest = candidates[self.vectors[candidates] @ self.vectors[avoided] < self.near[avoided]]
            if len(rest):
                candidates = rest
                if rng.random() < 0.5:
                    steers[3] = self._near(avoided, rng)
                else:
                    where = rng.integers(len(history) + 1)
                    history, preferences = np.insert(history, where, avoided), np.insert(preferences, where, -1.0)
        targets = candidates[rng.integers(len(candidates), size=self.config.targets)]
        return history, preferences, ordered, steers, targets

    def _split(self, rated: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, bool]:
        """Positions shown, positions of liked items that can be targets (at least one), and whether order is told."""
        liked = np.flatnonzero(rated > 0)
        limit = self.config.max_history
        if rng.random() < 0.6:
            first = rng.choice(liked)
            length = limit if rng.random() < 0.5 else rng.integers(0, limit + 1)
            shown = np.arange(max(0, first - length), first)
            return shown, liked[(liked >= first) & (liked < first + 10)], bool(rng.random() < 0.9)
        left_out = rng.choice(liked)
        others = np.delete(np.arange(len(rated)), left_out)
        size = rng.integers(0, min(limit, len(others)) + 1)
        shown = np.sort(rng.choice(others, size, replace=False))
        return shown, np.setdiff1d(liked, shown), bool(rng.random() < 0.5)

    def _steer(self, name: str, item: int, rng: np.random.Generator) -> np.ndarray:
        bridged = self.steers.get(name)
        if bridged is not None and rng.random() < 0.8 and np.isfinite(bridged[item]).all() and bridged[item].any():
            return bridged[item] / np.linalg.norm(bridged[item])
        return self._near(item, rng)

    def _near(self, item: int, rng: np.random.Generator) -> np.ndarray:
        """A unit vector that means about the same as the item: blended with neighbours, then with noise."""
        vector = self.vectors[item]
        if rng.random() < 0.5:
            neighbours = self.neighbours[item, : rng.integers(1, self.neighbours.shape[1] + 1)]
            blend = rng.random()
            vector = (1 - blend) * vector + blend * self.vectors[neighbours].mean(0)
        noise = rng.standard_normal(len(vector)) / np.sqrt(len(vector))
        vector = vector / max(np.linalg.norm(vector), 1e-6) + rng.uniform(0, 1) * noise
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def _avoided(self, items: np.ndarray, rated: np.ndarray, rng: np.random.Generator) -> int:
        """Mostly something the person liked once, else something disliked, else any item."""
        draw = rng.random()
        of = items[rated > 0] if draw < 0.5 else items[rated < 0] if draw < 0.75 else items[:0]
        return int(rng.choice(of)) if len(of) else int(rng.integers(len(self.vectors)))
