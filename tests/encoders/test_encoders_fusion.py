"""Fusion is tested on items whose truth is known: hidden causes, seen through modalities with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from encoders.fusion import Fusion, FusionConfig

Vectors = dict[str, np.ndarray]


def world(n: int = 600, seed: int = 0) -> tuple[Vectors, np.ndarray]:
    """Items with 24 hidden causes; text and picture see 16 each (8 shared), sound another 12. Each far from zero."""
    rng = np.random.default_rng(seed)
    causes = rng.normal(size=(n, 24))
    seen = {"text": (causes[:, :16], 48), "image": (causes[:, 8:24], 96), "audio": (causes[:, 12:], 20)}
    vectors = {}
    for number, (name, (part, width)) in enumerate(seen.items()):
        lens = np.random.default_rng(100 + number).normal(size=(part.shape[1], width))
        vectors[name] = (part @ lens + rng.normal(size=(n, width)) + 5).astype(np.float32)
    return vectors, causes


def liked_pairs(cause: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Pairs drawn among items that are alike in `cause` [n, c]."""
    rng = np.random.default_rng(seed)
    unit = cause / np.linalg.norm(cause, axis=1, keepdims=True)
    a, b = rng.integers(0, len(cause), (2, 20 * count))
    alike = (unit[a] * unit[b]).sum(axis=1)
    return np.stack([a, b], axis=1)[(a != b) & (alike > 0.8)][:count]


def separation(vectors: np.ndarray, pairs: np.ndarray, seed: int = 0) -> float:
    """AUC: how often a true pair is nearer than its first item with a random other."""
    other = np.random.default_rng(seed).permutation(pairs[:, 1])
    true = (vectors[pairs[:, 0]] * vectors[pairs[:, 1]]).sum(axis=1)
    false = (vectors[pairs[:, 0]] * vectors[other]).sum(axis=1)
    return float((true[:, None] > false[None, :2000]).mean())


def recall(queries: np.ndarray, items: np.ndarray, k: int = 10) -> float:
    scores = queries @ items.T
    return float(((scores > np.diag(scores)[:, None]).sum(axis=1) < k).mean())


def head(vectors: Vectors, n: int) -> Vectors:
    return {name: x[:n] for name, x in vectors.items()}


def tail(vectors: Vectors, n: int) -> Vectors:
    return {name: x[n:] for name, x in vectors.items()}


def test_vectors_are_unit_float32_and_the_same_for_the_same_seed() -> None:
    vectors, causes = world(200)
    pairs = liked_pairs(causes[:, :3], 2000)
    one = Fusion.fit(vectors, None, pairs, FusionConfig(dim=40), seed=3).transform(vectors)
    two = Fusion.fit(vectors, None, pairs, FusionConfig(dim=40), seed=3).transform(vectors)
    assert one.shape == (200, 40)
    assert one.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(one, two)


def test_a_row_depends_on_itself_alone() -> None:
    vectors, _ = world(100)
    fusion = Fusion.fit(vectors)
    whole = fusion.transform(vectors)
    np.testing.assert_allclose(whole[[7]], fusion.transform({m: x[[7]] for m, x in vectors.items()}), atol=1e-5)


def test_what_is_not_present_is_never_looked_at() -> None:
    vectors, _ = world(200)
    present = {"audio": np.arange(200) % 3 == 0, "image": np.arange(200) % 4 != 0, "text": np.ones(200, dtype=bool)}
    clean = Fusion.fit(vectors, present).transform(vectors, present)
    spoiled = {m: np.where(present[m][:, None], x, np.nan) for m, x in vectors.items()}
    np.testing.assert_array_equal(clean, Fusion.fit(spoiled, present).transform(spoiled, present))
    fusion = Fusion.fit(vectors, present)
    zeros = {m: np.where(present[m][:, None], x, 0) for m, x in vectors.items()}
    assert np.abs(fusion.transform(zeros) - clean).max() > 0.1  # a zero that claims to be there is another item


@pytest.mark.parametrize("seen", [("text",), ("image",), ("text", "image"), ("audio", "text")])
def test_a_new_item_is_near_itself_seen_through_fewer_modalities(seen: tuple[str, ...]) -> None:
    vectors, _ = world(600)
    fusion = Fusion.fit(head(vectors, 400))
    new = tail(vectors, 400)
    assert recall(fusion.transform({m: new[m] for m in seen}), fusion.transform(new)) > 0.9  # chance .05


def test_what_is_missing_is_expected_from_what_is_there() -> None:
    """Text alone finds pictures alone, though they share no coordinate: only through what both let one expect."""
    vectors, _ = world(600)
    fusion = Fusion.fit(head(vectors, 400))
    new = tail(vectors, 400)
    assert recall(fusion.transform({"text": new["text"]}), fusion.transform({"image": new["image"]})) > 0.5


def test_content_geometry_is_kept() -> None:
    vectors, causes = world(400)
    fused = Fusion.fit(vectors).transform(vectors)
    unit = causes / np.linalg.norm(causes, axis=1, keepdims=True)
    rows = np.triu_indices(400, 1)
    assert np.corrcoef((fused @ fused.T)[rows], (unit @ unit.T)[rows])[0, 1] > 0.75


def test_new_items_used_alike_come_closer_with_pairs_than_without() -> None:
    vectors, causes = world(900)
    taste = causes[:, :3]  # people choose by 3 of the 24 causes
    pairs = liked_pairs(taste[:600], 20_000)
    held = liked_pairs(taste[600:], 3_000, seed=1)
    without = Fusion.fit(head(vectors, 600)).transform(tail(vectors, 600))
    fusion = Fusion.fit(head(vectors, 600), pairs=pairs)
    assert fusion.predictable["text", "image", "audio"] > 0.05
    assert separation(fusion.transform(tail(vectors, 600)), held) > separation(without, held) + 0.05


def test_pairs_without_reason_change_nothing() -> None:
    vectors, _ = world(600)
    pairs = np.random.default_rng(0).integers(0, 600, (20_000, 2))
    plain = Fusion.fit(vectors, config=FusionConfig(dim=96)).transform(vectors)
    paired = Fusion.fit(vectors, pairs=pairs, config=FusionConfig(dim=128)).transform(vectors)
    assert np.abs(plain @ plain.T - paired @ paired.T).mean() < 0.03


def test_the_item_order_does_not_matter() -> None:
    """It never sees indices: shuffled items get the same vectors, up to the solver's tolerance."""
    vectors, causes = world(300)
    pairs = liked_pairs(causes[:, :3], 6_000)
    order = np.random.default_rng(0).permutation(300)
    place = np.argsort(order)
    one = Fusion.fit(vectors, pairs=pairs).transform(vectors)
    shuffled = {m: x[order] for m, x in vectors.items()}
    two = Fusion.fit(shuffled, pairs=place[pairs]).transform(vectors)
    assert np.abs(one @ one.T - two @ two.T).max() < 0.02


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    vectors, causes = world(150)
    fusion = Fusion.fit(vectors, pairs=liked_pairs(causes[:, :3], 500), config=FusionConfig(dim=32, use_dim=8))
    fusion.save(tmp_path / "fusion")
    loaded = Fusion.load(tmp_path / "fusion")
    assert loaded.config == fusion.config
    assert loaded.predictable == fusion.predictable
    for kept in (["text"], ["image", "text"], ["audio"]):
        some = {m: vectors[m] for m in kept}
        np.testing.assert_array_equal(loaded.transform(some), fusion.transform(some))
    assert sorted(file.name for file in (tmp_path / "fusion").iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        Fusion.load(tmp_path / "elsewhere")


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_tiny_and_degenerate_catalogs_still_get_vectors(n: int) -> None:
    rng = np.random.default_rng(0)
    pairs = np.array([[0, n - 1]], dtype=np.int64)
    for x in (rng.normal(size=(n, 300)), np.ones((n, 300))):
        fused = Fusion.fit({"text": x}, pairs=pairs).transform({"text": x})
        assert fused.shape == (n, 128)
        np.testing.assert_allclose(np.linalg.norm(fused, axis=1), 1, atol=1e-5)


def test_modalities_that_no_item_has_both_of() -> None:
    vectors, _ = world(200)
    first = np.arange(200) < 100
    present = {"text": first, "image": ~first}
    some = {m: vectors[m] for m in present}
    fused = Fusion.fit(some, present).transform(some, present)
    np.testing.assert_allclose(np.linalg.norm(fused, axis=1), 1, atol=1e-5)


def test_wrong_input_is_named() -> None:
    vectors, _ = world(50)
    fusion = Fusion.fit(vectors)
    with pytest.raises(ValueError, match="row 3"):
        fusion.transform({"text": vectors["text"]}, {"text": np.arange(50) != 3})
    with pytest.raises(ValueError, match="'video'"):
        fusion.transform({"video": vectors["text"]})
    with pytest.raises(ValueError, match="48 numbers, got 96"):
        fusion.transform({"text": vectors["image"]})
    with pytest.raises(ValueError, match="'text', row 4"):
        Fusion.fit({"text": np.where(np.arange(50)[:, None] == 4, np.nan, vectors["text"])})
    with pytest.raises(ValueError, match="pairs must lie in"):
        Fusion.fit(vectors, pairs=np.array([[0, 50]]))
    with pytest.raises(ValueError, match="pairs must be integers"):
        Fusion.fit(vectors, pairs=np.array([[0.5, 1.0]]))
    with pytest.raises(ValueError, match="no item has"):
        Fusion.fit(vectors, {"audio": np.zeros(50, dtype=bool)})


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    Fusion.fit(world(30)[0], progress=lambda done, total: told.append((done, total)))
    assert told[0] == (0, 7)
    assert told[-1] == (7, 7)
