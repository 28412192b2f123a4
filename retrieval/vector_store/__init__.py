"""Indexes of up to many millions of vectors: built for a budget, streamed from shards, versioned, grown and filtered.

`retrieval.index.VectorIndex` is the small one, in memory, that the stages of a workspace use.
"""

from retrieval.vector_store.build import Report, assign_block, build
from retrieval.vector_store.changes import add, compact, remove, update
from retrieval.vector_store.plan import Budget
from retrieval.vector_store.sources import Arrays, Shards, open_shards
from retrieval.vector_store.store import ForeignSpace, VectorStore, search_shards
from retrieval.vector_store.versions import DamagedIndex, all_versions, rollback

__all__ = [
    "Arrays",
    "Budget",
    "DamagedIndex",
    "ForeignSpace",
    "Report",
    "Shards",
    "VectorStore",
    "add",
    "all_versions",
    "assign_block",
    "build",
    "compact",
    "open_shards",
    "remove",
    "rollback",
    "search_shards",
    "update",
]
