"""Item tokenizers by name; a module is imported when its tokenizer is asked for."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from retrieval.files import read_json
from retrieval.semantic_ids.base import ItemTokenizer

TOKENIZERS = {
    "residual_kmeans": "ResidualKMeans",
    "rqvae": "RQVAE",
    "fsq": "FSQ",
    "product": "ProductQuantizer",
    "letter": "LETTER",
    "lcrec": "LCRec",
    "collaborative": "CollaborativeIds",
    "sequential": "SequentialIds",
    "hybrid": "HybridIds",
    "random": "RandomIds",
    "decoupled": "DecoupledCodes",
    "prorec": "PRORec",
}
"""The class of each name; it lives in the module of that name."""
MODULES = {"random": "random_ids"}  # a module called `random` would shadow Python's own for whoever runs it as a script


def tokenizer_names() -> list[str]:
    return sorted(TOKENIZERS)


def _class(name: str) -> Any:
    if name not in TOKENIZERS:
        raise KeyError(f"no item tokenizer is called {name!r}; there are: {', '.join(tokenizer_names())}")
    return getattr(import_module(f"retrieval.semantic_ids.{MODULES.get(name, name)}"), TOKENIZERS[name])


def make_tokenizer(name: str, **options: Any) -> ItemTokenizer:
    """A new, unfitted tokenizer. Raises KeyError for an unknown name, TypeError or ValueError for unfit options."""
    made_by = _class(name)
    parameters = [p for kind in made_by.__mro__ for p in signature(kind.__init__).parameters.values()]
    known = {p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD} - {"self"}
    for option in options.keys() - known:
        raise TypeError(f"the tokenizer {name} has no option {option!r}; it has: {', '.join(sorted(known))}")
    return made_by(**options)


def load_tokenizer(path: Path) -> ItemTokenizer:
    """Whatever tokenizer was saved in the folder `path`. Raises FileNotFoundError, KeyError or ValueError."""
    return _class(read_json(Path(path) / "tokenizer.json")["name"]).load(Path(path))
