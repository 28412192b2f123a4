"""Interactions: who met which item when, and whether they wanted it; histories and splits made from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmrec.errors import InteractionsError

if TYPE_CHECKING:
    import pandas as pd

    from mmrec.logs import Log

MEDIA_SUFFIX = r"(?i)\.(jpe?g|png|webp|gif|bmp|tiff?|wav|flac|og[ga]|opus|mp3|aiff?|txt)$"
DISLIKING = {"dislike", "disliked", "thumbs_down", "downvote", "skip", "skipped", "hide", "hidden", "block", "blocked",
             "report", "not_interested", "unlike", "return", "returned", "remove", "removed"}  # fmt: skip
INDIFFERENT = {"impression", "shown", "exposure", "exposed", "ignore", "ignored", "neutral"}
SORTED = 0.65  # see `_order_of_rows`: MovieLens and OASIS sorted by item have .75 to 1, MovieLens by time .2 to .4
SCALES = {  # lowest and highest rating -> liked from, disliked to; the first that the ratings fit is taken
    (0, 1): (0.75, 0.25), (-1, 1): (0.5, -0.5), (0, 5): (4, 2), (0, 7): (6, 2), (0, 10): (8, 3), (0, 100): (75, 25),
}  # fmt: skip


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


def leave_one_out(h: Histories, refit: bool = False) -> Split:
    """Hold out the last item each person wanted for test and the one before it for validation.

    A *wanted* event has preference > 0 and is the person's first meeting with the item (a recommender that hides the
    history could never return an item met before). The test history is everything before the test event, the
    validation event included; the validation history and the training part are everything before the validation
    event. A person with fewer than three wanted events stays in training whole and is not asked about.

    refit: the split of a last training, when everything is chosen: all before the test event is learned from, nobody is
    left to choose by, and only test items that training holds are asked for.
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
        train.append(slice(0, int(wanted[-1 if refit else -2])))
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

    split = Split("leave-one-out", _part(h, train), queries(valid_at), queries(test_at))
    return _refitted(split) if refit else split


def by_time(h: Histories, valid: float = 0.1, test: float = 0.1, refit: bool = False) -> Split:
    """Cut the log at two moments, the same for everyone: the last `test` of the events, and the `valid` before them.

    No event at or after a cut is in a history of the part behind it. Targets are the items a person wanted
    (preference > 0) in the part and had not met before its cut, once each, oldest first. A person without any is not
    asked about; a person unseen before the cut is asked with an empty history. refit: as in `leave_one_out`.
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
            if a == b:
                continue
            later = h.items[u][a:b][h.preferences[u][a:b] > 0]
            later = later[np.sort(np.unique(later, return_index=True)[1])]
            later = later[~np.isin(later, h.items[u][:a])]
            if len(later):
                users.append(u)
                histories.append(h.items[u][:a])
                preferences.append(h.preferences[u][:a])
                targets.append(later)
        return Queries(np.array(users, dtype=np.int64), histories, preferences, targets)

    train = [slice(0, int(np.searchsorted(t, test_from if refit else valid_from))) for t in h.times]
    split = Split("by-time", _part(h, train), queries(valid_from, test_from), queries(test_from, np.inf))
    return _refitted(split) if refit else split


def _refitted(split: Split) -> Split:
    """The split with nobody to choose by and no test item that training lacks."""
    known = np.unique(np.concatenate([*split.train.items, np.empty(0, np.int64)]))
    targets = [items[np.isin(items, known)] for items in split.test.targets]
    rows = [row for row, items in enumerate(targets) if len(items)]
    test = Queries(
        split.test.users[rows],
        [split.test.histories[row] for row in rows],
        [split.test.preferences[row] for row in rows],
        [targets[row] for row in rows],
    )
    return Split(f"{split.name}, refit", split.train, Queries(np.empty(0, np.int64), [], [], []), test)


def _part(h: Histories, parts: list[slice]) -> Histories:
    return Histories(
        h.user_ids,
        [x[s] for x, s in zip(h.items, parts, strict=True)],
        [x[s] for x, s in zip(h.preferences, parts, strict=True)],
        [x[s] for x, s in zip(h.times, parts, strict=True)],
    )


@dataclass(frozen=True)
class InteractionsReport:
    """What an ingest of a log kept, what it rejected, and how it read likes and times."""

    rows: int
    kept: int
    users: int
    items: int
    liked: int
    disliked: int
    reasons: dict[str, int]  # reason -> rows of rejected.parquet
    examples: list[str]  # the first few rejected, in words
    columns: dict[str, str]  # column of the log -> what it was read as
    how: list[str]  # what was chosen: thresholds of like and dislike, unit of time

    @property
    def rejected(self) -> int:
        return sum(self.reasons.values())

    def __str__(self) -> str:
        lines = [
            f"{self.kept:,} events of {self.users:,} people with {self.items:,} items: "
            f"{self.liked:,} liked, {self.disliked:,} disliked."
        ]
        if self.rejected:
            lines.append(f"{self.rejected:,} of {self.rows:,} rows rejected; the first:")
            lines += [f"  {example}" for example in self.examples]
        return "\n".join(lines + self.how)


def ingest_interactions(
    source: Path,
    destination: Path,
    item_ids: Collection[str],
    *,
    like_at: float | None = None,
    dislike_at: float | None = None,
    columns: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> InteractionsReport:
    """Read a log and write `interactions.parquet` and `rejected.parquet` in `destination`.

    `source` is a CSV, TSV, JSONL or Parquet table with a user and an item and, if there are, a time (ISO, or a number
    of seconds, milli-, micro- or nanoseconds), a rating and a behaviour; `columns` maps names of one's own to `user`,
    `item`, `time`, `rating` and `behaviour`. Without times the order of the rows is the order of the events. An item
    may be named by its file, cat.jpg for cat.

    Preference: a rating >= `like_at` is +1, one <= `dislike_at` is -1, any other 0. What is not given is chosen by the
    first of `SCALES` that the ratings fit (up to 5 stars: like from 4, dislike to 2), while ratings of -1, 0 and 1 are
    taken as they are. Without a rating the behaviour decides: the words in `DISLIKING` are -1, those in `INDIFFERENT`
    0, all others +1, as is an event that says no more than that it happened. What was chosen stands in the report.

    Rows that name an unknown item, or have an empty user or item, a rating that is no finite number, a time that cannot
    be read, or are the very same event as an earlier row, go to `rejected.parquet` (`row`, `column`, `reason` and the
    cells). Raises `InteractionsError` if the log cannot be read, lacks a column, or has no usable row.
    """
    import pandas as pd

    from mmrec.logs import as_numbers, as_seconds, as_words, read_log

    log = read_log(Path(source), columns or {})
    table, n = log.table, len(log.table)
    if progress:
        progress(0, n)
    has = set(table.column_names)
    events = pd.DataFrame({"user_id": as_words(table["user"]), "item_id": as_words(table["item"])})
    seconds, timed, unit = as_seconds(table["time"]) if "time" in has else (np.full(n, np.nan), np.zeros(n, bool), "")
    ratings, rated = as_numbers(table["rating"]) if "rating" in has else (np.full(n, np.nan), np.zeros(n, bool))
    with np.errstate(over="ignore"):
        ratings = ratings.astype(np.float32)
    behaviour = pd.Series(np.full(n, "", dtype=object))
    if "behaviour" in has:
        behaviour = as_words(table["behaviour"]).str.lower().str.replace(r"[\s-]+", "_", regex=True)
    events = events.assign(timestamp=seconds, rating=ratings, behaviour=behaviour)

    known = set(item_ids)
    by_file = ~events["item_id"].isin(known)  # of a folder of media, whose items are called by their stems
    stems = events["item_id"].where(~by_file, events["item_id"].str.replace(MEDIA_SUFFIX, "", regex=True))
    by_file &= stems.isin(known)
    events["item_id"] = events["item_id"].where(~by_file, stems)

    reason, column = np.full(n, "", dtype=object), np.full(n, "", dtype=object)

    def reject(bad: np.ndarray, where: str, why: str) -> None:
        bad = bad & (reason == "")
        reason[bad], column[bad] = why, where

    reject(log.not_utf8, "", "is not UTF-8")
    reject((events["user_id"] == "").to_numpy(), "user", "is empty")
    reject((events["item_id"] == "").to_numpy(), "item", "is empty")
    reject(~events["item_id"].isin(known).to_numpy(), "item", "is not in the catalog")
    reject(rated & ~np.isfinite(ratings), "rating", "is not a finite number")
    if rated.any():
        reject(~rated & (behaviour == "").to_numpy(), "rating", "is empty")
    if timed.any():
        reject(~timed, "time", "is empty")
        reject(~np.isfinite(seconds), "time", "cannot be read as a time")
    good = reason == ""
    again = np.zeros(n, dtype=bool)
    again[good] = events[good].duplicated().to_numpy()
    reject(again, "", "is the very same event as an earlier row")

    kept = reason == ""
    rejected = _rejected(log, kept, column, reason)
    if not kept.any():
        first = "".join(f"\n  {example}" for example in _in_words(rejected, 3))
        raise InteractionsError(
            f"{source} has no event that can be used; {len(rejected):,} rows are rejected.{first}",
            mend="Mend the rows named above, or ingest the log with the catalog it belongs to.",
        )
    events = events[kept].reset_index(drop=True)
    likes, dislikes, how = _thresholds(events["rating"].to_numpy(), like_at, dislike_at, Path(source))
    events["preference"] = _preferences(events, likes, dislikes)
    _write(events, rejected, Path(destination))
    if progress:
        progress(n, n)
    return InteractionsReport(
        rows=n + len(log.unreadable),
        kept=len(events),
        users=events["user_id"].nunique(),
        items=events["item_id"].nunique(),
        liked=int((events["preference"] > 0).sum()),
        disliked=int((events["preference"] < 0).sum()),
        reasons={str(why): int(count) for why, count in _named(rejected).value_counts().items()},
        examples=_in_words(rejected, 5),
        columns=log.columns,
        how=[
            *([f"{by_file.sum():,} rows name an item by its file."] if by_file.any() else []),
            how,
            f"Times are read as {unit}." if timed.any() else _order_of_rows(events),
        ],
    )


def _order_of_rows(events: pd.DataFrame) -> str:
    """How a log without times is read, and a warning where its rows are in the order of the items, not of what was
    done.

    Then everybody has the same last items, and whatever is held out is foretold far too well.
    """
    told = "The log has no times: its order is the order."
    by_person = events.groupby("user_id")["item_id"]
    place = by_person.cumcount() / (by_person.transform("size") - 1)  # of each event in its history, from 0 to 1
    by_item = place.groupby(events["item_id"])
    elsewhere = (by_item.transform("sum") - place) / (by_item.transform("count") - 1)  # its item's, among the others
    compared = place.notna() & np.isfinite(elsewhere)
    if by_person.ngroups >= 10 and compared.sum() >= 100:
        with np.errstate(invalid="ignore"):  # nothing varies: no correlation
            alike = np.corrcoef(place[compared], elsewhere[compared])[0, 1]
        if alike > SORTED:
            told += (
                f" But all people have their items in nearly the same order (correlation {alike:.2f}), as if it were "
                "sorted by item: give it times, or shuffle the rows of each person, or recommendations will look far "
                "better in the evaluation than they are."
            )
    return told


def _thresholds(
    ratings: np.ndarray, like_at: float | None, dislike_at: float | None, source: Path
) -> tuple[float, float, str]:
    """From which rating on an event is liked, up to which it is disliked, and that in words."""
    rated = ratings[np.isfinite(ratings)]
    if not len(rated):
        return np.nan, np.nan, "Without ratings every event is a like, but for behaviours such as skip or dislike."
    low, high = float(rated.min()), float(rated.max())
    if like_at is None and dislike_at is None and set(np.unique(rated)) <= {-1.0, 0.0, 1.0}:
        return 1.0, -1.0, "Ratings of -1, 0 and 1 are taken as dislike, neither and like."
    likes, dislikes, scale = np.inf, -np.inf, ""
    for (lowest, highest), chosen in SCALES.items():
        if lowest <= low and high <= highest:
            (likes, dislikes), scale = chosen, f" on a scale of {lowest} to {highest}"
            break
    else:
        if low < 0:  # as much below zero as above it
            likes, dislikes = max(-low, high) / 2, -max(-low, high) / 2
        elif like_at is None:
            raise InteractionsError(
                f"The ratings of {source} go from {low:g} to {high:g}, and what of that is a like cannot be told.",
                mend="Say from which rating on an item is liked, --like-at, and up to which disliked, --dislike-at.",
            )
    likes = likes if like_at is None else like_at
    dislikes = dislikes if dislike_at is None else dislike_at
    if dislike_at is None and dislikes >= likes:
        dislikes = -np.inf
    if dislikes >= likes:
        raise InteractionsError(
            f"A rating cannot be liked from {likes:g} on and disliked up to {dislikes:g}.",
            mend="Give --dislike-at below --like-at.",
        )
    return (
        likes,
        dislikes,
        f"Ratings >= {likes:g} are likes, <= {dislikes:g} dislikes{scale}; seen: {low:g} to {high:g}.",
    )


def _preferences(events: pd.DataFrame, like_at: float, dislike_at: float) -> np.ndarray:
    """float32 [n] in {-1, 0, 1}: by rating where there is one, else by behaviour."""
    ratings, behaviour = events["rating"].to_numpy(), events["behaviour"]
    said = np.where(behaviour.isin(DISLIKING), -1, np.where(behaviour.isin(INDIFFERENT), 0, 1))
    rated = np.where(ratings >= like_at, 1, np.where(ratings <= dislike_at, -1, 0))
    return np.where(np.isfinite(ratings), rated, said).astype(np.float32)


def _rejected(log: Log, kept: np.ndarray, column: np.ndarray, reason: np.ndarray) -> pd.DataFrame:
    """Rows that were not taken, in the order of the log, with the cells they have as text."""
    import pandas as pd

    from mmrec.logs import ALIASES

    cells = log.table.filter(~kept).to_pandas().astype(object)
    rows = pd.DataFrame({"row": log.numbers[~kept], "column": column[~kept], "reason": reason[~kept]})
    for name in ALIASES:
        rows[name] = cells[name].astype(str).to_numpy() if name in cells else ""
    torn = pd.DataFrame(log.unreadable, columns=["row", "reason", "user"]).assign(column="")
    torn["user"] = torn["user"].str[:1000]
    return pd.concat([rows, torn]).fillna("").sort_values("row", kind="stable", ignore_index=True)


def _named(rejected: pd.DataFrame) -> pd.Series:
    return (rejected["column"] + " " + rejected["reason"]).str.strip()


def _in_words(rejected: pd.DataFrame, count: int) -> list[str]:
    head = rejected.head(count)
    cells = [row[row["column"]] if row["column"] else "" for _, row in head.iterrows()]
    return [
        f"row {row}: {words}{f' ({cell!r})' if cell else ''}"
        for row, words, cell in zip(head["row"], _named(head), cells, strict=True)
    ]


def _write(events: pd.DataFrame, rejected: pd.DataFrame, destination: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.string(), pa.float64()
    schema = pa.schema(
        [("user_id", text), ("item_id", text), ("timestamp", number), ("rating", pa.float32()), ("behaviour", text),
         ("preference", pa.float32())]
    )  # fmt: skip
    bad = pa.schema([("row", pa.int64())] + [(c, text) for c in rejected.columns if c != "row"])
    destination.mkdir(parents=True, exist_ok=True)
    for name, frame, fields in (("interactions", events, schema), ("rejected", rejected, bad)):
        scratch = destination / f".{name}.parquet"
        pq.write_table(pa.Table.from_pandas(frame, fields, preserve_index=False), scratch)
        os.replace(scratch, destination / f"{name}.parquet")
