"""Hybrid retrieval: calibrated probabilities, votes, and a better list than any source alone where they differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrieval.hybrid import Calibration, Hybrid, Vote
from retrieval.ranking import Ranked, recall_and_ndcg

PEOPLE, WIDE, CATALOG = 2000, 12, 400


def propose(targets: np.ndarray, able: np.ndarray, scale: float, generator: np.random.Generator) -> Ranked:
    """A source that finds the target of those it is `able` to, the better scored the surer; the rest is chance."""
    items = np.stack([generator.permutation(CATALOG)[:WIDE] for _ in targets])
    scores = -np.sort(-generator.standard_normal((len(targets), WIDE)), axis=1)
    for row in np.flatnonzero(able):
        place = min(int(generator.geometric(0.5)) - 1, WIDE - 1)
        others = [int(item) for item in items[row] if item != targets[row]][: WIDE - 1]
        others.insert(place, int(targets[row]))
        items[row] = others
        scores[row] += 1.5
    return items, (scores * scale).astype(np.float32)


def world(seed: int) -> tuple[dict[str, Ranked], np.ndarray]:
    generator = np.random.default_rng(seed)
    targets = generator.integers(CATALOG, size=PEOPLE)
    kind = generator.random(PEOPLE)
    return {
        "beam": propose(targets, kind < 0.4, 3.0, generator),
        "near": propose(targets, (kind > 0.3) & (kind < 0.6), 0.01, generator),
    }, targets


LEARNED, LEARNED_TARGETS = world(0)
ASKED, TARGETS = world(1)
HYBRID = Hybrid.fit(LEARNED, LEARNED_TARGETS)


def test_a_probability_is_how_often_it_happens() -> None:
    for name, (items, scores) in ASKED.items():
        worth = HYBRID.sources[name].probability(scores, np.arange(1, WIDE + 1))
        hit = items == TARGETS[:, None]
        assert worth.mean() == pytest.approx(hit.mean(), rel=0.15)
        for low, high in ((0.0, 0.05), (0.05, 0.2), (0.2, 1.0)):
            inside = (worth >= low) & (worth < high)
            if inside.sum() > 300:
                assert worth[inside].mean() == pytest.approx(hit[inside].mean(), abs=0.05)
        assert (np.diff(worth, axis=1) <= 1e-12).all(), "a source's own order is kept"


def test_the_merged_list_beats_each_source() -> None:
    items, scores, votes = HYBRID.merge(ASKED, 5)
    merged = recall_and_ndcg(items, TARGETS)[1]
    for name, (found, _) in ASKED.items():
        assert merged > recall_and_ndcg(found[:, :5], TARGETS)[1] + 0.02, name
    assert (np.diff(scores, axis=1) <= 0).all()
    assert ((scores > 0) & (scores < 1)).all()
    for person in range(0, PEOPLE, 97):
        for place, by in enumerate(votes[person]):
            assert scores[person, place] == pytest.approx(1 - np.prod([1 - vote.probability for vote in by]), rel=1e-5)
            for vote in by:
                found, own = ASKED[vote.source]
                assert found[person, vote.rank - 1] == items[person, place]
                assert own[person, vote.rank - 1] == np.float32(vote.score)


def test_two_that_agree_outweigh_one() -> None:
    same = Calibration(mean=0, spread=1, bias=-1, by_score=1, by_rank=-0.1)
    hybrid = Hybrid({"a": same, "b": same})
    a = (np.array([[7, 3, -1]]), np.array([[1.0, 0.5, -np.inf]], np.float32))
    b = (np.array([[9, 3, 1]]), np.array([[1.0, 0.5, 0.0]], np.float32))
    items, scores, votes = hybrid.merge({"a": a, "b": b}, 6)
    assert items.tolist() == [[3, 7, 9, 1, -1, -1]]
    assert scores[0, 4:].tolist() == [-np.inf, -np.inf]
    assert votes[0][0] == [Vote("a", 2, 0.5, votes[0][0][0].probability), Vote("b", 2, 0.5, votes[0][0][1].probability)]
    assert len(votes[0]) == 4


def test_saved_and_loaded(tmp_path: Path) -> None:
    HYBRID.save(tmp_path)
    assert Hybrid.load(tmp_path).sources == HYBRID.sources
    with pytest.raises(FileNotFoundError):
        Hybrid.load(tmp_path / "nowhere")


def test_what_cannot_be_calibrated() -> None:
    with pytest.raises(ValueError, match="deaf never proposed"):
        Hybrid.fit({"deaf": (np.zeros((5, 3), np.int64), np.ones((5, 3), np.float32))}, np.full(5, 9))
    with pytest.raises(ValueError, match="'new' was not calibrated"):
        HYBRID.merge({"new": ASKED["beam"]}, 3)
