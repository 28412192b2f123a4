"""The contract every item tokenizer keeps, whatever its paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.semantic_ids import (
    Context,
    ItemTokenizer,
    assign_unique,
    load_tokenizer,
    make_tokenizer,
    tokenizer_names,
)

LEARNED = ("rqvae", "fsq", "letter", "lcrec", "prorec")
CLUSTERS = 12


def clustered(items: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((CLUSTERS, 24))[random.integers(CLUSTERS, size=items)]
    vectors += 0.4 * random.standard_normal((items, 24))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def context_of(vectors: np.ndarray, seed: int = 0) -> Context:
    """People who stay near one item; the vector cut into two modalities, of which some items lack the second."""
    random = np.random.default_rng(seed)
    near = np.argsort(-vectors @ vectors.T, axis=1)[:, :20]
    histories = [random.permutation(row)[: random.integers(2, 9)] for row in near for _ in range(2)]
    sound = vectors[:, 12:].copy()
    sound[::7] = 0
    return Context(histories, {"words": vectors[:, :12], "sound": sound})


def make(name: str, **options: Any) -> ItemTokenizer:
    """With little training where there is any."""
    return make_tokenizer(
        name, **({"epochs": 70, "batch_size": 150, "hidden": 64} if name in LEARNED else {}), **options
    )


@pytest.fixture(scope="module")
def fitted() -> dict[str, tuple[ItemTokenizer, np.ndarray]]:
    """Every tokenizer with its codes of `clustered(300)`; fitted when first asked for."""
    return {}


@pytest.fixture
def one(name: str, fitted: dict[str, tuple[ItemTokenizer, np.ndarray]]) -> tuple[ItemTokenizer, np.ndarray]:
    if name not in fitted:
        tokenizer = make(name)
        fitted[name] = tokenizer, tokenizer.fit(clustered(300), 0, context_of(clustered(300)))
    return fitted[name]


def new_codes(tokenizer: ItemTokenizer, vectors: np.ndarray) -> np.ndarray:
    return tokenizer.encode(vectors, Context(modalities=context_of(vectors).modalities))


def loss(vectors: np.ndarray, meant: np.ndarray) -> float:
    """Share of the variance."""
    return float(((vectors - meant) ** 2).sum() / ((vectors - vectors.mean(0)) ** 2).sum())


@pytest.mark.parametrize("name", tokenizer_names())
class TestEveryTokenizer:
    def test_codes_have_the_announced_shape_and_range(self, one: tuple[ItemTokenizer, np.ndarray]) -> None:
        tokenizer, codes = one
        assert isinstance(tokenizer, ItemTokenizer)
        assert codes.shape == (300, len(tokenizer.sizes))
        found = [codes] if not tokenizer.encodes_new else [codes, new_codes(tokenizer, clustered(50, seed=1))]
        for some in found:
            assert some.dtype == np.int64
            assert (some >= 0).all()
            assert (some < np.array(tokenizer.sizes)).all()

    def test_codes_stand_for_the_vectors_better_than_the_mean(self, one: tuple[ItemTokenizer, np.ndarray]) -> None:
        tokenizer, codes = one
        meant = tokenizer.reconstruct(codes)
        assert meant.shape == (300, 24)
        assert meant.dtype == np.float32
        assert loss(clustered(300), meant) < 0.5

    def test_new_items_are_encoded_by_content_or_refused(self, one: tuple[ItemTokenizer, np.ndarray]) -> None:
        tokenizer, _ = one
        vectors = clustered(300)
        fresh = vectors[:60] + 0.02 * np.random.default_rng(5).standard_normal((60, 24)).astype(np.float32)
        if tokenizer.encodes_new:
            assert loss(fresh, tokenizer.reconstruct(new_codes(tokenizer, fresh))) < 0.6
        else:
            with pytest.raises(ValueError, match=r"cannot encode a new item: .*; use .*residual_kmeans"):
                tokenizer.encode(fresh)

    def test_ids_are_unique_and_leave_room_for_new_items(self, one: tuple[ItemTokenizer, np.ndarray]) -> None:
        tokenizer, codes = one
        ids = assign_unique(codes, clustered(300), tokenizer)
        assert len(np.unique(ids.codes, axis=0)) == 300
        if tokenizer.encodes_new:
            fresh = clustered(20, seed=1)
            assert len(ids.join(assign_unique(new_codes(tokenizer, fresh), fresh, tokenizer, taken=ids))) == 320

    def test_same_seed_same_codes(self, name: str, one: tuple[ItemTokenizer, np.ndarray]) -> None:
        again = make(name)
        np.testing.assert_array_equal(again.fit(clustered(300), 0, context_of(clustered(300))), one[1])

    def test_what_is_saved_comes_back(self, one: tuple[ItemTokenizer, np.ndarray], tmp_path: Path) -> None:
        tokenizer, codes = one
        tokenizer.save(tmp_path)
        assert {file.name for file in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer.safetensors"}
        loaded = load_tokenizer(tmp_path)
        assert type(loaded) is type(tokenizer)
        assert loaded.sizes == tokenizer.sizes
        np.testing.assert_array_equal(loaded.reconstruct(codes), tokenizer.reconstruct(codes))
        if tokenizer.encodes_new:
            fresh = clustered(50, seed=1)
            np.testing.assert_array_equal(new_codes(loaded, fresh), new_codes(tokenizer, fresh))

    def test_one_item_and_identical_items_are_no_special_case(self, name: str) -> None:
        for vectors in (clustered(1), np.repeat(clustered(1), 40, axis=0)):
            tokenizer = make(name, **({"levels": 2} if name in LEARNED else {}))
            context = Context([np.arange(len(vectors))], {"words": vectors[:, :12]})
            codes = tokenizer.fit(vectors, 0, context)
            np.testing.assert_allclose(
                tokenizer.reconstruct(codes), vectors, atol=1e-3 if name == "decoupled" else 1e-5
            )
            assert len(assign_unique(codes, vectors, tokenizer)) == len(vectors)

    def test_refuses_what_it_cannot_read(self, name: str, one: tuple[ItemTokenizer, np.ndarray]) -> None:
        tokenizer = make(name)
        with pytest.raises(ValueError, match="fit"):
            tokenizer.encode(clustered(2))
        with pytest.raises(ValueError, match="finite"):
            tokenizer.fit(np.full((3, 24), np.nan, np.float32), 0, context_of(clustered(3)))
        for need in tokenizer.needs:
            with pytest.raises(ValueError, match=rf"{name} learns from {need}"):
                tokenizer.fit(clustered(40))
        with pytest.raises(ValueError, match="fitted on"):
            one[0].encode(np.zeros((2, 7), np.float32))
        with pytest.raises(ValueError, match="at least 1"):
            make_tokenizer(name, levels=0)

    def test_small_catalogs_get_small_codebooks(self, name: str) -> None:
        tokenizer = make(name, codebook_size=8, levels=4)
        codes = tokenizer.fit(clustered(100), 0, context_of(clustered(100)))
        assert max(tokenizer.sizes) <= (9 if name == "decoupled" else 8)
        assert len(assign_unique(codes, clustered(100), tokenizer)) == 100


def test_each_level_of_residual_k_means_may_have_its_own_size(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("residual_kmeans", codebook_size=[12, 3])
    vectors = clustered(200)
    codes = tokenizer.fit(vectors, 0)
    assert tokenizer.sizes == (12, 3)
    assert (codes.max(axis=0) + 1).tolist() == [12, 3]
    ids = assign_unique(codes, vectors, tokenizer)
    assert len(ids.codes) == len(np.unique(ids.codes, axis=0)) == 200
    tokenizer.save(tmp_path)
    np.testing.assert_array_equal(load_tokenizer(tmp_path).encode(vectors), codes)
    small = make_tokenizer("residual_kmeans", codebook_size=[1000, 3])
    small.fit(vectors, 0)
    assert small.sizes == (50, 3), "one codeword of four items"
    with pytest.raises(ValueError, match="sizes of 2 levels"):
        make_tokenizer("residual_kmeans", levels=3, codebook_size=[12, 3])
    with pytest.raises(ValueError, match="at least 1"):
        make_tokenizer("residual_kmeans", codebook_size=[12, 0])
    with pytest.raises(ValueError, match="rqvae has one size"):
        make_tokenizer("rqvae", codebook_size=[12, 3])


def test_unknown_names_are_answered_with_the_known() -> None:
    with pytest.raises(KeyError, match="residual_kmeans"):
        make_tokenizer("residual_kmean")
