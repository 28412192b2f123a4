"""An open index: one version of it, which keeps answering the same whatever is built meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval.gpu import OnGpus
from retrieval.index import unit
from retrieval.vector_store import faiss_index
from retrieval.vector_store.faiss_index import Effort
from retrieval.vector_store.pages import use_huge_pages
from retrieval.vector_store.sources import gather
from retrieval.vector_store.versions import current, verify

if TYPE_CHECKING:
    import pyarrow as pa

SERVED = ("index.faiss", "rows.arrow", "removed.npy")


class ForeignSpace(ValueError):
    """Vectors of another embedding space than the index was built from."""


class VectorStore:
    """Nearest rows by cosine among up to many millions, filtered by ids or metadata. Open it with `VectorStore.open`.

    Rows are numbered from 0 in the order of `table`; a removed one keeps its number until the index is compacted.
    """

    def __init__(self, version: Path, about: dict[str, Any], mmap: bool) -> None:
        self.version, self.about = version, about
        self._index = faiss_index.load(version / "index.faiss", mmap)
        if not mmap:
            use_huge_pages(self._index)
        self._gpus = None if mmap else OnGpus.of(self._index)
        self.effort = Effort(**about["report"]["effort"])
        self.removed: np.ndarray = np.load(version / "removed.npy", allow_pickle=False)
        if not len(self.removed) == self._index.ntotal == self._ids.length():
            raise ValueError(f"{version} holds files of different lengths: build the index again")

    @classmethod
    def open(cls, root: Path, version: int | None = None, *, mmap: bool = False) -> VectorStore:
        """The current version, or an older one that still lies there.

        mmap: leave the codes in the file, where processes share them and only what is touched is read. Raises
        FileNotFoundError, or ValueError (DamagedIndex) where a file is not what was written.
        """
        folder = current(Path(root)) if version is None else Path(root).resolve() / "versions" / f"{version:06d}"
        if version is not None and not folder.is_dir():
            raise FileNotFoundError(f"{root} has no version {version}")
        try:
            return cls(folder, verify(folder, *SERVED), mmap)
        except (OSError, ValueError):
            if version is None and current(Path(root)) != folder:  # it was replaced and swept while it was read
                return cls.open(root, mmap=mmap)
            raise

    @property
    def number(self) -> int:
        return int(self.version.name)

    @property
    def space(self) -> str:
        """The name of the embedding space."""
        return str(self.about["space"])

    @property
    def dim(self) -> int:
        return int(self._index.d)

    def __len__(self) -> int:
        """Rows that answer."""
        return int(len(self.removed) - self.removed.sum())

    @cached_property
    def table(self) -> pa.Table:
        """One line per row, removed ones included: `id` and the metadata; memory-mapped."""
        import pyarrow as pa

        return pa.ipc.open_file(pa.memory_map(str(self.version / "rows.arrow"))).read_all()

    def search(
        self, queries: np.ndarray, k: int, *, space: str, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cosines float32 [B, k] and rows int64 [B, k] of the k nearest, best first; empty places: -inf and -1.

        queries: [B, D] of any length but zero, from the embedding space named `space`. allowed: bool [rows], from
        `mask`; wherever k rows are allowed, k come back. The cosines are as exact as the codes of the index. Raises
        ForeignSpace, or ValueError for a wrong shape or a query without a direction.
        """
        self._check(queries, space)
        if allowed is not None and (allowed.dtype != np.bool_ or allowed.shape != self.removed.shape):
            raise ValueError(f"allowed is {allowed.dtype} {list(allowed.shape)}: need bool [{len(self.removed)}]")
        units = unit(queries) if len(queries) else np.zeros((0, self.dim), np.float32)
        if allowed is None and not self._any_removed:
            reach, rerank = self.effort.reach, self.effort.rerank
            answered = self._gpus.search(units, k, reach, rerank) if self._gpus and len(units) else None
            if answered is not None:
                return 1.0 - answered[0] / 2.0, answered[1]
            return faiss_index.search(self._index, units, k, self.effort)
        alive = ~self.removed if allowed is None else allowed & ~self.removed
        return faiss_index.search(self._index, units, k, self.effort, alive)

    def ids(self, rows: np.ndarray) -> list[list[str]]:
        """The ids of rows int64 [B, k]; empty places are left out."""
        return [[self._ids[int(row)].as_py() for row in line if row >= 0] for line in np.atleast_2d(rows)]

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of rows int64 [n] (ascending) as they came: float32 [n, D]."""
        names = sorted(name for name in self.about["files"] if name.startswith("vectors/"))
        return gather([self.version / name for name in names], rows)

    def mask(self, ids: Iterable[str] | None = None, where: Mapping[str, Any] | None = None) -> np.ndarray:
        """bool [rows]: those whose id is among `ids` and whose metadata column equals the value (or one of the values)
        that `where` gives for it. Removed rows are never in it. Raises ValueError for an unknown column or type."""
        import pyarrow as pa
        import pyarrow.compute as pc

        mask = ~self.removed
        wanted = dict(where or {}) | ({} if ids is None else {"id": list(ids)})
        for column, values in wanted.items():
            if column not in self.table.column_names:
                raise ValueError(f"there is no column {column!r}; there are {', '.join(self.table.column_names)}")
            values = [values] if isinstance(values, (str, int, float, bool)) else list(values)
            kind = self.table[column].type
            try:
                chosen = pa.array(values).cast(kind) if values else pa.array([], kind)
                mask &= pc.is_in(self.table[column], value_set=chosen).to_numpy()
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ValueError(f"column {column!r} holds {kind} and cannot be {values[:3]}: {error}") from error
        return mask

    def blocks(self, rows: int) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """The vectors as they came, and their lines, of all rows that answer: so an open index is a `Source`."""
        import pyarrow as pa

        start = 0
        for name in sorted(name for name in self.about["files"] if name.startswith("vectors/")):
            vectors = np.load(self.version / name, mmap_mode="r", allow_pickle=False)
            for low in range(0, len(vectors), rows):
                part = vectors[low : low + rows]
                alive = ~self.removed[start + low : start + low + len(part)]
                yield np.asarray(part[alive]), self.table.slice(start + low, len(part)).filter(pa.array(alive))
            start += len(vectors)

    def fingerprint(self) -> Any:
        return [self.about["files"], self.number]

    @cached_property
    def _any_removed(self) -> bool:
        return bool(self.removed.any())

    @cached_property
    def _ids(self) -> pa.ChunkedArray:
        return self.table["id"]

    def _check(self, vectors: np.ndarray, space: str) -> None:
        if space != self.space:
            raise ForeignSpace(
                f"these vectors are of the space {space!r}, the index {self.version.parent.parent} was built from "
                f"{self.space!r}: two spaces may have one dimension and mean different things"
            )
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"vectors {list(vectors.shape)}: the index holds [n, {self.dim}]")


def search_shards(
    stores: Sequence[VectorStore], queries: np.ndarray, k: int, *, space: str
) -> tuple[np.ndarray, list[list[str]]]:
    """The k nearest over several indexes of one space: cosines float32 [B, k] (-inf) and their ids.

    The indexes may lie on several machines' disks; each answers for its share and the best of all are kept.
    """
    scores, ids = [], []
    for store in stores:
        cosines, rows = store.search(queries, k, space=space)
        scores.append(cosines)
        ids.append(store.ids(rows))
    merged = np.concatenate(scores, axis=1)  # [B, shards * k]
    order = np.argsort(-merged, axis=1, kind="stable")[:, :k]
    names = []
    for person, line in enumerate(order):
        found = [divmod(int(place), k) for place in line if np.isfinite(merged[person, place])]
        names.append([ids[shard][person][rank] for shard, rank in found])
    return np.take_along_axis(merged, order, axis=1), names
