import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.decoders import Clip
from diffusion.fidelity import checks, choose, copy_threshold, keep, presentable
from diffusion.verifier import Verifier, fit_verifier, taste_features


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


CATALOG = unit(np.random.default_rng(0).standard_normal((500, 16)))
NOBODY = CATALOG[:0]
FLAT = Verifier((0.0,) * 9, {})
NEAREST_LIKE = Verifier((8.0, 0, 0, 0, -8.0, 0, 0, 0, 0), {})


def test_a_copy_is_called_a_copy_and_a_new_thing_is_not() -> None:
    rng = np.random.default_rng(1)
    near = unit(CATALOG[:5] + 0.02 * rng.standard_normal((5, 16)))
    between = unit(CATALOG[:5] + CATALOG[5:10])
    seeds = np.concatenate([near, between])
    found = checks(seeds, CATALOG, np.zeros(0, np.int64), np.zeros(0), FLAT, copy_threshold(CATALOG))
    np.testing.assert_array_equal(found["nearest"][:5], np.arange(5))
    assert found["copy"].tolist() == [True] * 5 + [False] * 5
    np.testing.assert_allclose(found["nearest_cosine"], (seeds @ CATALOG.T).max(1), rtol=1e-5)
    assert not found["off_taste"].any()  # nothing is known of this person


def test_the_copy_threshold_follows_how_alike_the_catalog_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = unit(np.repeat(CATALOG[:100], 2, axis=0) + 0.03 * np.random.default_rng(2).standard_normal((200, 16)))
    assert copy_threshold(CATALOG) == pytest.approx(0.95)
    threshold = copy_threshold(pairs)
    assert 0.97 < threshold < 0.999
    assert copy_threshold(CATALOG[:1]) == pytest.approx(0.95)
    monkeypatch.setattr("diffusion.fidelity.CHUNK", 7)
    assert copy_threshold(pairs) == pytest.approx(threshold)


def test_taste_tells_likes_from_dislikes() -> None:
    rng = np.random.default_rng(4)
    catalog = unit(np.repeat(CATALOG[:6], 5, axis=0) + 0.1 * rng.standard_normal((30, 16)))  # six things, five of each
    met, rated = np.arange(0, 30, 5), np.repeat([1.0, -1.0], 3)  # one of each
    found = checks(CATALOG[:6], catalog, met, rated, NEAREST_LIKE, 0.999)
    assert found["taste"][:3].min() > 0.6
    assert found["taste"][3:].max() < 0.4
    assert found["off_taste"].tolist() == [False] * 3 + [True] * 3
    likes, dislikes = catalog[met[:3]], catalog[met[3:]]
    unmet = np.setdiff1d(np.arange(5), met)
    said = NEAREST_LIKE.probability(catalog[unmet], likes, dislikes)
    assert found["taste"][0] == pytest.approx(said.mean(), abs=1e-5)
    everything = checks(CATALOG[:2], catalog, np.arange(30), np.ones(30), NEAREST_LIKE, 0.999)
    assert everything["taste"].tolist() == [0.5, 0.5], "nothing unmet is left to judge by"


def test_kept_is_what_passes_in_order_and_then_the_best_of_the_rest() -> None:
    refused = np.array([True, False, True, False, False, True])
    merit = np.array([0.1, 0.2, 0.9, 0.3, 0.4, 0.5])
    assert keep(refused, merit, 2).tolist() == [1, 3]
    assert keep(refused, merit, 3).tolist() == [1, 3, 4]
    assert keep(refused, merit, 4).tolist() == [1, 2, 3, 4]
    assert keep(refused, merit, 6).tolist() == list(range(6))
    with pytest.raises(ValueError, match="1 to 6"):
        keep(refused, merit, 7)


def test_chosen_is_the_likest_that_may_be_shown() -> None:
    wanted = CATALOG[0]
    made = unit(np.stack([wanted, wanted + CATALOG[1], wanted + 0.2 * CATALOG[2], CATALOG[3]]))
    everything = np.ones(4, bool)
    best, likeness, cosine = choose(made, wanted, CATALOG, 0.97, everything)
    assert best == 2 or cosine[2] > 0.97
    assert likeness[0] == pytest.approx(1, abs=1e-5)
    assert choose(made, wanted, CATALOG, 2.0, everything)[0] == 0, "nothing is a copy"
    assert choose(made[[0, 0]], wanted, CATALOG, 0.97, np.ones(2, bool))[0] == 0, "a copy where there is nothing else"
    assert choose(made, wanted, CATALOG, 2.0, np.array([False, True, True, True]))[0] in (1, 2)


def test_what_is_blank_silent_clipped_or_broken_is_not_shown() -> None:
    hum = (0.3 * np.sin(np.arange(24_000) / 20)).astype(np.float32)
    assert presentable(Clip(hum, 24_000))
    for samples in (0 * hum, 0.001 * hum, np.clip(9 * hum, -1, 1), hum + np.nan, hum[:0]):
        assert not presentable(Clip(samples, 24_000))
    grey = Image.new("RGB", (8, 8), "grey")
    assert not presentable(grey)
    grey.putpixel((3, 3), (255, 0, 0))
    assert presentable(grey)


# -- the verifier ------------------------------------------------------------------------------------------------------


def world(people: int, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Twelve clusters of items; everybody likes two and dislikes one of them."""
    rng = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(12), 25)
    vectors = unit(unit(rng.standard_normal((12, 24)))[cluster] + 0.12 * rng.standard_normal((len(cluster), 24)))
    histories, preferences = [], []
    for _ in range(people):
        taste = rng.choice(12, 3, replace=False)
        items = np.concatenate([rng.choice(np.flatnonzero(cluster == k), 5, replace=False) for k in taste])
        histories.append(items)
        preferences.append(np.repeat([1.0, 0.5, -1.0], 5).astype(np.float32))
    return histories, preferences, vectors


def test_the_verifier_learns_tastes_and_says_what_it_is_worth() -> None:
    histories, preferences, vectors = world(150)
    verifier = fit_verifier(histories, preferences, vectors, seed=0)
    told = verifier.held_out
    assert told["people"] == 30
    assert min(told["auc"], told["auc_disliked"], told["auc_unmet"]) > 0.9
    assert told["calibration_error"] < 0.1
    right = []
    for items in world(40, seed=5)[0]:
        liked, disliked = vectors[items[:4]], vectors[items[10:14]]
        said = verifier.probability(vectors[items[[4, 14]]], liked, disliked)
        right.append(said[0] > 0.5 > said[1])
    assert np.mean(right) > 0.9, "people it has never seen"


def test_ratings_that_say_nothing_are_worth_nothing() -> None:
    histories, preferences, vectors = world(150)
    rng = np.random.default_rng(3)
    shuffled = [rng.permutation(p) for p in preferences]
    random = [rng.choice(len(vectors), len(items), replace=False) for items in histories]
    told = fit_verifier(random, shuffled, vectors, seed=0).held_out
    assert 0.4 < told["auc"] < 0.6
    assert told["calibration_error"] < 0.1


def test_the_verifier_never_sees_a_target_in_its_own_history() -> None:
    histories, preferences, vectors = world(60)
    alone = [items[[0, 5, 10]] for items in histories]  # no two items of one taste: each target is alone of its kind
    rated = [preference[[0, 5, 10]] for preference in preferences]
    assert fit_verifier(alone, rated, vectors, seed=0).held_out["auc_unmet"] < 0.75


def test_the_verifier_repeats_is_saved_and_needs_a_like(tmp_path: Path) -> None:
    histories, preferences, vectors = world(40)
    verifier = fit_verifier(histories, preferences, vectors, seed=1)
    assert fit_verifier(histories, preferences, vectors, seed=1) == verifier
    verifier.save(tmp_path)
    assert Verifier.load(tmp_path) == verifier
    assert json.loads((tmp_path / "verifier.json").read_text())["held_out"]["auc"] == verifier.held_out["auc"]
    with pytest.raises(ValueError, match="nobody liked"):
        fit_verifier(histories, [-abs(p) for p in preferences], vectors, seed=0)
    likes_only = fit_verifier(histories, [abs(p) for p in preferences], vectors, seed=0)
    assert "auc_disliked" not in likes_only.held_out
    assert likes_only.held_out["auc"] > 0.7


def test_features_are_of_the_nearest_the_near_and_all() -> None:
    liked, vectors = CATALOG[:6], CATALOG[6:9]
    cosine = np.sort(vectors @ liked.T, axis=1)
    features = taste_features(vectors, liked, NOBODY)
    np.testing.assert_allclose(features[:, 0], cosine[:, -1], rtol=1e-5)
    np.testing.assert_allclose(features[:, 1], cosine[:, -2:].mean(1), rtol=1e-5)
    np.testing.assert_allclose(features[:, 2], cosine.mean(1), rtol=1e-4, atol=1e-6)
    assert (features[:, 4:] == 0).all()
