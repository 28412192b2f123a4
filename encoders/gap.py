"""The modality gap: in a space that two towers share, words and pictures (or sounds) lie in two cones apart.

Liang et al. 2022, "Mind the Gap", section 4: the gap is about one constant vector, so that shifting by the difference
of the two means closes it. Words as a steer have to be shifted before they are read as a picture would be.
"""

from __future__ import annotations

import numpy as np


class ModalityGap:
    """What lies between the words and the media of one space; rows need not describe the same things."""

    def __init__(self, words: np.ndarray, media: np.ndarray) -> None:
        """Vectors [n, d] and [m, d] of one encoder. Raises ValueError where they are of two spaces or none is given."""
        if words.ndim != 2 or media.ndim != 2 or words.shape[1] != media.shape[1] or not len(words) or not len(media):
            raise ValueError(f"words {list(words.shape)} and media {list(media.shape)} must be rows of one space")
        self._words, self._media = _unit(words).mean(axis=0), _unit(media).mean(axis=0)

    @property
    def width(self) -> float:
        """Distance between the two means of unit vectors; 0 is no gap, CLIP's is about 0.8."""
        return float(np.linalg.norm(self._words - self._media))

    def to_media(self, words: np.ndarray) -> np.ndarray:
        """Vectors of words [n, d] as what they say would be as media, of unit length."""
        return _unit(_unit(words) - self._words + self._media).astype(np.float32)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8)
