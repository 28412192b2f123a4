"""A learned map from one space of vectors to another: words to the item space, the item space to a decoder's space."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from encoders.ridge import fit_ridge

HELD_OUT = 0.2
K = 10
MAX_CANDIDATES = 5_000  # recall is measured among at most so many held-out rows


class Bridge:
    """Ridge regression on centred, unit-length source vectors.

    `held_out` says how well it carries over to rows it was not fitted on: "recall@10" (how often the true target is
    among the ten nearest of the `n` held-out ones), "chance" (the same for guesses) and "n". The bridge itself is then
    fitted on all rows.
    """

    def __init__(
        self,
        weights: np.ndarray,
        source_mean: np.ndarray,
        target_mean: np.ndarray,
        unit_length: bool,
        held_out: dict[str, float],
    ) -> None:
        self.weights = np.ascontiguousarray(weights, dtype=np.float32)  # [a, b]
        self.source_mean = source_mean.astype(np.float32)  # [a]
        self.target_mean = target_mean.astype(np.float32)  # [b]
        self.unit_length = unit_length
        self.held_out = held_out

    @classmethod
    def fit(cls, source: np.ndarray, target: np.ndarray, seed: int) -> Bridge:
        """Row i of `source` [N, a] and of `target` [N, b] describe the same thing; `seed` draws the held-out rows.

        Raises ValueError for fewer than 5 rows, for unequal numbers of rows and for values that are not numbers.
        """
        source, target = _table(source, "source"), _table(target, "target")
        if len(source) != len(target):
            raise ValueError(f"source has {len(source)} rows and target {len(target)}; they must pair up")
        if len(source) < 5:
            raise ValueError(f"a bridge needs at least 5 rows that have both ends, got {len(source)}")
        order = np.random.default_rng(seed).permutation(len(source))
        test = order[: max(1, round(HELD_OUT * len(source)))]
        train = order[len(test) :]
        unit_length = bool(np.allclose(np.linalg.norm(target, axis=1), 1, atol=1e-3))
        trial = _fitted(source[train], target[train], unit_length, {})
        test = test[:MAX_CANDIDATES]
        recall = _recall(trial, source[test], target[test])
        held_out = {f"recall@{K}": recall, "chance": min(1.0, K / len(test)), "n": float(len(test))}
        return _fitted(source, target, unit_length, held_out)

    def transform(self, source: np.ndarray) -> np.ndarray:
        """[n, a] to [n, b] float32; of unit length if the targets it was fitted on were. Raises ValueError."""
        source = _table(source, "source")
        if source.shape[1] != len(self.source_mean):
            raise ValueError(f"this bridge reads vectors of {len(self.source_mean)}, got {source.shape[1]}")
        out = _unit(source - self.source_mean) @ self.weights + self.target_mean
        return _unit(out) if self.unit_length else out

    def save(self, path: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into the folder `path`."""
        arrays = {"weights": self.weights, "source_mean": self.source_mean, "target_mean": self.target_mean}
        write_folder(path, {"unit_length": self.unit_length, "held_out": self.held_out}, arrays)

    @classmethod
    def load(cls, path: str | Path) -> Bridge:
        """Read what `save` wrote. Raises FileNotFoundError."""
        config, arrays = read_folder(path)
        return cls(**arrays, unit_length=config["unit_length"], held_out=config["held_out"])


def among_neighbours(
    query: np.ndarray, source: np.ndarray, target: np.ndarray, *, k: int = 4, softness: float = 0.06
) -> np.ndarray:
    """Carry unit vectors [n, a] over by what lies around them: the mean of the targets of the k nearest sources.

    `source` [N, a] (unit rows) and `target` [N, b] describe the same things row by row; nearer sources weigh more,
    exp(cosine / softness), the kernel regression of Nadaraya (1964) and Watson (1964). -> [n, b]

    For vectors that lie off the data, as dreamt ones do, this stays among real targets where a `Bridge` shrinks to
    their mean: of 146 dreams over the demo catalog the picture nearest to the result was of the group of the dream's
    nearest item for 70 % by ridge, and for all by this.
    """
    likeness = query @ source.T  # [n, N]
    near = np.argsort(-likeness, axis=1, kind="stable")[:, :k]
    cosine = np.take_along_axis(likeness, near, axis=1)  # [n, k]
    weights = np.exp((cosine - cosine[:, :1]) / softness)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("nk,nkb->nb", weights, target[near]).astype(np.float32)


def _fitted(source: np.ndarray, target: np.ndarray, unit_length: bool, held_out: dict[str, float]) -> Bridge:
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    ridge = fit_ridge(_unit(source - source_mean), target - target_mean)
    return Bridge(ridge.weights, source_mean, target_mean, unit_length, held_out)


def _recall(bridge: Bridge, source: np.ndarray, target: np.ndarray) -> float:
    """By cosine; raw features, whose mean is far from zero, are compared around their mean."""
    centre = 0.0 if bridge.unit_length else bridge.target_mean
    predicted, target = _unit(bridge.transform(source) - centre), _unit(target - centre)
    hits = 0
    for start in range(0, len(target), 1024):
        scores = predicted[start : start + 1024] @ target.T  # [b, n]
        true = scores[np.arange(len(scores)), np.arange(start, start + len(scores))]
        hits += int(((scores > true[:, None]).sum(axis=1) < K).sum())
    return hits / len(target)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8)


def _table(x: np.ndarray, name: str) -> np.ndarray:
    x = np.asarray(x, dtype=np.float32)
    if x.ndim != 2:
        raise ValueError(f"{name} must be [n, d], got shape {x.shape}")
    if not np.isfinite(x).all():
        row = int(np.argmax(~np.isfinite(x).all(axis=1)))
        raise ValueError(f"row {row} of {name} holds values that are not numbers")
    return x


def write_folder(path: str | Path, config: dict, arrays: dict[str, np.ndarray]) -> None:
    """`config.json` and `model.safetensors`, each renamed into place when whole."""
    from safetensors.numpy import save_file

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    weights, text = folder / "model.safetensors", folder / "config.json"
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, f"{weights}.part")
    os.replace(f"{weights}.part", weights)
    Path(f"{text}.part").write_text(json.dumps(config, indent=2) + "\n")
    os.replace(f"{text}.part", text)


def read_folder(path: str | Path) -> tuple[dict, dict[str, np.ndarray]]:
    """What `write_folder` wrote. Raises FileNotFoundError naming the file that is missing."""
    from safetensors.numpy import load_file

    folder = Path(path)
    for file in (folder / "config.json", folder / "model.safetensors"):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; was it saved with save({str(folder)!r})?")
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
