"""The contract every item tokenizer keeps, whatever its paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrieval.semantic_ids import ItemTokenizer, load_tokenizer, make_tokenizer, tokenizer_names


def clustered(items: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((12, 24))[random.integers(12, size=items)] + 0.4 * random.standard_normal(
        (items, 24)
    )
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("name", tokenizer_names())
class TestEveryTokenizer:
    def test_codes_have_the_announced_shape_and_range(self, name: str) -> None:
        tokenizer = make_tokenizer(name)
        tokenizer.fit(clustered(300), seed=0)
        codes = tokenizer.encode(clustered(50, seed=1))
        assert isinstance(tokenizer, ItemTokenizer)
        assert codes.dtype == np.int64
        assert codes.shape == (50, len(tokenizer.sizes))
        assert (codes >= 0).all()
        assert (codes < np.array(tokenizer.sizes)).all()

    def test_reconstruction_is_better_than_the_mean(self, name: str) -> None:
        vectors, fresh = clustered(300), clustered(100, seed=1)
        fresh[:50] = vectors[:50]
        tokenizer = make_tokenizer(name)
        tokenizer.fit(vectors, seed=0)
        meant = tokenizer.reconstruct(tokenizer.encode(vectors))
        assert meant.shape == vectors.shape
        assert ((vectors - meant) ** 2).sum() < 0.5 * ((vectors - vectors.mean(0)) ** 2).sum()

    def test_same_seed_same_codes(self, name: str) -> None:
        vectors = clustered(300)
        first, second = make_tokenizer(name), make_tokenizer(name)
        first.fit(vectors, seed=3)
        second.fit(vectors, seed=3)
        np.testing.assert_array_equal(first.encode(vectors), second.encode(vectors))

    def test_what_is_saved_comes_back(self, name: str, tmp_path: Path) -> None:
        vectors = clustered(300)
        tokenizer = make_tokenizer(name)
        tokenizer.fit(vectors, seed=0)
        tokenizer.save(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert loaded.sizes == tokenizer.sizes
        np.testing.assert_array_equal(loaded.encode(vectors), tokenizer.encode(vectors))

    def test_one_item_and_identical_items_are_no_special_case(self, name: str) -> None:
        for vectors in (clustered(1), np.repeat(clustered(1), 40, axis=0)):
            tokenizer = make_tokenizer(name)
            tokenizer.fit(vectors, seed=0)
            np.testing.assert_allclose(tokenizer.reconstruct(tokenizer.encode(vectors)), vectors, atol=1e-5)

    def test_refuses_to_encode_unfitted_or_foreign_vectors(self, name: str) -> None:
        tokenizer = make_tokenizer(name)
        with pytest.raises(ValueError, match="fit"):
            tokenizer.encode(clustered(2))
        tokenizer.fit(clustered(40), seed=0)
        with pytest.raises(ValueError, match="fitted on"):
            tokenizer.encode(np.zeros((2, 7), np.float32))


def test_unknown_names_are_answered_with_the_known() -> None:
    with pytest.raises(KeyError, match="residual_kmeans"):
        make_tokenizer("residual_kmean")


def test_residual_kmeans_has_no_dead_codes_and_at_most_a_code_per_four_items() -> None:
    for items in (9, 100, 1500):
        vectors = clustered(items)
        vectors[: items // 3] = vectors[0]  # many duplicates
        tokenizer = make_tokenizer("residual_kmeans")
        tokenizer.fit(vectors, seed=0)
        codes = tokenizer.encode(vectors)
        assert max(tokenizer.sizes) <= max(1, items // 4)
        for level, size in enumerate(tokenizer.sizes):
            assert len(np.unique(codes[:, level])) == size


def test_noise_like_residuals_do_not_gather_on_one_code() -> None:
    """In noise one centroid near the mean is nearer to most points than any other point is."""
    noise = np.random.default_rng(0).standard_normal((3000, 96)).astype(np.float32)
    tokenizer = make_tokenizer("residual_kmeans", levels=3, codebook_size=128)
    tokenizer.fit(noise, seed=0)
    codes = tokenizer.encode(noise)
    for level, size in enumerate(tokenizer.sizes):
        share = np.bincount(codes[:, level], minlength=size) / len(noise)
        assert -(share * np.log2(share)).sum() > 0.9 * np.log2(size)


def test_residual_kmeans_levels_each_lower_the_error() -> None:
    vectors = clustered(600)
    errors = []
    for levels in (1, 2, 3):
        tokenizer = make_tokenizer("residual_kmeans", levels=levels, codebook_size=16)
        tokenizer.fit(vectors, seed=0)
        errors.append(((vectors - tokenizer.reconstruct(tokenizer.encode(vectors))) ** 2).sum())
    assert errors[0] > 1.2 * errors[1] > 1.4 * errors[2]
