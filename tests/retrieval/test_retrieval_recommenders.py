"""The contract that every baseline and the retriever keep, and what each baseline answers where a hand can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from retrieval.baselines import Recommender, baseline_names, make_baseline, published_names
from retrieval.baselines.item_knn import ItemKNN
from retrieval.baselines.tiger import TigerConfig
from retrieval.model import RetrieverConfig
from retrieval.ranking import Ranked, liked_part, rank, recall_and_ndcg
from retrieval.retriever import Mode
from retrieval.semantic_ids import ResidualKMeans, assign_unique
from retrieval.training import train_retriever


class FittedRetriever:
    """The retriever with all it needs, behind the contract of the baselines."""

    def __init__(self, mode: Mode, config: RetrieverConfig) -> None:
        self.name = f"retriever:{mode}"
        self.mode, self.config = mode, config

    def fit(
        self,
        histories: Sequence[np.ndarray],
        preferences: Sequence[np.ndarray] | None,
        vectors: np.ndarray,
        seed: int = 0,
    ) -> None:
        tokenizer = ResidualKMeans(levels=2, codebook_size=8)
        tokenizer.fit(vectors, seed)
        ids = assign_unique(tokenizer.encode(vectors), vectors, tokenizer)
        self.retriever = train_retriever(liked_part(histories, preferences), vectors, ids, self.config, seed=seed)

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        *,
        preferences: Sequence[np.ndarray] | None = None,
        allowed: np.ndarray | None = None,
        hide_history: bool = True,
    ) -> Ranked:
        return self.retriever.recommend(
            histories, k, preferences=preferences, mode=self.mode, allowed=allowed, hide_history=hide_history
        )


SMALL_TIGER = TigerConfig(
    dim=32, layers=1, heads=2, head_dim=16, feed_forward=64, max_history=8, epochs=6, batch_size=32, learning_rate=1e-2
)
ITEM_MODELS = ("sasrec_bce", "bert4rec", "hstu")
NAMES = [*baseline_names(), *published_names(), "retriever:fused", "retriever:dense", "retriever:codes"]


def make(name: str, config: RetrieverConfig) -> Recommender:
    if name.startswith("retriever:"):
        return FittedRetriever(name.split(":")[1], config)  # type: ignore[arg-type]
    options: dict[str, Any] = {"sasrec": {"config": config}, "tiger": {"config": SMALL_TIGER}}
    options |= {each: {"config": replace(config, epochs=20, learning_rate=1e-2, dropout=0.1)} for each in ITEM_MODELS}
    return make_baseline(name, **options.get(name, {}))


@pytest.fixture(scope="module", params=NAMES)
def fitted(request: pytest.FixtureRequest, world, small) -> Recommender:
    recommender = make(request.param, small)
    recommender.fit(world.histories, None, world.vectors, seed=0)
    return recommender


class TestEveryRecommender:
    def test_lists_are_full_sorted_without_repeats_and_without_the_history(self, fitted: Recommender, world) -> None:
        items, scores = fitted.recommend(world.histories, 10)
        assert isinstance(fitted, Recommender)
        assert items.dtype == np.int64
        assert scores.dtype == np.float32
        assert items.shape == scores.shape == (len(world.histories), 10)
        assert ((items >= 0) & (items < 120)).all()
        assert np.isfinite(scores).all()
        assert (np.diff(scores, axis=1) <= 0).all()
        for row, history in zip(items, world.histories, strict=True):
            assert len(set(row)) == 10
            assert not set(row) & set(history)

    def test_the_history_comes_back_when_asked_for(self, fitted: Recommender, world) -> None:
        items, _ = fitted.recommend(world.histories[:20], 120, hide_history=False)
        assert all(set(row) == set(range(120)) for row in items)

    def test_an_allow_list_is_kept_and_empty_places_are_marked(self, fitted: Recommender, world) -> None:
        allowed = np.zeros(120, bool)
        allowed[[3, 40, 41, 77, 119]] = True
        histories = [np.array([40, 3, 40]), np.array([], dtype=np.int64), np.array([77])]
        items, scores = fitted.recommend(histories, 6, allowed=allowed)
        assert [set(row) for row in items] == [{41, 77, 119, -1}, {3, 40, 41, 77, 119, -1}, {3, 40, 41, 119, -1}]
        assert (np.isneginf(scores) == (items == -1)).all()
        for row in items:
            assert (np.diff((row == -1).astype(int)) >= 0).all()  # empty places come last

    def test_a_new_person_gets_a_full_list(self, fitted: Recommender) -> None:
        items, _ = fitted.recommend([np.array([], dtype=np.int64)], 10)
        assert len(set(items[0]) - {-1}) == 10

    def test_disliked_items_are_hidden_but_are_no_evidence(self, fitted: Recommender, world) -> None:
        liked, disliked = world.histories[0][:4], np.setdiff1d(np.arange(120), world.histories[0])[:3]
        history, preference = np.concatenate([liked, disliked]), np.array([1, 0.5, 0, 1, -1, -0.5, -1], np.float32)
        with_dislikes, _ = fitted.recommend([history], 117, preferences=[preference])
        assert not set(with_dislikes[0]) & set(disliked)
        without, _ = fitted.recommend([liked], 120)
        expected = [item for item in without[0] if item not in disliked]
        if fitted.name == "history_knn":  # deals places out, so a gap changes whose turn comes next
            assert set(with_dislikes[0]) == set(expected) | {-1}
        else:
            np.testing.assert_array_equal(with_dislikes[0, : len(expected)], expected)

    def test_a_person_is_answered_alike_alone_and_in_company(self, fitted: Recommender, world) -> None:
        together, _ = fitted.recommend(world.histories[:9], 10)
        for row in range(0, 9, 4):
            alone, _ = fitted.recommend([world.histories[row]], 10)
            np.testing.assert_array_equal(alone[0], together[row])

    def test_same_seed_same_answers(self, fitted: Recommender, world, small) -> None:
        again = make(fitted.name, small)
        again.fit(world.histories, None, world.vectors, seed=0)
        for before, after in zip(
            fitted.recommend(world.histories, 5), again.recommend(world.histories, 5), strict=True
        ):
            np.testing.assert_array_equal(before, after)

    def test_nobody_asks_nothing_answered(self, fitted: Recommender) -> None:
        items, scores = fitted.recommend([], 4)
        assert items.shape == scores.shape == (0, 4)

    def test_wrong_arguments_are_named(self, fitted: Recommender) -> None:
        with pytest.raises(ValueError, match="history 1 holds item"):
            fitted.recommend([np.array([1]), np.array([500])], 3)
        with pytest.raises(ValueError, match="bool \\[120\\]"):
            fitted.recommend([np.array([1])], 3, allowed=np.ones(7, bool))
        with pytest.raises(ValueError, match="1 events but 2 preferences"):
            fitted.recommend([np.array([1])], 3, preferences=[np.array([1.0, 1.0])])


@pytest.mark.parametrize("name", [n for n in NAMES if n != "popularity"])
def test_whoever_reads_the_history_beats_popularity(name: str, world, small) -> None:
    """People here stay in two of eight clusters: 30 of 120 items."""
    recommender, popular = make(name, small), make_baseline("popularity")
    for each in (recommender, popular):
        each.fit(world.histories, None, world.vectors, seed=0)
    ours, theirs = (r.recommend(world.histories, 20, hide_history=False)[0] for r in (recommender, popular))
    assert recall_and_ndcg(ours, world.targets)[0] > 1.5 * recall_and_ndcg(theirs, world.targets)[0]


HISTORIES = [np.array(h) for h in ([0, 1], [0, 1, 2], [1, 2], [3], [3, 4], [3])]
PREFERENCES = [np.array(p) for p in ([1, 1], [1, 1, 0], [1, 1], [1], [1, -1], [-1])]
EYE = np.eye(6, dtype=np.float32)


def test_popularity_counts_people_who_did_not_dislike() -> None:
    baseline = make_baseline("popularity")
    baseline.fit(HISTORIES, PREFERENCES, EYE, seed=0)
    items, scores = baseline.recommend([np.array([2])], 5)
    np.testing.assert_array_equal(items, [[1, 0, 3, 4, 5]])
    np.testing.assert_array_equal(scores, [[3, 2, 2, 0, 0]])


def test_item_knn_similarities_known_by_hand() -> None:
    baseline = ItemKNN(shrink=1.0, decay=0.5)
    baseline.fit(HISTORIES, PREFERENCES, EYE, seed=0)
    similarity = baseline.similarity.toarray()
    assert similarity[0, 1] == pytest.approx(2 / np.sqrt(2 * 3) * 2 / 3)  # two people liked both, of 2 and of 3
    assert similarity[0, 2] == pytest.approx(1 / np.sqrt(2 * 2) * 1 / 2)
    assert similarity[3, 4] == 0  # disliking is no evidence
    np.testing.assert_array_equal(similarity, similarity.T)
    items, scores = baseline.recommend([np.array([2, 0])], 3)
    assert items[0, 0] == 1
    assert scores[0, 0] == pytest.approx(0.5 * similarity[2, 1] + similarity[0, 1], rel=1e-6)
    assert items[0, 1] == 3  # nobody's neighbour: by popularity


def test_item_knn_can_count_only_what_stands_near() -> None:
    baseline = ItemKNN(shrink=0.0, window=2, discount=0.0)
    baseline.fit([np.array([0, 1, 2, 3]), np.array([1, 0])], None, EYE, seed=0)
    similarity = baseline.similarity.toarray()
    np.testing.assert_array_equal(similarity, similarity.T)
    assert similarity[0, 1] == pytest.approx(2.0)  # side by side twice
    assert similarity[0, 2] == pytest.approx(0.5)  # two apart
    assert similarity[0, 3] == 0  # three apart


def test_item_knn_keeps_the_strongest_neighbours_only() -> None:
    baseline = ItemKNN(neighbours=1, shrink=0.0)
    baseline.fit(HISTORIES, PREFERENCES, EYE, seed=0)
    assert (np.diff(baseline.similarity.indptr) <= 1).all()
    assert baseline.similarity[0].indices.tolist() == [1]


def test_mean_history_ranks_by_cosine_with_the_mean() -> None:
    vectors = np.array([[1, 0], [0, 1], [1, 1], [1, 0.1], [-1, 0]], dtype=np.float32)
    baseline = make_baseline("mean_history")
    baseline.fit([np.array([0])], None, vectors, seed=0)
    items, scores = baseline.recommend([np.array([0, 1])], 3)
    np.testing.assert_array_equal(items, [[2, 3, 4]])
    assert scores[0, 0] == pytest.approx(1.0)


def test_history_knn_gives_every_taste_its_share() -> None:
    angle = np.concatenate([np.linspace(0, 0.5, 50), np.linspace(3, 3.5, 50)])
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    baseline = make_baseline("history_knn", draws=200, decay=1.0)
    baseline.fit([np.array([0])], None, vectors, seed=0)
    items, _ = baseline.recommend([np.array([5, 25, 45, 75])], 20)
    assert 13 <= (items[0] < 50).sum() <= 17  # three of four events


def test_ties_go_to_the_lower_item_also_at_the_edge() -> None:
    scores = np.array([[0.0, 1.0, 0.0, 0.0, 2.0, 0.0]])
    np.testing.assert_array_equal(rank(scores, 4)[0], [[4, 1, 0, 2]])
    np.testing.assert_array_equal(rank(scores, 4, hidden=[np.array([0, 4])])[0], [[1, 2, 3, 5]])


def test_metrics_of_a_list_known_by_hand() -> None:
    recall, ndcg = recall_and_ndcg(np.array([[4, 2, 9], [1, 2, 3]]), np.array([9, 7]))
    assert (recall, ndcg) == pytest.approx((0.5, 0.25))


def test_unknown_names_are_answered_with_the_known() -> None:
    with pytest.raises(KeyError, match="item_knn"):
        make_baseline("itemknn")
