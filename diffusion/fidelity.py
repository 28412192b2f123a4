"""Checks before anything dreamt is shown (GeneRec, Wang et al. 2023): no copy, to the person's taste, fit to be seen.

A dream is checked as a vector (`checks`) and refused in favour of another (`keep`); what a decoder made of it is
checked again as what it is (`presentable`), and as what its encoder sees in it, by whoever has the encoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffusion.verifier import Verifier

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffusion.decoders.base import Clip

CHUNK = 256
SAMPLE = 4096
STANDS_ON = 4  # real items around a dream by which it is judged
FAINT, LOUD = 0.005, 0.999  # root mean square below which a clip is silence; what counts as clipped
CLIPPED = 1e-3  # share of clipped samples that is heard


def copy_threshold(catalog_vectors: np.ndarray) -> float:
    """Cosine above which a seed counts as a copy: 99 % of items are less similar than this to their nearest neighbour.

    At least .95, so that a catalog of duplicates does not excuse copies, nor one of strangers forbid likeness. Measured
    on at most 4096 items against all.
    """
    sample = np.random.default_rng(0).permutation(len(catalog_vectors))[:SAMPLE]
    nearest = []
    for rows in np.array_split(sample, -(-len(sample) // CHUNK)):
        cosine = catalog_vectors[rows] @ catalog_vectors.T
        cosine[np.arange(len(rows)), rows] = -1
        nearest.append(cosine.max(1))
    return float(np.clip(np.quantile(np.concatenate(nearest), 0.99), 0.95, 0.999))


def nearest(vectors: np.ndarray, catalog_vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Catalog row int64 [S] nearest to each of vectors [S, D], and its cosine [S]; unit rows."""
    parts = [vectors[i : i + CHUNK] @ catalog_vectors.T for i in range(0, len(vectors), CHUNK)]
    rows = np.concatenate([part.argmax(1) for part in parts])
    return rows, np.concatenate([part.max(1) for part in parts])


def taste(
    seeds: np.ndarray, catalog_vectors: np.ndarray, items: np.ndarray, preferences: np.ndarray, verifier: Verifier
) -> np.ndarray:
    """What the verifier says to the real things that seeds [S, D] stand on. -> float32 [S]

    The mean probability that this person (history of catalog rows `items` [T], `preferences` [T]) likes the `STANDS_ON`
    nearest items they have not met. A dreamt vector itself lies off the data, where the verifier learned nothing: of
    the dreams of 60 people of the demo it passed 29 % if asked directly, 71 % if asked so (and 17 % of other people's).
    """
    cosine = seeds @ catalog_vectors.T  # [S, N]
    cosine[:, items] = -np.inf
    count = min(STANDS_ON, len(catalog_vectors) - len(np.unique(items)))
    if count < 1:
        return np.full(len(seeds), 0.5, np.float32)
    near = np.argpartition(-cosine, count - 1, axis=1)[:, :count]  # [S, count]
    liked, disliked = catalog_vectors[items[preferences > 0]], catalog_vectors[items[preferences < 0]]
    said = verifier.probability(catalog_vectors[near.ravel()], liked, disliked)
    return said.reshape(near.shape).mean(axis=1)


def checks(
    seeds: np.ndarray,
    catalog_vectors: np.ndarray,
    items: np.ndarray,
    preferences: np.ndarray,
    verifier: Verifier,
    threshold: float,
) -> dict[str, np.ndarray]:
    """Look at the seeds [S, D] of a person with the history `items` [T], `preferences` [T]; all vectors of unit length.

    -> "nearest" int64 [S] catalog row, "nearest_cosine" [S], "copy" bool [S] (above the `copy_threshold`), "taste" [S],
    and "off_taste" bool [S]: rather not theirs. Of somebody who rated nothing, nothing is.
    """
    rows, cosine = nearest(seeds, catalog_vectors)
    liking = taste(seeds, catalog_vectors, items, preferences, verifier)
    return {
        "nearest": rows,
        "nearest_cosine": cosine,
        "copy": cosine > threshold,
        "taste": liking,
        "off_taste": (liking < 0.5) & bool((preferences != 0).any()),
    }


def keep(refused: np.ndarray, merit: np.ndarray, n: int) -> np.ndarray:
    """Rejection sampling: the first n of S candidates that are not `refused` bool [S]. -> int64 [n], ascending

    Taken as they come, what is kept has the distribution of all that would pass. Where fewer pass, the refused ones of
    most `merit` [S] fill up.
    """
    if not 1 <= n <= len(refused):
        raise ValueError(f"of {len(refused)} candidates 1 to {len(refused)} can be kept, not {n}")
    best_first = np.argsort(-merit, kind="stable")
    order = np.concatenate([np.flatnonzero(~refused), best_first[refused[best_first]]])
    return np.sort(order[:n])


def choose(
    made: np.ndarray, wanted: np.ndarray, catalog: np.ndarray, threshold: float, fit: np.ndarray
) -> tuple[int, np.ndarray, np.ndarray]:
    """Of what was made, seen again through an encoder [C, d], the most like what was `wanted` [d]; unit rows.

    What is not `fit` to be shown (bool [C]) comes last, before it copies of the catalog [N, d]. -> the choice, cosines
    to what was wanted [C], cosines to the nearest of the catalog [C]
    """
    likeness = made @ wanted
    _, cosine = nearest(made, catalog)
    return int(np.lexsort((-likeness, cosine > threshold, ~fit))[0]), likeness, cosine


def presentable(made: Image | Clip) -> bool:
    """Whether there is something to see or hear: no blank picture, no silence, no clipping, no NaN."""
    from PIL.Image import Image as Picture

    if isinstance(made, Picture):
        return any(low < high for low, high in made.convert("RGB").getextrema())  # type: ignore[misc]
    samples = made.samples
    if not len(samples) or not np.isfinite(samples).all():
        return False
    heard = float(np.sqrt(np.mean(samples.astype(np.float64) ** 2))) > FAINT
    return heard and float(np.mean(np.abs(samples) >= LOUD)) < CLIPPED
