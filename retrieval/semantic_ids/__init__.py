"""Item vectors to short, unique, readable codes."""

from retrieval.semantic_ids.assign import assign_unique
from retrieval.semantic_ids.base import Context, ItemTokenizer, SemanticIds
from retrieval.semantic_ids.diagnostics import describe_prefixes, diagnostics
from retrieval.semantic_ids.registry import load_tokenizer, make_tokenizer, tokenizer_names
from retrieval.semantic_ids.residual_kmeans import ResidualKMeans

__all__ = [
    "Context",
    "ItemTokenizer",
    "ResidualKMeans",
    "SemanticIds",
    "assign_unique",
    "describe_prefixes",
    "diagnostics",
    "load_tokenizer",
    "make_tokenizer",
    "tokenizer_names",
]
