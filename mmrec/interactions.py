"""Interactions: who met which item when, and whether they wanted it; histories and splits made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmrec.errors import InteractionsError


@dataclass(frozen=True)
class Histories:
    """One entry per person, oldest event first; all arrays of a person have the length T of that person's history."""

    user_ids: list[str]
    items: list[np.ndarray]  # int64 [T] item indices
    preferences: list[np.ndarray]  # float32 [T] in [-1, 1]
    times: list[np.ndarray]  # float64 [T] seconds, NaN where the log has no time

    def __len__(self) -> int:
        return len(self.user_ids)


@dataclass(frozen=True)
class Queries:
    """B questions "what would this person want next?", each with what is known and what is held out."""

    users: np.ndarray  # int64 [B] rows of `Histories`
    histories: list[np.ndarray]  # int64 [T] each
    preferences: list[np.ndarray]  # float32 [T] each
    targets: list[np.ndarray]  # int64 [>= 1] each, the wanted items that are held out

    def __len__(self) -> int:
        return len(self.histories)


@dataclass(frozen=True)
class Split:
    """What to learn from, what to choose by, and what to report on.

    `train` has one entry per person of the log, in the same order, so that `Queries.users` are rows of it too.
    """

    name: str
    train: Histories
    valid: Queries
    test: Queries


def load_histories(directory: Path, item_index: Mapping[str, int]) -> Histories:
    """Read `interactions.parquet` in `directory` into one history per person, people in order of first appearance.

    Events are sorted by time; equal or absent times keep the order of the log.
    Raises `InteractionsError` if the file is missing or names an item that `item_index` lacks.
    """
    import pandas as pd

    path = Path(directory) / "interactions.parquet"
    if not path.is_file():
        raise InteractionsError(f"No interactions in {directory}.", mend="Run `mmrec ingest` with a log.")
    log = pd.read_parquet(path, columns=["user_id", "item_id", "timestamp", "preference"])
    items = log["item_id"].map(item_index)
    unknown = items.isna()
    if unknown.any():
        raise InteractionsError(
            f"{path} names {log['item_id'][unknown].nunique()} items that are not in the catalog, "
            f"the first is {log['item_id'][unknown].iloc[0]!r}.",
            mend="Run `mmrec ingest` again with this catalog and this log.",
        )
    rows, user_ids = pd.factorize(log["user_id"])
    times = log["timestamp"].to_numpy(np.float64)
    order = np.lexsort((times, rows))  # stable; NaN sorts last
    ends = np.cumsum(np.bincount(rows, minlength=len(user_ids)))[:-1]
    return Histories(
        [str(user) for user in user_ids],
        np.split(items.to_numpy(np.int64)[order], ends),
        np.split(log["preference"].to_numpy(np.float32)[order], ends),
        np.split(times[order], ends),
    )


def leave_one_out(h: Histories) -> Split:
    """Hold out the last item each person wanted for test and the one before it for validation.

    A *wanted* event has preference > 0 and is the person's first meeting with the item (a recommender that hides the
    history could never return an item met before). The test history is everything before the test event, the
    validation event included; the validation history and the training part are everything before the validation
    event. A person with fewer than three wanted events stays in training whole and is not asked about.
    """
    train: list[slice] = []
    users, valid_at, test_at = [], [], []
    for u, (items, preferences) in enumerate(zip(h.items, h.preferences, strict=True)):
        first = np.zeros(len(items), dtype=bool)
        first[np.unique(items, return_index=True)[1]] = True
        wanted = np.flatnonzero(first & (preferences > 0))
        if len(wanted) < 3:
            train.append(slice(None))
            continue
        train.append(slice(0, int(wanted[-2])))
        users.append(u)
        valid_at.append(int(wanted[-2]))
        test_at.append(int(wanted[-1]))

    def queries(at: list[int]) -> Queries:
        return Queries(
            np.array(users, dtype=np.int64),
            [h.items[u][:t] for u, t in zip(users, at, strict=True)],
            [h.preferences[u][:t] for u, t in zip(users, at, strict=True)],
            [h.items[u][t : t + 1] for u, t in zip(users, at, strict=True)],
        )

    return Split("leave-one-out", _part(h, train), queries(valid_at), queries(test_at))


def by_time(h: Histories, valid: float = 0.1, test: float = 0.1) -> Split:
    """Cut the log at two moments, the same for everyone: the last `test` of the events, and the `valid` before them.

    No event at or after a cut is in a history of the part behind it. Targets are the items a person wanted
    (preference > 0) in the part and had not met before its cut, once each, oldest first. A person without any is not
    asked about; a person unseen before the cut is asked with an empty history.
    Raises `InteractionsError` if the log has no times, `ValueError` if the shares leave nothing to train on.
    """
    if not (0 <= valid < 1 and 0 < test < 1 and valid + test < 1):
        raise ValueError(f"valid and test are shares of the log that leave a part to train on, not {valid} and {test}.")
    times = np.concatenate(h.times) if len(h) else np.empty(0)
    if not len(times) or np.isnan(times).any():
        raise InteractionsError(
            "A split by time needs the time of every event, and this log has none.",
            mend="Add a time column to the log and ingest it again, or split leave-one-out.",
        )
    ordered = np.sort(times)
    valid_from = ordered[int(np.floor(len(ordered) * (1 - valid - test)))]
    test_from = ordered[int(np.floor(len(ordered) * (1 - test)))]

    def queries(start: float, end: float) -> Queries:
        users, histories, preferences, targets = [], [], [], []
        for u in range(len(h)):
            a, b = np.searchsorted(h.times[u], [start, end])
            later = h.items[u][a:b][h.preferences[u][a:b] > 0]
            later = later[np.sort(np.unique(later, return_index=True)[1])]
            later = later[~np.isin(later, h.items[u][:a])]
            if len(later):
                users.append(u)
                histories.append(h.items[u][:a])
                preferences.append(h.preferences[u][:a])
                targets.append(later)
        return Queries(np.array(users, dtype=np.int64), histories, preferences, targets)

    train = [slice(0, int(np.searchsorted(t, valid_from))) for t in h.times]
    return Split("by-time", _part(h, train), queries(valid_from, test_from), queries(test_from, np.inf))


def _part(h: Histories, parts: list[slice]) -> Histories:
    return Histories(
        h.user_ids,
        [x[s] for x, s in zip(h.items, parts, strict=True)],
        [x[s] for x, s in zip(h.preferences, parts, strict=True)],
        [x[s] for x, s in zip(h.times, parts, strict=True)],
    )
