"""Pictures as flat shapes: a label map with a palette, and the picture that lies between two of them.

A picture is cut into a background and a few parts of one colour. Two pictures are blended by their signed distance
functions (Payne & Toga 1992, "Distance field manipulation of surface models"): the zero line of (1 - t) d_a + t d_b is
a clean outline between the two at any t, where blending pixels would give a double exposure. Parts that are alike in
colour, place and size become one part in between; a part without a partner stays as it is or is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

SIDE = 96
"""Pixels on a side of a label map."""
COLOURS = 7
"""Colours a picture is cut into at most, white apart."""
EDGE = 0.12  # a pixel whose neighbourhood varies more belongs to the flat pixel nearest to it
APART = 0.12  # two colours nearer than this are one
ALIKE = 0.55  # parts farther apart than this in colour + place + size are no partners
ACCENT = 0.06  # a part of the second picture without partner joins in if it covers less of the picture


@dataclass(frozen=True)
class Shapes:
    """labels uint8 [SIDE, SIDE]: 0 background, j the colour palette[j]; palette float32 [P, 3] in [0, 1]."""

    labels: np.ndarray
    palette: np.ndarray


@dataclass(frozen=True)
class Part:
    """What one colour covers: bool [SIDE, SIDE], its colour [3], share of the picture, and centre [2] in [0, 1]."""

    mask: np.ndarray
    colour: np.ndarray
    area: float
    centre: np.ndarray


def cut(picture: Image.Image) -> Shapes:
    """Cut a picture into flat shapes; what is white and touches the border is background."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture.convert("RGB"), ((side - picture.width) // 2, (side - picture.height) // 2))
    pixels = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float32) / 255  # [S, S, 3]
    spread = ndimage.maximum_filter(pixels, (3, 3, 1)) - ndimage.minimum_filter(pixels, (3, 3, 1))
    flat = spread.max(axis=2) < EDGE
    if flat.sum() < SIDE:  # a photograph of much detail has no flat places
        flat = np.ones_like(flat)
    palette = _palette(pixels[flat])
    labels = ((pixels[:, :, None] - palette) ** 2).sum(axis=-1).argmin(axis=-1)  # [S, S]
    rows, columns = ndimage.distance_transform_edt(~flat, return_distances=False, return_indices=True)
    labels = labels[rows, columns]
    regions, _ = ndimage.label(labels == 0)
    border = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    background = np.isin(regions, border[border > 0])
    return Shapes(
        np.where(background, 0, labels + 1).astype(np.uint8), np.concatenate([palette[:1], palette]).astype(np.float32)
    )


def between(a: Shapes, b: Shapes, shape: float, colour: float, side: int = 256) -> Image.Image:
    """The picture between two: ``shape`` and ``colour`` in [0, 1] say how far toward ``b``. -> RGB [side, side]"""
    silhouette = (1 - shape) * _distance(a.labels > 0) + shape * _distance(b.labels > 0)
    painted = sorted(_blend(_parts(a), _parts(b), shape, colour), key=lambda part: -part[0])
    fine = 2 * side
    ink = np.ones((fine, fine, 3), np.float32)
    for number, (_, distance, shade) in enumerate(painted):
        cover = np.ones((fine, fine, 1), np.float32) if number == 0 else _cover(distance, fine)
        ink = ink * (1 - cover) + shade * cover
    body = _cover(silhouette, fine)
    canvas = (255 * (ink * body + 1 - body)).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(canvas).resize((side, side), Image.Resampling.LANCZOS)


def _palette(pixels: np.ndarray) -> np.ndarray:
    """The main colours among pixels [n, 3], white first: float32 [P, 3]."""
    bins = (pixels * 7.99).astype(np.int64) @ np.array([64, 8, 1])
    _, owner, counts = np.unique(bins, return_inverse=True, return_counts=True)
    means = np.stack([np.bincount(owner, pixels[:, c]) / counts for c in range(3)], axis=1)
    colours = [np.ones(3)]
    for at in np.argsort(-counts, kind="stable"):
        rare = counts[at] < max(12, 0.002 * len(pixels))
        if len(colours) > COLOURS or (rare and len(colours) > 1):
            break
        if np.linalg.norm(means[at] - np.array(colours), axis=1).min() > APART:
            colours.append(means[at])
    palette = np.array(colours)
    for _ in range(5):
        nearest = ((pixels[:, None] - palette) ** 2).sum(axis=-1).argmin(axis=1)
        for k in range(1, len(palette)):
            if (nearest == k).any():
                palette[k] = pixels[nearest == k].mean(axis=0)
    return palette.astype(np.float32)


def _parts(shapes: Shapes) -> list[Part]:
    parts = []
    for label in np.unique(shapes.labels[shapes.labels > 0]):
        mask = shapes.labels == label
        centre = np.array(ndimage.center_of_mass(mask)) / SIDE
        parts.append(Part(mask, shapes.palette[label], float(mask.mean()), centre))
    return parts


def _blend(a: list[Part], b: list[Part], shape: float, colour: float) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """(area, signed distance [SIDE, SIDE], colour [3]) of the parts in between."""
    if not a or not b:
        return [(part.area, _distance(part.mask), part.colour) for part in a or b]
    unlike = np.array([[_unlike(p, q) for q in b] for p in a])
    partners = {i: j for i, j in zip(*linear_sum_assignment(unlike), strict=True) if unlike[i, j] < ALIKE}
    biggest = int(np.argmax([part.area for part in a]))
    partners.setdefault(biggest, int(np.argmax([part.area for part in b])))
    painted = []
    for i, part in enumerate(a):
        if i not in partners:
            painted.append((part.area, _distance(part.mask), part.colour))
            continue
        other = b[partners[i]]
        distance = (1 - shape) * _distance(part.mask) + shape * _distance(other.mask)
        shade = (1 - colour) * part.colour + colour * other.colour
        painted.append(((1 - shape) * part.area + shape * other.area, distance, shade))
    for j, part in enumerate(b):
        if j not in partners.values() and part.area < ACCENT:
            painted.append((part.area, _distance(part.mask), part.colour))
    return painted


def _unlike(p: Part, q: Part) -> float:
    place = float(np.linalg.norm(p.centre - q.centre))
    return float(np.linalg.norm(p.colour - q.colour)) / 2 + place + abs(p.area**0.5 - q.area**0.5)


def _distance(mask: np.ndarray) -> np.ndarray:
    """Signed distance to the outline in label-map pixels, negative inside: float32 [SIDE, SIDE]."""
    if not mask.any():
        return np.full(mask.shape, SIDE / 4, np.float32)
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    return ndimage.gaussian_filter((outside - inside).astype(np.float32), 0.7)


def _cover(distance: np.ndarray, side: int) -> np.ndarray:
    """How much of each pixel of a [side, side] picture lies inside, with a soft edge: [side, side, 1]."""
    fine = Image.fromarray(distance).resize((side, side), Image.Resampling.BICUBIC)
    return np.clip(0.5 - np.asarray(fine) * (side / SIDE) / 2, 0, 1)[..., None]
