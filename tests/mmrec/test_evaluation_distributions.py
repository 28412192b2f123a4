"""Distances between distributions against answers worked out by hand."""

import numpy as np
import pytest

from mmrec.evaluation.distributions import cmmd, energy_score, mauve, vendi


def unit(rng: np.random.Generator, n: int, towards: np.ndarray | None = None) -> np.ndarray:
    x = rng.standard_normal((n, 8)) + (0 if towards is None else 3 * towards)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_energy_score_by_hand():
    line = np.array([[0.0], [2.0]])
    score = energy_score([line, line[:1], line, line[:0]], [np.array([[0.0]]), np.array([[3.0]]), line[:0], line])
    np.testing.assert_allclose(score, [1 - 1 / 2, 3, np.nan, np.nan])  # mean |x - y| - mean |x - x'| / 2


def test_energy_score_is_best_for_the_right_distribution():
    rng = np.random.default_rng(0)
    axes = np.eye(8)
    held_out = np.concatenate([unit(rng, 300, axes[0]), unit(rng, 300, axes[1])])
    both = np.concatenate([unit(rng, 200, axes[0]), unit(rng, 200, axes[1])])
    one, mean = unit(rng, 400, axes[0]), held_out.mean(0, keepdims=True)
    right, half, middle = energy_score([both, one, mean / np.linalg.norm(mean)], [held_out] * 3)
    assert right < half
    assert right < middle


def test_vendi_counts_what_is_wholly_different():
    axes = np.eye(4)
    np.testing.assert_allclose(vendi([axes, axes[[0, 0, 0]], axes[[0, 0, 1, 1]], axes[:0]]), [4, 1, 2, np.nan])


def test_cmmd_is_about_nothing_between_samples_of_one_distribution():
    rng = np.random.default_rng(1)
    axes = np.eye(8)
    same = cmmd(unit(rng, 500, axes[0]), unit(rng, 500, axes[0]))
    assert abs(same) < 5
    assert cmmd(unit(rng, 500, axes[0]), unit(rng, 500, axes[1])) > 100 * abs(same)


def test_mauve_falls_as_distributions_part():
    rng = np.random.default_rng(2)
    axes = np.eye(8)
    one = unit(rng, 400, axes[0])
    same = mauve(one, unit(rng, 400, axes[0]), 0)
    half = mauve(one, np.concatenate([unit(rng, 200, axes[0]), unit(rng, 200, -axes[0])]), 0)
    other = mauve(one, unit(rng, 400, -axes[0]), 0)
    assert same > 0.9
    assert same > half > other
    assert other < 0.1
    assert mauve(one, one, 0) == pytest.approx(1)
