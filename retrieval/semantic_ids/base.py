"""What an item tokenizer is, what all of them share, and the finished semantic IDs of a catalog."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np

from retrieval.files import read_arrays, read_json, write_arrays, write_json

Progress = Callable[[int, int], None]
ITEMS_PER_CODE = 4  # a smaller catalog gets smaller codebooks


@dataclass(frozen=True)
class Context:
    """What may be known of the items besides their vectors.

    histories: an int64 array of item indices per person, oldest first, without the disliked; of the training part only.
    modalities: {name: float32 [N, d]}, a vector per item and modality; a row of zeros says that the item lacks it.
    """

    histories: Sequence[np.ndarray] = ()
    modalities: Mapping[str, np.ndarray] = field(default_factory=dict)


@runtime_checkable
class ItemTokenizer(Protocol):
    """Item vectors to short codes and back.

    needs: the fields of `Context` without which it cannot be fitted. encodes_new: whether `encode` works, that is,
    whether the codes follow from what an item is and not from who used it or from its number.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    encodes_new: ClassVar[bool]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes per level, known after `fit`."""

    def fit(
        self,
        vectors: np.ndarray,
        seed: int = 0,
        context: Context | None = None,
        *,
        checkpoint_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Learn from the items' float32 [N, D] and return their codes int64 [N, L], not yet unique.

        Same arguments, same codes. What takes long saves itself in `checkpoint_dir` and goes on there after a kill.
        Raises ValueError for vectors that are not finite, or if the context lacks what the tokenizer `needs`.
        """

    def encode(self, vectors: np.ndarray, context: Context | None = None) -> np.ndarray:
        """float32 [n, D] of new items -> int64 [n, L]; not yet unique. Raises ValueError unless `encodes_new`."""

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """int64 [n, L] -> float32 [n, D], the vector the codes stand for."""

    def save(self, path: Path) -> None:
        """Write `tokenizer.json` and `tokenizer.safetensors` into the folder `path`."""

    @classmethod
    def load(cls, path: Path) -> ItemTokenizer:
        """Read what `save` wrote."""


class Tokenizer:
    """What the tokenizers share: shape options, checks, saving.

    levels, codebook_size: `levels` codes of at most `codebook_size` values each; a small catalog gets fewer values. A
    subclass keeps its further options in `options` and all that it learns in `arrays`.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    encodes_new: ClassVar[bool] = True

    def __init__(self, levels: int = 3, codebook_size: int = 256, **options: Any) -> None:
        if not isinstance(codebook_size, int):
            raise ValueError(f"codebook_size={codebook_size}: the tokenizer {self.name} has one size of all its levels")
        if levels < 1 or codebook_size < 1:
            raise ValueError(f"levels={levels}, codebook_size={codebook_size}: both must be at least 1")
        self.levels = levels
        self.codebook_size = codebook_size
        self.options = {"levels": levels, "codebook_size": codebook_size, **options}
        self.arrays: dict[str, np.ndarray] = {}

    def save(self, path: Path) -> None:
        self.check_fitted()
        write_arrays(Path(path) / "tokenizer.safetensors", self.arrays)
        write_json(Path(path) / "tokenizer.json", {"name": self.name, "options": self.options})

    @classmethod
    def load(cls, path: Path) -> Self:
        tokenizer = cls(**read_json(Path(path) / "tokenizer.json")["options"])
        tokenizer.arrays = read_arrays(Path(path) / "tokenizer.safetensors")
        return tokenizer

    def size_for(self, items: int) -> int:
        """How many values a code may have in a catalog of so many items."""
        return max(1, min(self.codebook_size, items // ITEMS_PER_CODE))

    def check_fitted(self) -> None:
        if not self.arrays:
            raise ValueError(f"the tokenizer {self.name} has learnt nothing yet: call fit(vectors, seed) first")

    def check_fit(self, vectors: np.ndarray, context: Context | None) -> tuple[np.ndarray, Context]:
        """The vectors as float32 and a context that has what the tokenizer needs."""
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) == 0 or not np.isfinite(vectors).all():
            raise ValueError(f"vectors {list(vectors.shape)}: need finite numbers [N, D] with at least one item")
        context = context or Context()
        for need in self.needs:
            if not getattr(context, need):
                raise ValueError(f"the tokenizer {self.name} learns from {need}: fit it with Context({need}=...)")
        return vectors, context

    def check_encode(self, vectors: np.ndarray, width: int) -> np.ndarray:
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise ValueError(f"vectors {list(vectors.shape)}: this tokenizer was fitted on [N, {width}]")
        return vectors


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
