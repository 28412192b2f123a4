"""Huge pages under a graph: a search jumps all over some hundred megabytes, and much of its time goes into looking up
where the small pages of 4 KB lie. Linux only, and a wish: where it is refused, answers are the same and slower."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

faiss: Any = import_module("faiss")  # its type stubs do not know what lies in an index

HUGE = 2 << 20
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25


def use_huge_pages(index: Any) -> None:
    """Move the arrays of a graph and its codes into pages of 2 MB; other structures are read in order, and left."""
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    for address, length in _arrays(index):
        start, end = -(-address // HUGE) * HUGE, (address + length) // HUGE * HUGE
        if end > start:
            for wish in (MADV_HUGEPAGE, MADV_COLLAPSE):
                madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), wish)


def _arrays(index: Any) -> Iterator[tuple[int, int]]:
    """Address and length in bytes of what a search in a graph reads; nothing where there is no graph."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        yield from _arrays(index.base_index)
    elif isinstance(index, faiss.IndexPreTransform):
        yield from _arrays(index.index)
    elif isinstance(index, faiss.IndexHNSW):
        for array in (index.hnsw.neighbors, faiss.downcast_index(index.storage).codes):
            if array.size():
                view = faiss.rev_swig_ptr(array.data(), array.size())
                yield view.ctypes.data, view.nbytes
