from __future__ import annotations

import numpy as np
import pytest

from retrieval.worth import Worth

HISTORIES = [np.array([0, 1]), np.array([0, 1]), np.array([0, 1]), np.array([0, 2]), np.array([3, 2]), np.array([4])]
PREFERENCES = [np.array(p, np.float32) for p in ([1, 1], [1, 1], [1, 1], [1, -1], [1, 1], [-1])]


def test_worth_is_popularity_and_what_ratings_say_of_each_other() -> None:
    worth = Worth(HISTORIES, PREFERENCES, 6, shrink=1.0, couse=1.0, trust=1.0)
    nobody, liker, hater = worth.of([np.array([], int), np.array([0]), np.array([0])], [[], [1.0], [-1.0]])
    np.testing.assert_allclose(nobody, np.log1p([4, 3, 1, 1, 0, 0]), rtol=1e-6)
    assert liker[1] > nobody[1] > hater[1]  # liked together
    assert liker[2] < nobody[2] < hater[2]  # where one was liked the other was disliked
    assert liker[5] == nobody[5]  # never rated: known by nothing
    np.testing.assert_allclose(liker - nobody, nobody - hater, atol=1e-6)


def test_co_use_is_the_regression_on_all_other_items() -> None:
    """EASE's closed form is the ridge regression of each column on the others, so a plain solver must agree."""
    rng = np.random.default_rng(0)
    table = (rng.random((40, 5)) < 0.4) * 1.0
    worth = Worth([np.flatnonzero(row) for row in table], None, 5, shrink=2.0)
    for item in range(5):
        others = np.delete(np.arange(5), item)
        x, y = table[:, others], table[:, item]
        slow = np.linalg.solve(x.T @ x + 2 * np.eye(4), x.T @ y)
        np.testing.assert_allclose(worth.weights[others, item], slow, atol=1e-5)
        assert worth.weights[item, item] == 0


def test_rate_counts_likes_among_the_times_an_item_was_met() -> None:
    histories = [np.array([0, 1])] * 8 + [np.array([0])] * 8
    preferences = [np.array([1, 1], np.float32)] * 8 + [np.array([-1], np.float32)] * 8
    often, rate = (Worth(histories, preferences, 2, couse=0, rate=r).of([[]], [[]])[0] for r in (False, True))
    assert often[0] == pytest.approx(often[1])
    assert rate[1] > rate[0]


def test_only_the_most_rated_items_have_co_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.worth.MOST", 2)
    worth = Worth(HISTORIES, PREFERENCES, 6, shrink=1.0)
    assert worth.known.tolist() == [0, 1]
    assert worth.of([np.array([2])])[0] == pytest.approx(worth.of([[]])[0])
