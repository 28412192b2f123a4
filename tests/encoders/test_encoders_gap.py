"""The gap in a made-up shared space: no weights of a real CLIP or CLAP are at hand."""

from __future__ import annotations

import numpy as np
import pytest

from encoders.bridge import Bridge
from encoders.gap import ModalityGap


def towers(n: int = 400, d: int = 64, gap: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Words and pictures of the same n things: a common meaning, each tower's noise, and a cone for each."""
    rng = np.random.default_rng(3)
    meaning = rng.standard_normal((n, d)) / np.sqrt(d)
    offset = rng.standard_normal(d) / np.sqrt(d) * gap
    words, pictures = (meaning + s * offset + 0.3 * rng.standard_normal((n, d)) / np.sqrt(d) for s in (1, -1))
    return words.astype(np.float32), pictures.astype(np.float32)


def recall(queries: np.ndarray, targets: np.ndarray) -> float:
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, targets)]
    scores = unit[0] @ unit[1].T
    return float(((scores > np.diag(scores)[:, None]).sum(1) < 10).mean())


def test_the_gap_is_closed_and_words_find_their_picture_among_both() -> None:
    words, pictures = towers()
    known, new = slice(0, 200), slice(200, 400)
    gap = ModalityGap(words[known], pictures[known])
    carried = gap.to_media(words[new])
    assert gap.width > 0.8
    assert ModalityGap(carried, pictures[new]).width < 0.2 * gap.width
    # beside other words, every picture is far off until the gap is closed
    before, after = (recall(x, np.concatenate([pictures[new], words[known]])) for x in (words[new], carried))
    assert before < 0.3
    assert after > 0.9


def test_words_reach_the_item_space_through_a_bridge_that_only_saw_pictures() -> None:
    words, pictures = towers()
    rng = np.random.default_rng(4)
    items = pictures @ rng.standard_normal((64, 32)).astype(np.float32)
    items -= items.mean(0)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    bridge = Bridge.fit(pictures[:200], items[:200], seed=0)
    gap = ModalityGap(words[:200], pictures[:200])
    raw, closed = bridge.transform(words[200:]), bridge.transform(gap.to_media(words[200:]))
    assert recall(closed, items[200:]) > recall(raw, items[200:])
    assert (closed * items[200:]).sum(1).mean() > (raw * items[200:]).sum(1).mean() + 0.1


@pytest.mark.parametrize("shapes", [((3, 4), (3, 5)), ((0, 4), (3, 4)), ((4,), (3, 4))])
def test_two_spaces_have_no_gap(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="one space"):
        ModalityGap(*(np.ones(shape) for shape in shapes))
