"""How good a set of semantic IDs is, and what its prefixes mean in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrieval.semantic_ids.base import ItemTokenizer, SemanticIds

LETTERS = r"(?u)\b[^\W\d_]{3,}\b"


def diagnostics(
    ids: SemanticIds, tokenizer: ItemTokenizer | None = None, vectors: np.ndarray | None = None
) -> dict[str, Any]:
    """Numbers about a catalog's IDs; the lists have one entry per level, the added last level included.

    use: share of the level's codes that some item has. entropy: of the level's codes over the items, in bits.
    perplexity: 2 ** entropy, the number of codes in even use that would give the same entropy.
    collisions_before: share of items whose tokenizer codes are also another item's. largest_group: most items on one
    tokenizer code. moved: items whose tokenizer codes had to change to make room. collisions: 0, by construction.
    With tokenizer and vectors [N, D]: reconstruction_error, the mean squared error of the tokenizer codes over the
    variance of the vectors (0 is perfect, 1 is no better than the mean), and reconstruction_error_full with the last
    code.
    """
    use, entropy = [], []
    for level, size in enumerate(ids.sizes):
        counts = np.bincount(ids.codes[:, level], minlength=size)
        share = counts[counts > 0] / max(1, counts.sum())
        use.append(float((counts > 0).mean()))
        entropy.append(float(-(share * np.log2(share)).sum()))
    _, group, group_size = np.unique(ids.wanted, axis=0, return_inverse=True, return_counts=True)
    report: dict[str, Any] = {
        "items": len(ids),
        "sizes": list(ids.sizes),
        "use": use,
        "entropy": entropy,
        "perplexity": [float(2.0**bits) for bits in entropy],
        "collisions_before": float((group_size[group.reshape(-1)] > 1).mean()) if len(ids) else 0.0,
        "largest_group": int(group_size.max()) if len(ids) else 0,
        "moved": int((ids.wanted != ids.codes[:, :-1]).any(axis=1).sum()),
        "collisions": float(1 - len(np.unique(ids.codes, axis=0)) / max(1, len(ids))),
    }
    if tokenizer is not None and vectors is not None:
        variance = float(((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).mean())
        without = tokenizer.reconstruct(ids.wanted)
        full = tokenizer.reconstruct(ids.codes[:, :-1]) + ids.last_codebook[ids.codes[:, -1]]
        for name, meaning in (("reconstruction_error", without), ("reconstruction_error_full", full)):
            report[name] = float(((vectors - meaning) ** 2).sum(axis=1).mean()) / max(variance, 1e-12)
    return report


def describe_prefixes(
    ids: SemanticIds, texts: Sequence[str], *, words: int = 3, depth: int | None = None
) -> dict[tuple[int, ...], str]:
    """Readable labels of the code tree: what the items under a prefix share and their siblings do not.

    Every prefix of 1 to `depth` codes (default: all but the added last one) gets up to `words` words, best first. A
    word's worth is p * log(p / q): the share p of the prefix's items whose text has it against the share q among all
    items under the parent, after the class-based TF-IDF of BERTopic (Grootendorst 2022, section 3.3), counted in items
    so that one long text does not speak for all. No stop words, no digits, no words of less than three letters. Where
    no word sets a prefix apart, the words most common under it are given; "" only where the texts hold no words at
    all.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    if len(texts) != len(ids):
        raise ValueError(f"{len(texts)} texts for {len(ids)} items: give one text per item, in catalog order")
    depth = len(ids.sizes) - 1 if depth is None else depth
    vectorizer = CountVectorizer(binary=True, stop_words="english", token_pattern=LETTERS)
    try:
        has = vectorizer.fit_transform(texts).tocsr()  # [N, vocabulary]
    except ValueError:  # not one word in all texts
        has = None
    labels: dict[tuple[int, ...], str] = {}
    vocabulary = vectorizer.get_feature_names_out() if has is not None else np.empty(0, object)
    parent_rows: dict[tuple[int, ...], np.ndarray] = {(): np.arange(len(ids))}
    for level in range(depth):
        child_rows: dict[tuple[int, ...], np.ndarray] = {}
        for parent, rows in parent_rows.items():
            in_parent = np.asarray(has[rows].sum(axis=0)).reshape(-1) / len(rows) if has is not None else None
            codes = ids.codes[rows, level]
            for code in np.unique(codes):
                members = rows[codes == code]
                prefix = (*parent, int(code))
                child_rows[prefix] = members
                labels[prefix] = "" if in_parent is None else _label(has[members], in_parent, vocabulary, words)
        parent_rows = child_rows
    return labels


def _label(has: Any, in_parent: np.ndarray, vocabulary: np.ndarray, words: int) -> str:
    counts = np.bincount(has.indices, minlength=has.shape[1])
    # A word of one item says nothing about a group; two items are the least that can share one.
    present = np.flatnonzero(counts >= min(2, has.shape[0]))
    if len(present) == 0:
        present = np.flatnonzero(counts)
    share = counts[present] / has.shape[0]
    worth = share * np.log(share / in_parent[present]) + 1e-3 * share
    best = present[np.argsort(-worth, kind="stable")[:words]]
    return ", ".join(vocabulary[best])
