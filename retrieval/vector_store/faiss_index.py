"""What a FAISS index is made of, and how to ask it: effort, filters, and exhaustively.

Vectors have unit length and are compared by Euclidean distance, which orders them as the cosine does (|a - b|^2 =
2 - 2 cos) and, other than the inner product, stays an order of nearness once a PCA has moved and shortened them. The
exception: fast-scan product codes that are re-ranked. They turn vectors and move none, and the second codes tell inner
products in half the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.gpu import has_gpu
from retrieval.vector_store.pages import use_huge_pages

faiss: Any = import_module("faiss")  # its type stubs do not know the keyword arguments

GRAPH_EFFORTS = (16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 512, 768, 1024)
EXHAUSTIVE_BELOW = 0.02
"""Share of allowed rows under which all of them are compared: a graph or its lists would be searched almost whole."""
TRAINING_POINTS = 64
"""Training vectors per centroid of an inverted file (FAISS asks for 39 at least)."""


@dataclass(frozen=True)
class Effort:
    """How hard to look: `reach` is efSearch of a graph or nprobe of an inverted file (0 where there is neither), and
    `rerank` how many times k candidates the second, finer codes put in order (1 where there are none)."""

    reach: int = 0
    rerank: int = 1


def create(dim: int, factory: str) -> Any:
    """An empty index. Raises ValueError for a string that FAISS cannot take."""
    turned = "x4fs" in factory and "Refine" in factory and "PCA" not in factory
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT if turned else faiss.METRIC_L2)
    except RuntimeError as error:
        raise ValueError(f"FAISS cannot make {factory!r} of {dim} dimensions: {error}") from error
    whole = faiss.downcast_index(index)
    whole = faiss.downcast_index(whole.base_index) if isinstance(whole, faiss.IndexRefine) else whole
    for step in range(whole.chain.size() if isinstance(whole, faiss.IndexPreTransform) else 0):
        rotation = faiss.downcast_VectorTransform(whole.chain.at(step))
        if isinstance(rotation, faiss.OPQMatrix):
            rotation.niter = 10
    inner = core(index)
    if isinstance(inner, faiss.IndexIVF):
        inner.cp.max_points_per_centroid = TRAINING_POINTS
        inner.cp.min_points_per_centroid = 1
        inner.cp.niter = 10
    if hasattr(inner, "pq"):
        inner.pq.cp.min_points_per_centroid = 1
    if isinstance(inner, faiss.IndexHNSW):
        inner.hnsw.efConstruction = 100
    return index


def train(index: Any, units: np.ndarray) -> None:
    """Learn the centroids, projections and codes from float32 [n, D]; k-means runs on the GPUs where there are any."""
    inner = core(index)
    helper = None
    if isinstance(inner, faiss.IndexIVF) and has_gpu():
        helper = inner.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(inner.d))
    try:
        index.train(units)
    except RuntimeError as error:
        raise ValueError(f"FAISS cannot train this index on {len(units)} vectors: {error}") from error
    finally:
        if helper is not None:  # the name keeps it alive until here, which FAISS does not
            inner.clustering_index = None
    _fill_bytes(index, units)


def _fill_bytes(index: Any, units: np.ndarray) -> None:
    """Where a graph walks on coordinates as bytes (SQ8_direct: distances in whole numbers, a third quicker than SQ8)
    and finer codes tell the distances, stretch the projection before it so that they fill the bytes. They are given
    half as much room again as the training vectors need, for FAISS does not stop at 0 and 255."""
    whole = faiss.downcast_index(index)
    index = faiss.downcast_index(whole.base_index) if isinstance(whole, faiss.IndexRefine) else whole
    inner = core(index)
    if index is whole or not isinstance(index, faiss.IndexPreTransform) or not isinstance(inner, faiss.IndexHNSWSQ):
        return
    if faiss.downcast_index(inner.storage).sq.qtype != faiss.ScalarQuantizer.QT_8bit_direct:
        return
    last = faiss.downcast_VectorTransform(index.chain.at(index.chain.size() - 1))
    stretch = 127 / (1.5 * float(np.abs(_transformed(index, units)).max()))
    bias = faiss.vector_to_array(last.b) if last.have_bias else np.zeros(last.d_out, np.float32)
    faiss.copy_array_to_vector(np.float32(stretch * faiss.vector_to_array(last.A)), last.A)
    faiss.copy_array_to_vector(np.float32(stretch * bias + 128), last.b)
    last.have_bias = True


def append(index: Any, units: np.ndarray, block: int) -> None:
    """Add float32 [n, D], in the same way whether or not the index was written and read again since the block before:
    the generator that gives a graph its levels is not saved with it, so it starts anew with every block."""
    inner = core(index)
    if isinstance(inner, faiss.IndexHNSW):
        inner.hnsw.rng = faiss.RandomGenerator(12345 + block)
        use_huge_pages(inner)
    index.add(units)


def can_assign(index: Any) -> bool:
    """Whether `assign` and `append_assigned` together do what `append` does: with plain inverted files they do. (A
    graph grows vector by vector, and fast-scan codes are packed many to a word.)"""
    inner = core(index)
    return isinstance(inner, faiss.IndexIVF) and not isinstance(inner, faiss.IndexIVFFastScan)


def assign(index: Any, units: np.ndarray) -> np.ndarray:
    """The inverted list of each vector, int64 [n]: nearly all the work of adding, and it leaves the index as it is."""
    inner, seen = _beneath(index, units)
    return inner.quantizer.search(seen, 1)[1][:, 0]


def append_assigned(index: Any, units: np.ndarray, lists: np.ndarray) -> None:
    """Add float32 [n, D] whose lists are known; the index becomes what `append` would make of it, to the byte."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        append_assigned(index.base_index, units, lists)
        index.refine_index.add(units)
        index.ntotal = index.refine_index.ntotal
    elif isinstance(index, faiss.IndexPreTransform):
        append_assigned(index.index, _transformed(index, units), lists)
        index.ntotal = index.index.ntotal
    else:
        lists = np.ascontiguousarray(lists, np.int64)
        index.add_core(len(units), faiss.swig_ptr(units), None, faiss.swig_ptr(lists))


def _beneath(index: Any, units: np.ndarray) -> tuple[Any, np.ndarray]:
    """The inverted file, and the vectors as it sees them."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return _beneath(index.base_index, units)
    if isinstance(index, faiss.IndexPreTransform):
        return _beneath(index.index, _transformed(index, units))
    return index, units


def _transformed(index: Any, units: np.ndarray) -> np.ndarray:
    for number in range(index.chain.size()):
        units = faiss.downcast_VectorTransform(index.chain.at(number)).apply(units)
    return units


def core(index: Any) -> Any:
    """The graph, inverted file or flat codes under the re-ranking and the projection."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return core(index.base_index)
    if isinstance(index, faiss.IndexPreTransform):
        return core(index.index)
    return index


def efforts(index: Any) -> list[int]:
    """The values of `Effort.reach` worth trying, least first; [0] where there is nothing to choose."""
    inner = core(index)
    if isinstance(inner, faiss.IndexHNSW):
        return list(GRAPH_EFFORTS)
    if isinstance(inner, faiss.IndexIVF):
        steps = np.unique(np.geomspace(1, inner.nlist, 25).round().astype(int))
        return [int(step) for step in steps]
    return [0]


def reranks(index: Any) -> list[int]:
    """The values of `Effort.rerank` worth trying."""
    return [1, 2, 4, 8, 16, 32] if isinstance(faiss.downcast_index(index), faiss.IndexRefine) else [1]


def search(
    index: Any, units: np.ndarray, k: int, effort: Effort, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines float32 [B, k] and rows int64 [B, k], best first; empty places: -inf and -1.

    allowed: bool [N]; wherever k rows are allowed, k come back. The effort grows as fewer rows are allowed; when few
    are, or the effort did not find k, all of them are compared.
    """
    rows = int(index.ntotal)
    possible = rows if allowed is None else int(allowed.sum())
    told = np.full((len(units), k), -np.inf, np.float32)  # distances, or of inner products the cosines themselves
    found = np.full((len(units), k), -1, np.int64)
    wide = min(k, possible)
    if wide == 0 or len(units) == 0:
        return told, found
    share = possible / rows
    selector = None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    short = np.arange(len(units))
    if share > EXHAUSTIVE_BELOW and wide < possible:
        reach = int(np.ceil(effort.reach / share))
        told[:, :wide], found[:, :wide] = index.search(
            units, wide, params=_parameters(index, Effort(reach, effort.rerank), selector)
        )
        short = np.flatnonzero((found[:, :wide] < 0).any(axis=1))
    if len(short):
        told[short, :wide], found[short, :wide] = _exhaustively(index, units[short], wide, selector)
    cosines = told if index.metric_type == faiss.METRIC_INNER_PRODUCT else 1.0 - told / 2.0
    cosines[found < 0] = -np.inf
    return cosines, found


def size(index: Any) -> int:
    """Bytes of the index in its file, which is what it holds in memory."""
    written = 0

    def count(data: bytes) -> None:
        nonlocal written
        written += len(data)

    faiss.write_index(index, faiss.PyCallbackIOWriter(count))
    return written


def load(path: Path, mmap: bool = False) -> Any:
    """Read an index; with `mmap` its codes stay in the file and processes share them. Raises ValueError."""
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
    except RuntimeError as error:
        raise ValueError(f"{path} is not a FAISS index: build it again") from error


def _parameters(index: Any, effort: Effort, selector: Any) -> Any:
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        inner = _parameters(index.base_index, effort, selector)
        return faiss.IndexRefineSearchParameters(k_factor=effort.rerank, base_index_params=inner)
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_parameters(index.index, effort, selector))
    chosen = {} if selector is None else {"sel": selector}
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=max(effort.reach, 1), **chosen)
    if isinstance(index, (faiss.IndexIVFRaBitQ, faiss.IndexIVFRaBitQFastScan)):
        return faiss.IVFRaBitQSearchParameters(nprobe=min(max(effort.reach, 1), index.nlist), **chosen)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=min(max(effort.reach, 1), index.nlist), **chosen)
    return faiss.SearchParameters(**chosen) if chosen else None


def _exhaustively(index: Any, units: np.ndarray, k: int, selector: Any) -> tuple[np.ndarray, np.ndarray]:
    """Every selected row compared by the finest codes that the index holds."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return _exhaustively(index.refine_index, units, k, selector)
    if isinstance(index, faiss.IndexPreTransform):
        for step in range(index.chain.size()):
            units = faiss.downcast_VectorTransform(index.chain.at(step)).apply(units)
        return _exhaustively(index.index, units, k, selector)
    if isinstance(index, faiss.IndexHNSW):
        return _exhaustively(index.storage, units, k, selector)
    everything = Effort(reach=int(index.nlist) if isinstance(index, faiss.IndexIVF) else 0)
    return index.search(units, k, params=_parameters(index, everything, selector))
