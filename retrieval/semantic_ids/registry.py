"""Item tokenizers by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retrieval.files import read_json
from retrieval.semantic_ids.base import ItemTokenizer
from retrieval.semantic_ids.residual_kmeans import ResidualKMeans

TOKENIZERS: dict[str, type] = {ResidualKMeans.name: ResidualKMeans}


def tokenizer_names() -> list[str]:
    return sorted(TOKENIZERS)


def _class(name: str) -> Any:
    if name not in TOKENIZERS:
        raise KeyError(f"no item tokenizer is called {name!r}; there are: {', '.join(tokenizer_names())}")
    return TOKENIZERS[name]


def make_tokenizer(name: str, **options: Any) -> ItemTokenizer:
    """A new, unfitted tokenizer. Raises KeyError for an unknown name."""
    return _class(name)(**options)


def load_tokenizer(path: Path) -> ItemTokenizer:
    """Whatever tokenizer was saved in the folder `path`. Raises FileNotFoundError, KeyError or ValueError."""
    return _class(read_json(Path(path) / "tokenizer.json")["name"]).load(Path(path))
