"""Searching on GPUs, where faiss-gpu finds some; the file of an index is the same with and without.

There was no GPU where this was written: it has not been run on one.
"""

from __future__ import annotations

from importlib import import_module
from threading import Lock
from typing import Any

import numpy as np

faiss: Any = import_module("faiss")  # its type stubs do not know the keyword arguments

KNOWN = {"IndexFlat", "IndexFlatIP", "IndexFlatL2", "IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ"}
MOST = 2_048
"""Neighbours and lists that FAISS can look at for a query on a GPU."""


def has_gpu() -> bool:
    """Whether this FAISS knows GPUs and finds one."""
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


class OnGpus:
    """A copy of an index in the memory of all GPUs, each of which answers a share of the queries."""

    def __init__(self, copy: Any, keeps: tuple[Any, ...]) -> None:
        self._copy, self._keeps = copy, keeps  # FAISS does not keep alive what a copy leans on
        self._one_at_a_time = Lock()

    @classmethod
    def of(cls, index: Any) -> OnGpus | None:
        """None without a GPU, and for what FAISS keeps on the CPU: graphs, RaBitQ and fast-scan codes. Codes that put
        candidates in order once more stay on the CPU."""
        from retrieval.vector_store.faiss_index import core  # a module that reads this one

        if not has_gpu() or type(core(index)).__name__ not in KNOWN:
            return None
        whole = faiss.downcast_index(index)
        refined = isinstance(whole, faiss.IndexRefine)
        options = faiss.GpuMultipleClonerOptions()
        options.useFloat16 = True  # for the tables of product codes, which do not fit otherwise
        try:
            base = faiss.index_cpu_to_all_gpus(whole.base_index if refined else whole, options)
        except RuntimeError:  # too large for the memory there, or of a shape that FAISS has no kernel for
            return None
        return cls(faiss.IndexRefine(base, whole.refine_index) if refined else base, (whole, base))

    def search(self, units: np.ndarray, k: int, nprobe: int, rerank: int = 1) -> tuple[np.ndarray, np.ndarray] | None:
        """FAISS's distances float32 [B, k] and rows int64 [B, k]; None where the CPU has to be asked instead. nprobe: 0
        where there are no lists. rerank: how many times k candidates the finer codes put in order."""
        if k * rerank > MOST or nprobe > MOST:
            return None
        with self._one_at_a_time:  # the scratch memory of a GPU is shared
            settings = faiss.GpuParameterSpace()
            if nprobe:
                settings.set_index_parameter(self._copy, "nprobe", nprobe)
            if isinstance(self._copy, faiss.IndexRefine):
                settings.set_index_parameter(self._copy, "k_factor_rf", rerank)
            distances, rows = self._copy.search(units, k)
        return None if (rows < 0).any() else (distances, rows)  # the lists that were read may hold too few
