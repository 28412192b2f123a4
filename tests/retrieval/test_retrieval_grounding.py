from __future__ import annotations

import numpy as np
import pytest

from retrieval.grounding import ground, ground_by_votes
from retrieval.index import VectorIndex, unit


def ring(items: int) -> np.ndarray:
    """Items evenly spaced on a circle: item i at i * 360 / items degrees."""
    angle = np.arange(items) / items * 2 * np.pi
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


INDEX = VectorIndex.build(ring(360))


def at(*degrees: float) -> np.ndarray:
    angle = np.array(degrees) / 180 * np.pi
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_one_seed_brings_its_neighbours_nearest_first() -> None:
    grounding = ground(at(10.2), None, INDEX, 5)
    np.testing.assert_array_equal(grounding.items, [10, 11, 9, 12, 8])
    np.testing.assert_allclose(grounding.scores, np.cos(np.array([0.2, 0.8, 1.2, 1.8, 2.2]) * np.pi / 180), atol=1e-6)
    assert (grounding.seed_of == 0).all()


def test_places_follow_where_the_seeds_lie() -> None:
    grounding = ground(at(10, 10.1, 10.2, 10.3, 200, 200.1), None, INDEX, 9)
    near_10 = np.abs(grounding.items - 10) < 20
    assert near_10.sum() == 6
    assert grounding.items[0] == 10
    assert not near_10[1]  # the smaller taste does not wait until the larger is full
    assert len(set(grounding.items)) == 9
    for item, seed, score in zip(grounding.items, grounding.seed_of, grounding.scores, strict=True):
        expected = float((at(item) @ at(10, 10.1, 10.2, 10.3, 200, 200.1)[seed])[0])
        assert score == pytest.approx(expected, abs=1e-5)


def test_every_seed_has_its_turn_when_all_lie_apart() -> None:
    grounding = ground(at(0, 90, 180, 270), None, INDEX, 8)
    np.testing.assert_array_equal(grounding.items[:4], [0, 90, 180, 270])
    np.testing.assert_array_equal(np.bincount(grounding.seed_of), [2, 2, 2, 2])


def test_weights_count_like_seeds() -> None:
    grounding = ground(at(0, 180), np.array([3.0, 1.0]), INDEX, 8)
    np.testing.assert_array_equal(np.bincount(grounding.seed_of), [6, 2])


def test_excluded_and_forbidden_items_do_not_appear_and_the_list_stays_full() -> None:
    allowed = np.zeros(360, bool)
    allowed[100:112] = True
    grounding = ground(at(0, 105), None, INDEX, 10, exclude=np.array([105, 106]), allowed=allowed)
    assert sorted(grounding.items) == [i for i in range(100, 112) if i not in (105, 106)]
    short = ground(at(0), None, INDEX, 20, allowed=allowed)
    assert (short.items[12:] == -1).all()
    assert np.isneginf(short.scores[12:]).all()
    assert (short.seed_of[12:] == -1).all()


def test_novelty_is_a_percentile_of_the_catalogs_own_spacing() -> None:
    random = np.random.default_rng(0)
    vectors = unit(random.standard_normal((400, 8)).astype(np.float32))
    vectors[:200, 0] = abs(vectors[:200, 0]) + 3  # a dense half and a sparse half
    vectors = unit(vectors)
    index = VectorIndex.build(vectors)
    far = -vectors.mean(axis=0, keepdims=True)
    novelty = ground(np.concatenate([vectors[:5], far]), None, index, 5).novelty
    assert (novelty[:5] == 0).all()
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -1)
    expected = (1 - cosine.max(1) < 1 - (unit(far) @ vectors.T).max()).mean()
    assert 0 < novelty[5] <= 1
    assert novelty[5] == pytest.approx(expected, abs=0.01)
    assert ground(at(0.5), None, VectorIndex.build(at(90, 91, 92)), 2).novelty[0] == 1


def test_wrong_weights_are_named() -> None:
    with pytest.raises(ValueError, match="weights"):
        ground(at(0, 1), np.array([1.0]), INDEX, 3)
    with pytest.raises(ValueError, match="all weights are zero"):
        ground(at(0, 1), np.zeros(2), INDEX, 3)
    assert (ground(np.empty((0, 2), np.float32), None, INDEX, 3).items == -1).all()


def test_votes_share_the_list_among_tastes_and_each_place_goes_to_what_is_worth_most_there() -> None:
    worth = np.zeros(360)
    worth[[7, 195]] = 2.0
    seeds = at(*np.linspace(5, 15, 20), *np.linspace(195, 205, 10))
    grounding = ground_by_votes(seeds, worth, INDEX, 9, reach=40)
    assert (np.abs(grounding.items - 10) < 40).sum() == 6
    assert (np.abs(grounding.items - 200) < 40).sum() == 3
    assert {7, 195} <= set(grounding.items[:3].tolist())
    assert len(set(grounding.items)) == 9


def test_votes_hide_what_is_excluded_and_fill_the_list_wherever_they_can() -> None:
    allowed = np.zeros(360, bool)
    allowed[[1, 2, 3, 50]] = True
    grounding = ground_by_votes(at(2), np.zeros(360), INDEX, 6, exclude=np.array([2]), allowed=allowed)
    assert sorted(grounding.items[:3].tolist()) == [1, 3, 50]
    assert (grounding.items[3:] == -1).all()
    assert np.isneginf(grounding.scores[3:]).all()


def test_votes_over_a_few_candidates_give_what_votes_over_all_items_give(monkeypatch: pytest.MonkeyPatch) -> None:
    worth = np.random.default_rng(0).normal(size=360)
    seeds = at(10, 11, 12, 100)
    everything = ground_by_votes(seeds, worth, INDEX, 8, reach=60)
    monkeypatch.setattr("retrieval.grounding.CONSIDERED", 60)
    np.testing.assert_array_equal(ground_by_votes(seeds, worth, INDEX, 8, reach=60).items, everything.items)


@pytest.mark.parametrize("worth", [np.zeros(3), np.full(360, np.nan)])
def test_worth_must_fit_the_catalog(worth: np.ndarray) -> None:
    with pytest.raises(ValueError, match="worth"):
        ground_by_votes(at(1), worth, INDEX, 3)
