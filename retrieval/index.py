"""Nearest items by cosine, on FAISS."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.files import read_json, write_array, write_index, write_json
from retrieval.ranking import check_allowed, rank

SPACING_ITEMS = 20_000


class VectorIndex:
    """The catalog's unit vectors in a FAISS index, and how far each item is from its nearest neighbour.

    spacing: float32 [N], ascending; the cosine distances (1 - cosine) from each item to the nearest other item, of a
    random 20,000 items where there are more. A yardstick for what "far from the catalog" means (empty where there is
    one item only).
    """

    def __init__(self, index: Any, factory: str, spacing: np.ndarray) -> None:
        from retrieval.gpu import OnGpus

        self._index = index
        self._gpus = OnGpus.of(index)
        self.factory = factory
        self.spacing = spacing

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        return int(self._index.d)

    @classmethod
    def build(cls, vectors: np.ndarray, factory: str = "Flat") -> VectorIndex:
        """Index float32 [N, D] (made unit length here) under a FAISS factory string: "Flat" is exact, "IVF64,Flat" or
        "HNSW32" are faster and approximate. Raises ValueError for vectors or a string that FAISS cannot take."""
        import faiss

        units = unit(vectors)
        if not len(units):
            raise ValueError("there are no vectors to index")
        try:
            index = faiss.index_factory(units.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            index.train(units)
            index.add(units)
        except RuntimeError as error:
            raise ValueError(f"FAISS cannot build {factory!r} over {len(units)} vectors: {error}") from error
        _make_reconstructible(index)
        built = cls(index, factory, np.empty(0, np.float32))
        if len(units) > 1:
            sample = np.arange(len(units))
            if len(sample) > SPACING_ITEMS:
                sample = np.sort(np.random.default_rng(0).choice(len(sample), SPACING_ITEMS, replace=False))
            scores, items = built.search(units[sample], 2)
            other = np.where(items[:, 0] == sample, scores[:, 1], scores[:, 0])
            built.spacing = np.sort(np.clip(1.0 - other[np.isfinite(other)], 0.0, 2.0)).astype(np.float32)
        return built

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Cosines float32 [B, k] and items int64 [B, k] of the k nearest items, best first; empty places: -inf and -1.

        queries: [B, D], of any length but zero-free (ValueError). allowed: bool [N]; wherever k items are allowed, k
        come back, also from an approximate index (the rest is then searched exactly).
        """
        import faiss

        queries = unit(queries)
        if queries.shape[1] != self.dim:
            raise ValueError(f"queries have {queries.shape[1]} dimensions, the index {self.dim}")
        allowed = check_allowed(allowed, len(self))
        possible = len(self) if allowed is None else int(allowed.sum())
        wide = min(k, possible)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        items = np.full((len(queries), k), -1, dtype=np.int64)
        if wide == 0 or len(queries) == 0:
            return scores, items
        if allowed is None:
            nprobe = int(getattr(self._index, "nprobe", 0))
            answered = self._gpus.search(queries, wide, nprobe) if self._gpus else None
            scores[:, :wide], items[:, :wide] = answered or self._index.search(queries, wide)
            short = np.flatnonzero((items[:, :wide] < 0).any(axis=1))
        else:
            bitmap = np.packbits(allowed, bitorder="little")
            parameters = _parameters(self._index, faiss.IDSelectorBitmap(bitmap))  # type: ignore[call-arg, arg-type]
            if parameters is None:
                short = np.arange(len(queries))
            else:
                scores[:, :wide], items[:, :wide] = self._index.search(queries, wide, params=parameters)
                short = np.flatnonzero((items[:, :wide] < 0).any(axis=1))
        if len(short):
            members = np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
            places, scores[short] = rank(queries[short] @ self._index.reconstruct_batch(members).T, k)
            items[short] = np.where(places >= 0, members[places], -1)
        scores[items < 0] = -np.inf
        return scores, items

    def vectors(self, items: np.ndarray) -> np.ndarray:
        """The stored unit vectors of items [n] -> float32 [n, D] (approximate under a lossy factory)."""
        return self._index.reconstruct_batch(np.asarray(items, dtype=np.int64))

    def save(self, path: Path) -> None:
        """Write `index.faiss`, `spacing.npy` and `index.json` into the folder `path`."""
        path = Path(path)
        write_index(path / "index.faiss", self._index)
        write_array(path / "spacing.npy", self.spacing)
        write_json(path / "index.json", {"factory": self.factory, "items": len(self), "dim": self.dim})

    @classmethod
    def load(cls, path: Path) -> VectorIndex:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError if the file is not the index described."""
        import faiss

        path = Path(path)
        about = read_json(path / "index.json")
        for name in ("index.faiss", "spacing.npy"):
            if not (path / name).is_file():
                raise FileNotFoundError(f"{path / name} is missing: build the index again")
        try:
            index = faiss.read_index(str(path / "index.faiss"))
        except RuntimeError as error:
            raise ValueError(f"{path / 'index.faiss'} is not a FAISS index: build the index again") from error
        if (index.ntotal, index.d) != (about["items"], about["dim"]):
            raise ValueError(
                f"{path / 'index.faiss'} holds {index.ntotal} vectors of {index.d} dimensions, index.json says "
                f"{about['items']} of {about['dim']}: build the index again"
            )
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"{path / 'index.faiss'} does not compare by inner product: build the index again")
        _make_reconstructible(index)
        return cls(index, about["factory"], np.load(path / "spacing.npy", allow_pickle=False))


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 [n, D] of unit length. Raises ValueError for another shape, NaN, infinity or a zero vector."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise ValueError(f"vectors {list(vectors.shape)}: need [n, D]")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
    if len(bad):
        raise ValueError(f"vector {bad[0]} (and {len(bad) - 1} more) is zero or not finite and has no direction")
    return vectors / lengths


def _make_reconstructible(index: Any) -> None:
    import faiss

    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    if isinstance(inner, faiss.IndexIVF):
        inner.make_direct_map()


def _parameters(index: Any, selector: Any) -> Any:
    """Search parameters that restrict `index` to `selector`; None where FAISS has none for this kind."""
    faiss: Any = import_module("faiss")  # its type stubs do not know the keyword arguments
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexFlat):
        return faiss.SearchParameters(sel=selector)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(sel=selector, nprobe=index.nprobe)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=index.hnsw.efSearch)
    return None
