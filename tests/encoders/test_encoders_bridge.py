"""A bridge carries over what can be carried, and reports honestly what cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from encoders.bridge import Bridge, among_neighbours
from encoders.ridge import fit_ridge


def two_views(n: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(n, 10))
    lens = np.random.default_rng(99)
    source = cause @ lens.normal(size=(10, 60)) + noise * rng.normal(size=(n, 60)) + 3
    target = cause @ lens.normal(size=(10, 30)) + noise * rng.normal(size=(n, 30))
    return source.astype(np.float32), (target / np.linalg.norm(target, axis=1, keepdims=True)).astype(np.float32)


def test_held_out_recall_foretells_recall_on_new_rows() -> None:
    source, target = two_views(1500, noise=2.0)
    bridge = Bridge.fit(source[:1000], target[:1000], seed=0)
    said = bridge.held_out
    assert said["n"] == 200
    assert said["chance"] == pytest.approx(0.05)
    guess = bridge.transform(source[1000:1200])
    scores = guess @ target[1000:1200].T
    found = ((scores > np.diag(scores)[:, None]).sum(axis=1) < 10).mean()
    assert said["recall@10"] > 0.5
    assert said["recall@10"] == pytest.approx(found, abs=0.1)


def test_unrelated_spaces_give_no_better_than_chance() -> None:
    rng = np.random.default_rng(0)
    bridge = Bridge.fit(rng.normal(size=(1000, 40)), rng.normal(size=(1000, 20)), seed=0)
    assert bridge.held_out["recall@10"] < 3 * bridge.held_out["chance"]


def test_unit_targets_give_unit_vectors_and_others_keep_their_scale() -> None:
    source, target = two_views(300, noise=0.1)
    out = Bridge.fit(source, target, seed=0).transform(source)
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-5)
    free = Bridge.fit(source, 7 * target + 4, seed=0).transform(source)
    assert free.mean() == pytest.approx((7 * target + 4).mean(), abs=0.05)
    assert np.corrcoef(free.ravel(), target.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("n", [5, 50])
def test_few_rows_of_many_numbers(n: int) -> None:
    rng = np.random.default_rng(0)
    cause = rng.normal(size=(n, 3))
    source, target = cause @ rng.normal(size=(3, 384)), cause @ rng.normal(size=(3, 128))
    bridge = Bridge.fit(source, target, seed=0)
    assert bridge.transform(source).shape == (n, 128)
    assert bridge.held_out["recall@10"] <= 1
    if n == 50:
        assert np.corrcoef(bridge.transform(source).ravel(), target.ravel())[0, 1] > 0.8


def test_many_rows() -> None:
    source, target = two_views(100_000, noise=1.0)
    bridge = Bridge.fit(source, target, seed=0)
    assert bridge.held_out["n"] == 5_000
    assert bridge.held_out["recall@10"] > 20 * bridge.held_out["chance"]


def test_same_seed_same_bridge_and_saved_it_is_the_same(tmp_path: Path) -> None:
    source, target = two_views(200, noise=1.0)
    one, two = Bridge.fit(source, target, seed=4), Bridge.fit(source, target, seed=4)
    assert one.held_out == two.held_out
    np.testing.assert_array_equal(one.transform(source), two.transform(source))
    one.save(tmp_path / "bridge")
    loaded = Bridge.load(tmp_path / "bridge")
    assert loaded.held_out == one.held_out
    np.testing.assert_array_equal(loaded.transform(source), one.transform(source))


def test_wrong_input_is_named(tmp_path: Path) -> None:
    source, target = two_views(50, noise=1.0)
    with pytest.raises(ValueError, match="50 rows and target 49"):
        Bridge.fit(source, target[1:], seed=0)
    with pytest.raises(ValueError, match="at least 5"):
        Bridge.fit(source[:4], target[:4], seed=0)
    with pytest.raises(ValueError, match="row 2 of target"):
        Bridge.fit(source, np.where(np.arange(50)[:, None] == 2, np.nan, target), seed=0)
    with pytest.raises(ValueError, match="vectors of 60, got 30"):
        Bridge.fit(source, target, seed=0).transform(target)
    with pytest.raises(FileNotFoundError, match="is missing"):
        Bridge.load(tmp_path)


def test_ridge_finds_the_plain_answer_where_there_is_no_noise() -> None:
    rng = np.random.default_rng(0)
    x, true = rng.normal(size=(400, 12)), rng.normal(size=(12, 5))
    ridge = fit_ridge(x, x @ true)
    np.testing.assert_allclose(ridge.weights, true, atol=0.01)
    assert ridge.r2 > 0.999
    assert fit_ridge(x, rng.normal(size=(400, 5))).r2 < 0.05


def test_among_neighbours_is_the_weighted_mean_of_what_lies_near():
    source = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], np.float32)
    target = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], np.float32)
    on_item = among_neighbours(source[:1], source, target)
    assert np.allclose(on_item, target[:1], atol=1e-4)
    halfway = among_neighbours(np.array([[1.0, 1.0]], np.float32) / np.sqrt(2), source, target)
    assert np.allclose(halfway, [[0.5, 0.5, 0.0]], atol=1e-4)
    nearest_only = among_neighbours(np.array([[0.8, 0.6]], np.float32), source, target, k=1)
    assert np.allclose(nearest_only, target[:1])
