"""Tags (categories, brands, genres) as vectors, with nothing to fit: a tag nobody has seen yet has one too.

Each tag is a fixed vector of random signs, read off a hash of its name, and an item is the sum of its tags: random
projections of the bag of tags (Achlioptas 2003, "Database-friendly random projections"; hashed as in Weinberger et al.
2009, "Feature Hashing for Large Scale Multitask Learning"). How much a common tag says is the fusion's business, which
centres and whitens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from encoders.base import Item, check_items


class HashedTags:
    """256 numbers per item: the sum over its tags of ±1/16, by the bits of the tag's SHA-256. An item is one string,
    its tags with "|" between; case and blanks around a tag do not count."""

    name = "hashed_tags"
    space = "hashed_tags"
    dim = 256
    modalities = frozenset({"tags"})

    def encode(self, items: Sequence[Item], modality: str) -> np.ndarray:
        """[n, 256] float32, not normalised. Raises ValueError for another modality or what is not a string."""
        check_items(self.name, self.modalities, items, modality)
        known: dict[str, np.ndarray] = {}
        out = np.zeros((len(items), self.dim), dtype=np.float32)
        for row, item in enumerate(items):
            assert isinstance(item, str)
            for tag in {part.strip().casefold() for part in item.split("|")} - {""}:
                if tag not in known:
                    digest = hashlib.sha256(tag.encode("utf-8", "replace")).digest()
                    signs = np.unpackbits(np.frombuffer(digest, np.uint8)) * 2.0 - 1.0
                    known[tag] = signs / self.dim**0.5
                out[row] += known[tag]
        return out
