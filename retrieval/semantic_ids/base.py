"""What an item tokenizer is, and the finished semantic IDs of a catalog."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from retrieval.files import read_arrays, read_json, write_arrays, write_json


@runtime_checkable
class ItemTokenizer(Protocol):
    """Item vectors to short codes and back. New vectors can be encoded after `fit`."""

    name: str

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes per level, known after `fit`."""

    def fit(self, vectors: np.ndarray, seed: int = 0) -> None:
        """Learn from float32 [N, D]. Same vectors and seed, same codes."""

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [n, D] -> int64 [n, L]; not yet unique."""

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """int64 [n, L] -> float32 [n, D], the vector the codes stand for."""

    def save(self, path: Path) -> None:
        """Write `tokenizer.json` and `tokenizer.safetensors` into the folder `path`."""

    @classmethod
    def load(cls, path: Path) -> ItemTokenizer:
        """Read what `save` wrote."""


@dataclass(frozen=True)
class SemanticIds:
    """The unique code of every item of a catalog.

    codes: int64 [N, L+1], no two rows equal; the last column is the further level that `assign_unique` added.
    sizes: how many codes each level has, [L+1].
    wanted: int64 [N, L], the codes the tokenizer gave. Equal to codes[:, :-1] but for items that had to move.
    last_codebook: float32 [sizes[-1], D], what the last code stands for, needed to give new items theirs.
    """

    codes: np.ndarray
    sizes: tuple[int, ...]
    wanted: np.ndarray
    last_codebook: np.ndarray

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.shape[1] != len(self.sizes):
            raise ValueError(
                f"codes {list(self.codes.shape)} do not fit the {len(self.sizes)} levels of sizes {self.sizes}"
            )
        if len(self.codes) and ((self.codes < 0).any() or (self.codes >= np.array(self.sizes)).any()):
            raise ValueError(f"codes leave the range given by sizes {self.sizes}")
        if len(np.unique(self.codes, axis=0)) != len(self.codes):
            raise ValueError("two items share a semantic ID: make the IDs with assign_unique")

    def __len__(self) -> int:
        return len(self.codes)

    def join(self, more: SemanticIds) -> SemanticIds:
        """These items followed by `more`, which was assigned with `taken=self`. Raises ValueError if they collide."""
        if more.sizes != self.sizes:
            raise ValueError(f"sizes differ ({self.sizes}, {more.sizes}): assign the new items with taken= the old IDs")
        codes = np.concatenate([self.codes, more.codes])
        return SemanticIds(codes, self.sizes, np.concatenate([self.wanted, more.wanted]), self.last_codebook)

    def save(self, path: Path) -> None:
        """Write `semantic_ids.json` and `semantic_ids.safetensors` into the folder `path`."""
        path = Path(path)
        arrays = {"codes": self.codes, "wanted": self.wanted, "last_codebook": self.last_codebook}
        write_arrays(path / "semantic_ids.safetensors", arrays)
        write_json(path / "semantic_ids.json", {"items": len(self.codes), "sizes": list(self.sizes)})

    @classmethod
    def load(cls, path: Path) -> SemanticIds:
        """Read what `save` wrote. Raises FileNotFoundError or ValueError."""
        path = Path(path)
        about = read_json(path / "semantic_ids.json")
        arrays = read_arrays(path / "semantic_ids.safetensors")
        if len(arrays["codes"]) != about["items"]:
            raise ValueError(
                f"{path}: {about['items']} items announced, {len(arrays['codes'])} found: save the IDs again"
            )
        return cls(arrays["codes"], tuple(about["sizes"]), arrays["wanted"], arrays["last_codebook"])
