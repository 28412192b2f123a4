import numpy as np
import pytest

from diffusion.fidelity import checks, copy_threshold, select
from diffusion.prior import Conditions


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


CATALOG = unit(np.random.default_rng(0).standard_normal((500, 16)))


def test_a_copy_is_called_a_copy_and_a_new_thing_is_not() -> None:
    rng = np.random.default_rng(1)
    near = unit(CATALOG[:5] + 0.02 * rng.standard_normal((5, 16)))
    between = unit(CATALOG[:5] + CATALOG[5:10])
    found = checks(np.concatenate([near, between]), CATALOG, CATALOG[:0], CATALOG[:0])
    np.testing.assert_array_equal(found["nearest"][:5], np.arange(5))
    assert found["copy"].tolist() == [True] * 5 + [False] * 5
    np.testing.assert_allclose(found["nearest_cosine"], (np.concatenate([near, between]) @ CATALOG.T).max(1), rtol=1e-5)
    assert not found["off_taste"].any()  # nothing is known of this person


def test_the_copy_threshold_follows_how_alike_the_catalog_is() -> None:
    pairs = unit(np.repeat(CATALOG[:100], 2, axis=0) + 0.03 * np.random.default_rng(2).standard_normal((200, 16)))
    assert copy_threshold(CATALOG) == pytest.approx(0.95)
    assert 0.97 < copy_threshold(pairs) < 0.999
    assert copy_threshold(CATALOG[:1]) == pytest.approx(0.95)


def test_taste_tells_likes_from_dislikes() -> None:
    liked, disliked = CATALOG[:3], CATALOG[3:6]
    found = checks(unit(np.concatenate([liked, disliked]) + 0.02), CATALOG, liked, disliked)
    assert found["taste"][:3].min() > found["taste"][3:].max()
    assert found["off_taste"].tolist() == [False] * 3 + [True] * 3


def test_select_prefers_taste_and_then_difference() -> None:
    liked, elsewhere = CATALOG[:2], CATALOG[50]
    seeds = np.stack([liked[0], unit(liked[0] + 0.01), liked[1], elsewhere])[None]  # [1, 4, 16]
    conditions = Conditions(liked[None], np.ones((1, 2), np.float32), np.ones((1, 2), bool))
    chosen = select(seeds, conditions, 2)
    assert chosen.shape == (1, 2, 16)
    cosine = chosen[0] @ liked.T
    assert cosine.max(0).min() > 0.95  # one for each liked item, not the same twice
    np.testing.assert_array_equal(np.sort(select(seeds, conditions, 4), 1), np.sort(seeds, 1))
    with pytest.raises(ValueError, match="1 to 4 of 4"):
        select(seeds, conditions, 5)
