"""Turning a matrix of scores into ranked lists: what may be shown, best first, ties by item index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Ranked = tuple[np.ndarray, np.ndarray]
"""items int64 [B, k] and scores float32 [B, k]; empty places hold -1 and -inf."""


def check_allowed(allowed: np.ndarray | None, items: int) -> np.ndarray | None:
    """The mask itself, or ValueError when it is not bool [items]."""
    if allowed is None:
        return None
    allowed = np.asarray(allowed)
    if allowed.dtype != np.bool_ or allowed.shape != (items,):
        raise ValueError(
            f"allowed is {allowed.dtype} {list(allowed.shape)}; it must be bool [{items}], one flag per catalog item"
        )
    return allowed


def check_histories(histories: Sequence[np.ndarray], items: int) -> list[np.ndarray]:
    """Histories as int64 arrays; ValueError names the first person whose history leaves the catalog."""
    checked = [np.asarray(history, dtype=np.int64).reshape(-1) for history in histories]
    for person, history in enumerate(checked):
        if history.size and (history.min() < 0 or history.max() >= items):
            raise ValueError(
                f"history {person} holds item {history.min()}..{history.max()}; the catalog is 0..{items - 1}"
            )
    return checked


def liked_part(histories: Sequence[np.ndarray], preferences: Sequence[np.ndarray] | None) -> list[np.ndarray]:
    """The events that speak of taste: preference >= 0. ValueError where the two lists do not match."""
    if preferences is None:
        return list(histories)
    if len(preferences) != len(histories):
        raise ValueError(f"{len(histories)} histories but {len(preferences)} preferences: give one array each")
    parts = []
    for person, (history, preference) in enumerate(zip(histories, preferences, strict=True)):
        preference = np.asarray(preference).reshape(-1)
        if len(preference) != len(history):
            raise ValueError(f"history {person} has {len(history)} events but {len(preference)} preferences")
        parts.append(history[preference >= 0])
    return parts


def flatten(histories: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(person int64 [E], item int64 [E]) of all events."""
    people = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    items = np.concatenate(histories) if len(histories) else np.empty(0, np.int64)
    return people, items.astype(np.int64)


def padded(histories: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Histories in one table: int64 [B, T], with -1 at the end of the shorter ones, and their lengths int64 [B]."""
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    table = np.full((len(histories), lengths.max(initial=0)), -1, dtype=np.int64)
    table[np.arange(table.shape[1]) < lengths[:, None]] = flatten(histories)[1]
    return table, lengths


def rank(
    scores: np.ndarray,
    k: int,
    *,
    allowed: np.ndarray | None = None,
    hidden: Sequence[np.ndarray] | None = None,
) -> Ranked:
    """The k best of `scores` [B, N] per row, none but those `allowed` [N] and not `hidden` (an array per row)."""
    people, items = scores.shape
    scores = np.array(scores, dtype=np.float64)
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    if hidden is not None:
        scores[flatten(hidden)] = -np.inf
    wide = min(max(k, 0), items)
    found = np.full((people, k), -1, dtype=np.int64)
    values = np.full((people, k), -np.inf, dtype=np.float32)
    if wide == 0 or people == 0:
        return found, values
    # Everything that ties with the last place stays a candidate, so that ties go to the lower index.
    bar = np.partition(scores, items - wide, axis=1)[:, items - wide]
    for row in range(people):
        candidates = np.flatnonzero(scores[row] >= bar[row])
        order = candidates[np.argsort(-scores[row, candidates], kind="stable")][:wide]
        order = order[np.isfinite(scores[row, order])]
        found[row, : len(order)] = order
        values[row, : len(order)] = scores[row, order]
    return found, values


def recall_and_ndcg(items: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Means over rows for one target each: is it in the list, and 1 / log2(rank + 1)."""
    hit = items == np.asarray(targets).reshape(-1, 1)
    discount = 1.0 / np.log2(np.arange(items.shape[1]) + 2.0)
    return float(hit.any(axis=1).mean()), float((hit * discount).sum(axis=1).mean())
