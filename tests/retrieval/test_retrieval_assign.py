"""No two items share an ID, at least cost."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.semantic_ids import ResidualKMeans, SemanticIds, assign_unique, describe_prefixes, diagnostics


def fitted(vectors: np.ndarray, levels: int = 2, size: int = 256) -> tuple[ResidualKMeans, SemanticIds]:
    tokenizer = ResidualKMeans(levels, size)
    tokenizer.fit(vectors, seed=0)
    return tokenizer, assign_unique(tokenizer.encode(vectors), vectors, tokenizer)


def cost(ids: SemanticIds, tokenizer: ResidualKMeans, vectors: np.ndarray) -> np.ndarray:
    meant = tokenizer.reconstruct(ids.codes[:, :-1]) + ids.last_codebook[ids.codes[:, -1]]
    return ((vectors - meant) ** 2).sum(axis=1)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 80),
    st.integers(1, 12),
    st.integers(1, 3),
    st.sampled_from([1, 2, 5, 256]),
    st.integers(0, 10_000),
)
def test_ids_are_unique_whatever_repeats(items: int, distinct: int, levels: int, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((distinct, 5)).astype(np.float32)[random.integers(distinct, size=items)]
    tokenizer, ids = fitted(vectors, levels, size)
    assert len(np.unique(ids.codes, axis=0)) == items
    assert ids.codes.shape == (items, levels + 1)
    new = random.standard_normal((3, 5)).astype(np.float32)
    if np.prod(ids.sizes) >= items + 3:
        more = assign_unique(tokenizer.encode(new), new, tokenizer, taken=ids)
        assert len(ids.join(more)) == items + 3  # join checks that they are unique


def test_within_a_prefix_no_other_numbering_costs_less() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((120, 4)).astype(np.float32)
    tokenizer, ids = fitted(vectors, levels=1, size=24)
    checked = 0
    for code in range(ids.sizes[0]):
        rows = np.flatnonzero(ids.codes[:, 0] == code)
        if not 2 <= len(rows) <= 6:
            continue
        residuals = vectors[rows] - tokenizer.codebooks[0][code]
        pairwise = ((residuals[:, None] - ids.last_codebook[ids.codes[rows, 1]]) ** 2).sum(-1)
        best = min(sum(pairwise[i, j] for i, j in enumerate(p)) for p in permutations(range(len(rows))))
        assert cost(ids, tokenizer, vectors)[rows].sum() == pytest.approx(best, rel=1e-4)
        unused = np.setdiff1d(np.arange(ids.sizes[1]), ids.codes[rows, 1])
        for place, row in enumerate(rows):  # nor would any item gladly take a free code
            free = ((residuals[place] - ids.last_codebook[unused]) ** 2).sum(-1)
            assert free.min() >= cost(ids, tokenizer, vectors)[row] - 1e-5
        checked += 1
    assert checked >= 5


def test_a_crowd_on_one_prefix_moves_to_the_nearest_prefixes() -> None:
    random = np.random.default_rng(1)
    vectors = random.standard_normal((2400, 6)).astype(np.float32)
    vectors[:700] = vectors[0]
    _, ids = fitted(vectors, levels=2, size=64)
    crowd = ids.codes[:700]
    wanted = ids.wanted[0]
    stayed = (crowd[:, :-1] == wanted).all(axis=1)
    assert ids.sizes[-1] == 256  # did not grow
    assert stayed.sum() <= 256
    assert len(np.unique(ids.codes, axis=0)) == 2400
    assert (crowd[:, 0] == wanted[0]).all()  # the first level, what the items mostly are, is kept
    assert diagnostics(ids)["moved"] == 700 - stayed.sum()
    others = ids.codes[700:, :-1]
    assert (others == ids.wanted[700:]).all(axis=1).mean() > 0.9


def test_a_thousand_identical_items_grow_the_last_level() -> None:
    vectors = np.ones((1000, 3), dtype=np.float32)
    tokenizer, ids = fitted(vectors, levels=3)
    assert tokenizer.sizes == (1, 1, 1)
    assert ids.sizes[-1] >= 1000
    assert len(np.unique(ids.codes, axis=0)) == 1000


def test_new_items_avoid_taken_ids_and_say_so_when_there_are_none_left() -> None:
    random = np.random.default_rng(2)
    vectors = random.standard_normal((64, 4)).astype(np.float32)
    tokenizer, ids = fitted(vectors, levels=1, size=4)
    again = assign_unique(tokenizer.encode(vectors[:10]), vectors[:10], tokenizer, taken=ids)
    assert again.sizes == ids.sizes
    assert len(ids.join(again)) == 74
    free = int(np.prod(ids.sizes)) - 64
    crowd = np.repeat(vectors[:1], free, axis=0)
    full = ids.join(assign_unique(tokenizer.encode(crowd), crowd, tokenizer, taken=ids))
    assert len(full) == np.prod(ids.sizes)
    with pytest.raises(ValueError, match="fit the tokenizer again"):
        assign_unique(tokenizer.encode(vectors[:1]), vectors[:1], tokenizer, taken=full)


def test_colliding_ids_are_refused() -> None:
    codes = np.array([[0, 1], [0, 1]])
    with pytest.raises(ValueError, match="share a semantic ID"):
        SemanticIds(codes, (2, 2), codes[:, :1], np.zeros((2, 3), np.float32))


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    _, ids = fitted(np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32))
    ids.save(tmp_path)
    loaded = SemanticIds.load(tmp_path)
    assert loaded.sizes == ids.sizes
    for name in ("codes", "wanted", "last_codebook"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(ids, name))


def test_diagnostics_on_codes_known_by_hand() -> None:
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    tokenizer = ResidualKMeans(levels=1)
    tokenizer.codebooks = [np.array([[0.0], [10.0], [20.0]], dtype=np.float32)]
    ids = SemanticIds(codes, (3, 2), np.array([[0], [0], [1], [0]]), np.array([[-1.0], [1.0]], dtype=np.float32))
    report = diagnostics(ids, tokenizer, np.array([[-1.0], [1.0], [9.0], [11.0]], dtype=np.float32))
    assert report["use"] == pytest.approx([2 / 3, 1.0])
    assert report["entropy"] == pytest.approx([1.0, 1.0])
    assert report["perplexity"] == pytest.approx([2.0, 2.0])
    assert report["collisions_before"] == pytest.approx(0.75)
    assert report["largest_group"] == 3
    assert report["moved"] == 1
    assert report["collisions"] == 0
    assert report["reconstruction_error"] == pytest.approx((1 + 1 + 1 + 121) / (36 + 16 + 16 + 36))
    assert report["reconstruction_error_full"] == pytest.approx(0.0, abs=1e-6)


def test_labels_say_what_siblings_do_not_share() -> None:
    codes = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1]])
    texts = [
        "the red animal cat",
        "a red animal and cat",
        "the animal dog",
        "an animal dog",
        "the red vehicle 500",
        "red vehicle in the 500",
    ]
    ids = SemanticIds(codes, (2, 2, 2), codes[:, :2], np.zeros((2, 1), np.float32))
    labels = describe_prefixes(ids, texts, words=1)
    assert labels == {(0,): "animal", (1,): "vehicle", (0, 0): labels[0, 0], (0, 1): "dog", (1, 0): labels[1, 0]}
    assert labels[0, 0] in ("cat", "red")  # both set it apart from the dogs
    assert labels[1, 0] in ("vehicle", "red")  # no sibling: what is common
    assert describe_prefixes(ids, ["the"] * 6, depth=1) == {(0,): "", (1,): ""}
    with pytest.raises(ValueError, match="5 texts for 6 items"):
        describe_prefixes(ids, texts[:5])
