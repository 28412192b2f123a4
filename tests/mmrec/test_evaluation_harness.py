"""The harness against tiny recommenders whose right scores are known."""

import logging

import numpy as np
import pytest

from mmrec.evaluation.harness import Claim, check_lists, claims_against, evaluate, summarise_seeds, title, verdict
from mmrec.interactions import Histories, Queries

N = 60


class Scores:
    """Recommends by one score per item; hides the history unless told to misbehave."""

    def __init__(self, name, scores, spoil=None):
        self.name, self.scores, self.spoil, self.asked = name, scores, spoil, []

    def recommend(self, histories, k, *, preferences=None, allowed=None):
        self.asked.append(len(histories))
        assert len(preferences) == len(histories)
        items = np.full((len(histories), k), -1)
        for row, history in zip(items, histories, strict=True):
            best = np.argsort(-self.scores.astype(float), kind="stable")
            best = best[~np.isin(best, history)][:k]
            row[: len(best)] = best
        if self.spoil:
            self.spoil(items, histories)
        return items, np.zeros(items.shape, np.float32)


def case(people=200, seed=0):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(N, 8)).astype(np.float32)
    orders = [rng.permutation(N) for _ in range(people)]
    orders = [np.concatenate([o[o != 7], [7]]) if rng.random() < 0.5 else o[o != 7] for o in orders]
    times = [np.arange(len(o), dtype=float) for o in orders]
    train = Histories(
        [f"u{i}" for i in range(people)], [o[:5] for o in orders], [np.ones(5, np.float32)] * people, times
    )
    queries = Queries(np.arange(people), train.items, train.preferences, [o[-1:] for o in orders])
    return queries, vectors, train


def values(frame):
    return frame.set_index(["recommender", "metric"])["value"]


def test_scores_of_a_recommender_whose_answer_is_known():
    queries, vectors, train = case()
    truth = np.mean([t[0] == 7 for t in queries.targets])
    frame = evaluate([Scores("seven", np.arange(N) == 7)], queries, vectors=vectors, train=train, ks=(1, 5))
    got = values(frame)["seven"]
    assert got["recall@1"] == got["ndcg@1"] == got["hit_rate@1"] == got["mrr@1"] == pytest.approx(truth)
    assert got["recall@5"] >= got["recall@1"]
    assert got["coverage@1"] == 1 / N
    assert got["valid"] == got["filled@5"] == 1
    assert got["users_per_second"] > 0
    row = frame.set_index("metric").loc["ndcg@1"]
    assert row["low"] < row["value"] < row["high"]
    assert row["n"] == len(queries)
    np.testing.assert_allclose(np.mean(row["people"]), row["value"], rtol=1e-6)


def test_batches_progress_and_seed():
    queries, vectors, train = case()
    asked, seen = Scores("a", np.arange(N)), []
    frames = [
        evaluate([asked], queries, vectors=vectors, train=train, batch=b, seed=3, progress=lambda *x: seen.append(x))
        for b in (64, 1000)
    ]
    assert asked.asked == [64, 64, 64, 8, 200]
    assert seen == [(64, 200), (128, 200), (192, 200), (200, 200), (200, 200)]
    one, two = (f[f["metric"] != "users_per_second"] for f in frames)
    for column in ("value", "low", "high", "n"):
        np.testing.assert_array_equal(one[column], two[column])


def test_violations_are_counted_and_score_nothing():
    def history(items, histories):
        items[:50, 3] = [h[2] for h in histories[:50]]

    def repeats(items, histories):
        items[:20, 4] = items[:20, 0]

    def unknown(items, histories):
        items[0, 1], items[1, 1] = N, -2

    queries, vectors, train = case()
    spoiled = [Scores(f.__name__, np.arange(N) == 7, f) for f in (history, repeats, unknown)]
    frame = evaluate(spoiled, queries, vectors=vectors, train=train)
    got = values(frame)
    assert got["history", "valid"] == 0.75
    assert got["repeats", "valid"] == 0.9
    assert got["unknown", "valid"] == 0.99
    assert got["repeats", "filled@10"] == pytest.approx(1 - 20 / 2000)
    assert got["unknown", "filled@10"] == pytest.approx(1 - 2 / 2000)


def test_a_repeated_hit_pays_once():
    def only_seven(items, histories):
        items[:] = 7

    queries, vectors, train = case()
    got = values(evaluate([Scores("x", np.ones(N), only_seven)], queries, vectors=vectors, train=train))["x"]
    assert got["valid"] == 0
    assert got["recall@10"] == np.mean([t[0] == 7 for t in queries.targets])


def test_violations_are_logged(caplog):
    def unknown(items, histories):
        items[:, 0] = 10**6

    queries, vectors, train = case(people=30)
    with caplog.at_level(logging.ERROR):
        evaluate([Scores("bad", np.ones(N), unknown)], queries, vectors=vectors, train=train)
    assert "bad returned 30 items of which each does not exist" in caplog.text


def test_a_history_that_was_asked_for_is_no_violation(caplog):
    def met(items, histories):
        items[:, 0] = [history[0] for history in histories]

    queries, vectors, train = case(people=30)
    for shows in (False, True):
        showing = Scores("showing", np.ones(N), met)
        showing.hide_history = not shows
        with caplog.at_level(logging.ERROR):
            frame = evaluate([showing], queries, vectors=vectors, train=train)
        assert values(frame)["showing"]["valid"] == 0
        assert ("showing" in caplog.text) is not shows
        caplog.clear()


def test_check_lists():
    items = np.array([[1, 2, 1, 1], [5, -1, -1, -1], [9, -3, 0, 2]])
    bad, counts = check_lists(items, [np.array([2]), np.array([], int), np.array([0])], 9)
    assert bad.tolist() == [[False, True, True, True], [False] * 4, [True, True, True, False]]
    assert counts == {"does not exist": 2, "repeats": 2, "is in the history": 2}


def test_short_lists_and_empty_histories_are_fine():
    queries, vectors, train = case(people=20)
    queries = Queries(queries.users, [np.array([], int)] * 20, [np.array([], np.float32)] * 20, queries.targets)

    def nothing(items, histories):
        items[:] = -1

    frame = evaluate([Scores("mute", np.ones(N), nothing)], queries, vectors=vectors, train=train)
    got = values(frame)["mute"]
    assert got["valid"] == 1
    assert got["filled@10"] == got["recall@10"] == got["coverage@10"] == 0
    assert np.isnan(got["miscalibration@10"])
    assert np.isnan(got["diversity@10"])
    assert frame.set_index("metric").loc["diversity@10", "n"] == 0


def test_wrong_shapes_and_names_are_refused():
    queries, vectors, train = case(people=5)
    good = Scores("good", np.ones(N))

    class Short(Scores):
        def recommend(self, histories, k, **kwargs):
            items, scores = super().recommend(histories, k, **kwargs)
            return items[:, :-1], scores

    with pytest.raises(ValueError, match=r"short returned items int64\[5, 19\]"):
        evaluate([Short("short", np.ones(N))], queries, vectors=vectors, train=train)
    with pytest.raises(ValueError, match="rename one"):
        evaluate([good, good], queries, vectors=vectors, train=train)
    with pytest.raises(ValueError, match="nobody to ask"):
        evaluate([good], Queries(np.array([], int), [], [], []), vectors=vectors, train=train)


def test_verdict_says_who_wins():
    queries, vectors, train = case()
    rivals = [Scores("popularity", np.arange(N) == 3), Scores("item_knn", np.arange(N) == 7)]
    frame = evaluate([Scores("ours", np.arange(N) == 7), *rivals], queries, vectors=vectors, train=train)
    first, second, third = verdict(
        frame, [*claims_against("ours", ("popularity", "item_knn")), Claim("popularity", "ours", "ndcg@10")]
    )
    assert first.holds
    assert first.p < 0.001
    assert str(first).startswith("ours beats popularity on NDCG@10: ")
    assert f"{values(frame)['ours', 'ndcg@10']:.4f}" in str(first)
    assert not second.holds
    assert second.p == 1
    assert "cannot be told from item_knn" in str(second)
    assert not third.holds
    assert "popularity loses to ours" in str(third)
    with pytest.raises(ValueError, match="'mean_history' has 0 measurements"):
        verdict(frame, claims_against("ours", ("mean_history",)))


def test_verdict_knows_that_less_can_be_better():
    queries, vectors, train = case()
    frame = evaluate(
        [Scores("odd", -metric_counts(train)), Scores("top", metric_counts(train))],
        queries, vectors=vectors, train=train,
    )  # fmt: skip
    assert verdict(frame, [Claim("odd", "top", "popularity@10")])[0].holds
    assert not verdict(frame, [Claim("top", "odd", "popularity@10")])[0].holds


def metric_counts(train):
    return np.bincount(np.concatenate(train.items), minlength=N)


def test_summary_over_seeds():
    queries, vectors, train = case()
    frames = [
        evaluate([Scores("random", np.random.default_rng(s).random(N))], queries, vectors=vectors, train=train, seed=s)
        for s in range(3)
    ]
    summary = summarise_seeds(frames).set_index("metric").loc["popularity@10"]
    each = [values(f)["random", "popularity@10"] for f in frames]
    assert summary["mean"] == pytest.approx(np.mean(each))
    assert summary["std"] == pytest.approx(np.std(each, ddof=1))
    assert summary["seeds"] == 3
    assert summarise_seeds(frames[:1])["std"].isna().all()


def test_title():
    assert title("something@5") == "something@5"
