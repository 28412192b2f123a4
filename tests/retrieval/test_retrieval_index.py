from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrieval.index import VectorIndex, unit

VECTORS = unit(np.random.default_rng(0).standard_normal((500, 12)).astype(np.float32))
QUERIES = np.random.default_rng(1).standard_normal((7, 12)).astype(np.float32) * 3


def exact(k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    cosine = unit(QUERIES) @ VECTORS.T
    if allowed is not None:
        cosine[:, ~allowed] = -np.inf
    items = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosine, items, 1), items


def test_flat_search_is_the_exact_cosine_ranking() -> None:
    index = VectorIndex.build(VECTORS * 4.2)
    scores, items = index.search(QUERIES, 10)
    np.testing.assert_array_equal(items, exact(10)[1])
    np.testing.assert_allclose(scores, exact(10)[0], atol=1e-5)
    assert scores.dtype == np.float32
    assert items.dtype == np.int64


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "HNSW16", "PCA8,Flat"])
def test_an_allow_list_is_kept_and_filled_by_every_kind_of_index(factory: str) -> None:
    index = VectorIndex.build(VECTORS, factory)
    allowed = np.zeros(500, bool)
    allowed[::37] = True  # 14 items, spread thin
    scores, items = index.search(QUERIES, 14, allowed)
    for row in items:
        assert set(row) == set(np.flatnonzero(allowed))
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    scores, items = index.search(QUERIES, 20, allowed)
    assert (items[:, 14:] == -1).all()
    assert np.isneginf(scores[:, 14:]).all()


def test_flat_with_an_allow_list_is_exact() -> None:
    allowed = np.random.default_rng(2).random(500) < 0.4
    _, items = VectorIndex.build(VECTORS).search(QUERIES, 9, allowed)
    np.testing.assert_array_equal(items, exact(9, allowed)[1])


def test_approximate_indexes_find_most_neighbours() -> None:
    for factory in ("IVF8,Flat", "HNSW16"):
        index = VectorIndex.build(VECTORS, factory)
        if factory.startswith("IVF"):
            assert (index.search(QUERIES, 499)[1] >= 0).all()  # also more than the probed lists hold
        _, items = index.search(VECTORS, 1)
        assert (items[:, 0] == np.arange(500)).mean() > 0.9


def test_spacing_is_the_distance_to_the_nearest_other_item() -> None:
    vectors = VECTORS.copy()
    vectors[1] = vectors[0]
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -np.inf)
    np.testing.assert_allclose(VectorIndex.build(vectors).spacing, np.sort(1 - cosine.max(1)), atol=1e-5)
    assert VectorIndex.build(VECTORS[:1]).spacing.shape == (0,)


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
def test_what_is_saved_comes_back(factory: str, tmp_path: Path) -> None:
    index = VectorIndex.build(VECTORS, factory)
    index.save(tmp_path)
    loaded = VectorIndex.load(tmp_path)
    for before, after in zip(index.search(QUERIES, 10), loaded.search(QUERIES, 10), strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(loaded.spacing, index.spacing)
    np.testing.assert_allclose(loaded.vectors(np.array([3, 1])), VECTORS[[3, 1]], atol=1e-6)


def test_a_foreign_or_broken_file_is_refused(tmp_path: Path) -> None:
    VectorIndex.build(VECTORS).save(tmp_path / "a")
    VectorIndex.build(VECTORS[:20]).save(tmp_path / "b")
    (tmp_path / "a" / "index.faiss").write_bytes((tmp_path / "b" / "index.faiss").read_bytes())
    with pytest.raises(ValueError, match="holds 20 vectors"):
        VectorIndex.load(tmp_path / "a")
    (tmp_path / "a" / "index.faiss").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a FAISS index"):
        VectorIndex.load(tmp_path / "a")
    (tmp_path / "a" / "index.faiss").unlink()
    with pytest.raises(FileNotFoundError, match="build the index again"):
        VectorIndex.load(tmp_path / "a")


def test_wrong_input_is_named() -> None:
    index = VectorIndex.build(VECTORS)
    with pytest.raises(ValueError, match="3 dimensions, the index 12"):
        index.search(np.ones((1, 3)), 2)
    with pytest.raises(ValueError, match="zero or not finite"):
        index.search(np.zeros((1, 12)), 2)
    with pytest.raises(ValueError, match="allowed"):
        index.search(QUERIES, 2, np.ones(3, bool))
    with pytest.raises(ValueError, match="FAISS cannot build"):
        VectorIndex.build(VECTORS, "Flt")
