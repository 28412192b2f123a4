"""Metrics against answers worked out by hand, and against slow loops that nobody can misread."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec.evaluation import metrics as m

ITEMS = np.array([[3, 1, 4, 0], [2, 0, -1, -1], [5, 6, 7, 8], [1, 2, 3, 4]])
TARGETS = [np.array([1, 0, 9]), np.array([0]), np.array([9]), np.array([], dtype=np.int64)]


def test_accuracy_by_hand():
    np.testing.assert_allclose(m.recall(ITEMS, TARGETS, 4), [2 / 3, 1, 0, np.nan])
    np.testing.assert_allclose(m.recall(ITEMS, TARGETS, 2), [1 / 3, 1, 0, np.nan])
    np.testing.assert_allclose(m.hit_rate(ITEMS, TARGETS, 4), [1, 1, 0, np.nan])
    np.testing.assert_allclose(m.mrr(ITEMS, TARGETS, 4), [1 / 2, 1 / 2, 0, np.nan])
    gain = [1 / math.log2(rank + 1) for rank in range(1, 5)]
    np.testing.assert_allclose(
        m.ndcg(ITEMS, TARGETS, 4), [(gain[1] + gain[3]) / (gain[0] + gain[1] + gain[2]), gain[1] / gain[0], 0, np.nan]
    )


def test_a_list_shorter_than_k_is_not_rewarded():
    assert m.ndcg(np.array([[7]]), [np.array([7, 8])], 10)[0] == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert m.recall(np.array([[7]]), [np.array([7, 8])], 10)[0] == 0.5


def test_repeated_targets_count_once():
    assert m.recall(np.array([[7, 1]]), [np.array([7, 7])], 2)[0] == 1
    assert m.ndcg(np.array([[7, 1]]), [np.array([7, 7])], 2)[0] == 1


def test_coverage_counts_items_once_and_no_padding():
    assert m.coverage(np.array([[0, 1, -1], [1, 2, 3]]), 10, 3) == 0.4
    assert m.coverage(np.array([[0, 1, -1], [1, 2, 3]]), 10, 1) == 0.2


def test_popularity_and_lift():
    histories = [np.array([0, 0, 1]), np.array([0, 2]), np.array([0])]
    counts = m.item_counts(histories, 4)
    assert counts.tolist() == [3, 1, 1, 0]
    percentile = m.popularity_percentile(counts)
    np.testing.assert_allclose(percentile, [0.875, 0.5, 0.5, 0.125])
    items = np.array([[0, 3, -1], [1, 2, -1], [-1, -1, -1]])
    np.testing.assert_allclose(m.popularity(items, percentile, 3), [0.5, 0.5, np.nan])
    own = [np.array([3]), np.array([0]), np.array([0])]
    np.testing.assert_allclose(m.popularity_lift(items, own, percentile, 3), [0.375, -0.375, np.nan])
    np.testing.assert_allclose(m.popularity_lift(items[:1], [np.array([], int)], percentile, 3), [np.nan])


def test_novelty_is_surprise_in_bits():
    counts = np.array([3, 1, 0])  # of three people, plus the imagined one: 4/4, 2/4, 1/4
    np.testing.assert_allclose(m.novelty(np.array([[0, 1], [2, -1], [1, 2]]), counts, 3, 2), [0.5, 2, 1.5])


def test_diversity_by_hand():
    vectors = np.array([[1, 0], [0, 2], [-3, 0], [1, 0]], dtype=np.float32)
    items = np.array([[0, 1, -1], [0, 2, -1], [0, 3, -1], [0, -1, -1], [0, 1, 2]])
    np.testing.assert_allclose(m.diversity(items, vectors, 3), [1, 2, 0, np.nan, 1 + 1 / 3], atol=1e-7)


def test_taste_mix_and_calibration_by_hand():
    clusters = np.array([0, 0, 1, 1, 2])
    liked = m.taste_mix([np.array([0, 1, 2, 3]), np.array([4]), np.array([], int)], clusters)
    shown = m.taste_mix(np.array([[0, 1, -1, -1], [4, -1, -1, -1], [0, 2, -1, -1]]), clusters)
    np.testing.assert_allclose(liked, [[0.5, 0.5, 0], [0, 0, 1], [np.nan] * 3])
    np.testing.assert_allclose(shown, [[1, 0, 0], [0, 0, 1], [0.5, 0.5, 0]])
    np.testing.assert_allclose(m.miscalibration(liked, shown), [0.5, 0, np.nan])
    kl = 0.5 * math.log(0.5 / (0.99 + 0.005)) + 0.5 * math.log(1 / 0.01)
    np.testing.assert_allclose(m.miscalibration_kl(liked, shown), [kl, 0, np.nan], atol=1e-12)
    np.testing.assert_allclose(m.mode_coverage(liked, shown), [0.5, 1, np.nan])


def test_worst_kl_is_the_documented_bound():
    worst = m.miscalibration_kl(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    assert worst[0] == pytest.approx(m.METRICS["miscalibration_kl"].high)


def test_a_taste_of_exactly_ten_percent_is_a_main_taste():
    liked = m.taste_mix([np.array([1] + [0] * 9)], np.array([0, 1]))
    assert m.mode_coverage(liked, np.array([[1.0, 0.0]]))[0] == 0.5


def test_liked_part():
    histories = [np.array([4, 5, 6])]
    assert m.liked_part(histories, [np.array([1.0, 0.0, -1.0])])[0].tolist() == [4]
    assert m.liked_part(histories, None)[0].tolist() == [4, 5, 6]


def test_taste_clusters_find_the_groups_and_repeat_with_the_seed():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 30)
    vectors = (np.eye(3)[truth] + rng.normal(0, 0.05, (90, 3))).astype(np.float32)
    found = m.taste_clusters(vectors, 3, seed=1)
    assert all(len(np.unique(found[truth == c])) == 1 for c in range(3))
    assert len(np.unique(found)) == 3
    np.testing.assert_array_equal(found, m.taste_clusters(vectors, 3, seed=1))
    assert m.taste_clusters(np.eye(2, dtype=np.float32)[[0, 1, 0]], 20, seed=0).max() == 1


@st.composite
def cases(draw):
    n_items, people, k = draw(st.integers(3, 12)), draw(st.integers(1, 5)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    items = np.full((people, k), -1)
    for row in items:
        filled = rng.integers(0, min(k, n_items) + 1)
        row[:filled] = rng.permutation(n_items)[:filled]
    targets = [rng.permutation(n_items)[: rng.integers(0, n_items + 1)] for _ in range(people)]
    return items, targets, rng.normal(size=(n_items, 3)), int(rng.integers(1, k + 1))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_against_loops(case):
    items, targets, vectors, k = case
    for user, (full, wanted) in enumerate(zip(items.tolist(), [set(t.tolist()) for t in targets], strict=True)):
        shown = [i for i in full[:k] if i >= 0]
        unit = [vectors[i] / np.linalg.norm(vectors[i]) for i in shown]
        pairs = [float(x @ y) for at, x in enumerate(unit) for y in unit[:at]]
        ranks = [rank for rank, item in enumerate(full[:k], 1) if item in wanted and item >= 0]
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(wanted)) + 1))
        dcg = sum(1 / math.log2(rank + 1) for rank in ranks)
        nan = math.nan
        expected = {
            m.recall: len(ranks) / len(wanted) if wanted else nan,
            m.hit_rate: float(bool(ranks)) if wanted else nan,
            m.mrr: (1 / ranks[0] if ranks else 0.0) if wanted else nan,
            m.ndcg: dcg / ideal if wanted else nan,
        }
        for metric, value in expected.items():
            np.testing.assert_allclose(metric(items, targets, k)[user], value, atol=1e-12)
        np.testing.assert_allclose(
            m.diversity(items, vectors, k)[user], 1 - np.mean(pairs) if pairs else nan, atol=1e-9
        )


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    samples = rng.exponential(2.0, (60, 150))  # 150 experiments of 60 people, true mean 2
    low, high = m.bootstrap_interval(samples, seed=0, resamples=400)
    assert low.shape == (150,)
    assert 0.86 < np.mean((low <= 2) & (high >= 2)) < 0.99


def test_bootstrap_repeats_skips_nan_and_keeps_shape():
    values = np.array([0.0, 1.0, 1.0, np.nan])
    low, high = m.bootstrap_interval(values, seed=3)
    assert low.shape == ()
    assert 0 <= low < 2 / 3 < high <= 1
    assert (low, high) == m.bootstrap_interval(values, seed=3)
    assert np.isnan(m.bootstrap_interval(np.full(4, np.nan), seed=0)).all()


def test_permutation_agrees_with_trying_every_flip():
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.6, 1, 10), rng.normal(0, 1, 10)
    flips = 1 - 2 * ((np.arange(1024)[:, None] >> np.arange(10)) & 1)  # [1024, 10]
    exact = np.mean(np.abs(flips @ (a - b)) >= abs((a - b).sum()) - 1e-12)
    assert 0.01 < exact < 0.5
    assert m.paired_permutation(a, b, seed=0) == pytest.approx(exact, abs=0.015)
    assert m.paired_permutation(a, b, seed=0) == m.paired_permutation(b, a, seed=0)


def test_permutation_at_the_ends():
    same = np.arange(5.0)
    assert m.paired_permutation(same, same, seed=0) == 1
    assert m.paired_permutation(same + 1, np.zeros(5), seed=0) > 0.05  # five people cannot be significant
    rng = np.random.default_rng(0)
    assert m.paired_permutation(rng.random(200) + 1, rng.random(200), seed=0) == pytest.approx(1 / 10_001)
    with pytest.raises(ValueError, match="same people"):
        m.paired_permutation(np.zeros(3), np.zeros(4), seed=0)


def test_every_metric_says_which_way_is_better():
    assert m.METRICS["ndcg"].goodness(0.2) > m.METRICS["ndcg"].goodness(0.1)
    assert m.METRICS["miscalibration"].goodness(0.2) < m.METRICS["miscalibration"].goodness(0.1)
    assert m.METRICS["popularity_lift"].goodness(-0.3) < m.METRICS["popularity_lift"].goodness(0.1)
