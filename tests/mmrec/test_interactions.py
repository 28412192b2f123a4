import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrec.errors import InteractionsError
from mmrec.interactions import Histories, by_time, ingest_interactions, leave_one_out, load_histories

ITEMS = ["a", "b", "c", "d"]
INDEX = {item: i for i, item in enumerate(ITEMS)}


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def kept(directory: Path) -> pd.DataFrame:
    return pd.read_parquet(directory / "interactions.parquet")


def rejected(directory: Path) -> list[tuple[int, str, str]]:
    frame = pd.read_parquet(directory / "rejected.parquet")
    return list(frame[["row", "column", "reason"]].itertuples(index=False, name=None))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_log_reads_the_same_whatever_its_format(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"User ID": "u1", "movieId": "a", "timestamp": 1577836801, "rating": 5, "behavior": "View"},
        {"User ID": "u2", "movieId": "b", "timestamp": 1577836802, "rating": 3, "behavior": ""},
        {"User ID": "u1", "movieId": "c", "timestamp": 1577836800, "rating": 1, "behavior": "click"},
    ]
    frame, path = pd.DataFrame(rows), tmp_path / f"log{suffix}"
    if suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    report = ingest_interactions(path, tmp_path / "out", ITEMS)
    assert (report.rows, report.kept, report.rejected, report.users, report.items) == (3, 3, 0, 2, 3)
    assert kept(tmp_path / "out").to_dict("list") == {
        "user_id": ["u1", "u2", "u1"],
        "item_id": ["a", "b", "c"],
        "timestamp": [1577836801.0, 1577836802.0, 1577836800.0],
        "rating": [5.0, 3.0, 1.0],
        "behaviour": ["view", "", "click"],
        "preference": [1.0, 0.0, -1.0],
    }
    h = load_histories(tmp_path / "out", INDEX)
    assert h.user_ids == ["u1", "u2"]
    assert [items.tolist() for items in h.items] == [[2, 0], [1]]  # oldest first
    assert [p.tolist() for p in h.preferences] == [[-1, 1], [0]]
    assert (h.items[0].dtype, h.preferences[0].dtype, h.times[0].dtype) == (np.int64, np.float32, np.float64)


def test_every_bad_row_is_rejected_with_its_line_column_and_reason(tmp_path: Path) -> None:
    log = write(
        tmp_path / "log.csv",
        b"user,item,time,rating,behaviour\n"
        b"u1,a,2020-01-01,5,\n"
        b"u1,b,2020-01-02T10:00:00Z,nan,\n"  # 3
        b"\n"
        b"u1,zz,1,5,\n"  # 5
        b"u1,b\n"  # 6
        b"u2,a,yesterday,3,\n"  # 7
        b",a,1,3,\n"  # 8
        b"u2,b,1577836800,1,\n"
        b"u2,b,1577836800,1,\n"  # 10
        b"u3,\xff\xfe,1577836800,2,\n"  # 11
        b"u3,a,1577836800,,skip\n"
        b"u3,b,1577836800,,\n"  # 13
        b"u3,b,1577836800,inf,\n"  # 14
        b"u3,b,,3,\n"  # 15
        b"u3,,1,3,\n"  # 16
        b"u3,b,1577836800,1e39,\n",  # 17: no float32 holds it
    )
    report = ingest_interactions(log, tmp_path / "out", ITEMS)
    assert rejected(tmp_path / "out") == [
        (3, "rating", "is not a finite number"),
        (5, "item", "is not in the catalog"),
        (6, "", "has 2 cells where the header has 5"),
        (7, "time", "cannot be read as a time"),
        (8, "user", "is empty"),
        (10, "", "is the very same event as an earlier row"),
        (11, "", "is not UTF-8"),
        (13, "rating", "is empty"),
        (14, "rating", "is not a finite number"),
        (15, "time", "is empty"),
        (16, "item", "is empty"),
        (17, "rating", "is not a finite number"),
    ]
    assert kept(tmp_path / "out")["user_id"].tolist() == ["u1", "u2", "u3"]
    assert kept(tmp_path / "out")["preference"].tolist() == [1, -1, -1]
    assert (report.rows, report.kept, report.rejected) == (15, 3, 12)
    assert report.reasons["rating is not a finite number"] == 3
    assert "row 5: item is not in the catalog ('zz')" in str(report)


def test_broken_json_lines_are_rejected_and_the_rest_read(tmp_path: Path) -> None:
    lines = ['{"user": 1, "item": "a", "rating": 4}', "{broken", '{"user": 2, "item": "b", "rating": NaN}', "[]"]
    report = ingest_interactions(write(tmp_path / "log.jsonl", "\n".join(lines)), tmp_path / "out", ITEMS)
    assert [row for row, _, _ in rejected(tmp_path / "out")] == [2, 3, 4]
    assert (report.kept, report.rejected) == (1, 3)


def test_a_missing_column_is_named_with_those_found_and_the_mend(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "who,item\nu,a\n")
    with pytest.raises(InteractionsError) as caught:
        ingest_interactions(log, tmp_path / "out", ITEMS)
    assert "no column 'user'" in str(caught.value)
    assert "who, item" in str(caught.value)
    assert "=user" in caught.value.mend
    assert ingest_interactions(log, tmp_path / "out", ITEMS, columns={"who": "user"}).kept == 1


def test_a_log_of_another_catalog_is_refused(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "user,item\nu,x\nv,y\n")
    with pytest.raises(InteractionsError) as caught:
        ingest_interactions(log, tmp_path / "out", ITEMS)
    assert "row 2: item is not in the catalog ('x')" in str(caught.value)
    assert "catalog it belongs to" in caught.value.mend
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["nowhere.csv", "log.xlsx", "empty.csv", "bad.parquet", "header.csv"])
def test_what_is_no_log_says_so(tmp_path: Path, name: str) -> None:
    for made, text in (("log.xlsx", "x"), ("empty.csv", ""), ("bad.parquet", "PAR1"), ("header.csv", "user,item\n")):
        write(tmp_path / made, text)
    with pytest.raises(InteractionsError) as caught:
        ingest_interactions(tmp_path / name, tmp_path / "out", ITEMS)
    assert caught.value.mend


@pytest.mark.parametrize(
    ("ratings", "preferences"),
    [
        ([1, 2, 3, 4, 5], [-1, -1, 0, 1, 1]),
        ([3, 4, 5, 5, 5], [0, 1, 1, 1, 1]),
        ([0.5, 1.5, 3.5, 4, 5], [-1, -1, 0, 1, 1]),
        ([1, 3, 5, 8, 10], [-1, -1, 0, 1, 1]),
        ([0.5, 2, 2.5, 4, 5], [-1, -1, 0, 1, 1]),
        ([1, 2, 4, 6, 7], [-1, -1, 0, 1, 1]),
        ([10, 25, 50, 75, 100], [-1, -1, 0, 1, 1]),
        ([-1, 0, 1, 1, 1], [-1, 0, 1, 1, 1]),
        ([0, 1, 1, 0, 1], [0, 1, 1, 0, 1]),
        ([-10, -5, 0, 5, 10], [-1, -1, 0, 1, 1]),
        ([0.0, 0.1, 0.5, 0.8, 0.9], [-1, -1, 0, 1, 1]),
    ],
)
def test_likes_are_read_off_the_scale(tmp_path: Path, ratings: list[float], preferences: list[float]) -> None:
    rows = "".join(f"u{i},a,{rating}\n" for i, rating in enumerate(ratings))
    report = ingest_interactions(write(tmp_path / "log.csv", "user,item,rating\n" + rows), tmp_path / "out", ITEMS)
    assert kept(tmp_path / "out")["preference"].tolist() == preferences
    assert "like" in report.how[0]


def test_thresholds_can_be_given_and_must_be_where_the_scale_is_unknown(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "user,item,rating\nu,a,3\nu,b,500\nu,c,20\n")
    with pytest.raises(InteractionsError, match="--like-at"):
        ingest_interactions(log, tmp_path / "out", ITEMS)
    ingest_interactions(log, tmp_path / "out", ITEMS, like_at=20)
    assert kept(tmp_path / "out")["preference"].tolist() == [0, 1, 1]
    ingest_interactions(log, tmp_path / "out", ITEMS, like_at=20, dislike_at=3)
    assert kept(tmp_path / "out")["preference"].tolist() == [-1, 1, 1]
    stars = write(tmp_path / "stars.csv", "user,item,rating\nu,a,1\nu,b,2\nu,c,5\n")
    ingest_interactions(stars, tmp_path / "out", ITEMS, like_at=2)  # the dislikes of the scale give way
    assert kept(tmp_path / "out")["preference"].tolist() == [0, 1, 1]
    with pytest.raises(InteractionsError, match="--dislike-at below"):
        ingest_interactions(log, tmp_path / "out", ITEMS, like_at=3, dislike_at=20)


def test_without_ratings_the_behaviour_decides(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "user,item,event\nu,a,Play\nu,b,Not interested\nu,c,impression\nu,d,\n")
    ingest_interactions(log, tmp_path / "out", ITEMS)
    assert kept(tmp_path / "out")["preference"].tolist() == [1, -1, 0, 1]
    assert kept(tmp_path / "out")["rating"].isna().all()


@pytest.mark.parametrize(
    "cell", ["1600000000", "1600000000000", "1600000000000000", "2020-09-13T12:26:40Z", "2020-09-13T14:26:40+02:00"]
)
def test_times_are_seconds_whatever_they_were(tmp_path: Path, cell: str) -> None:
    log = write(tmp_path / "log.csv", f"user,item,time\nu,a,{cell}\nu,b,{cell}\n")
    ingest_interactions(log, tmp_path / "out", ITEMS)
    assert kept(tmp_path / "out")["timestamp"].tolist() == [1.6e9, 1.6e9]


def test_typed_times_and_numbered_ids_of_parquet(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "user": pd.Categorical(["x", "y", "x"]),
            "item": [1.0, 2.0, None],
            "time": pd.to_datetime(["2020-09-13T12:26:40", "2020-09-13T12:26:41", "2020-09-13T00:00:00"]),
        }
    )
    frame.to_parquet(tmp_path / "log.parquet")
    ingest_interactions(tmp_path / "log.parquet", tmp_path / "out", ["1", "2"])
    assert kept(tmp_path / "out")["item_id"].tolist() == ["1", "2"]
    assert kept(tmp_path / "out")["timestamp"].tolist() == [1.6e9, 1.6e9 + 1]
    assert rejected(tmp_path / "out") == [(3, "item", "is empty")]


def test_files_name_items_and_truth_is_a_rating(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "user,item,liked\nu,a.JPG,true\nu,b.wav,False\nu,zz.jpg,true\n")
    report = ingest_interactions(log, tmp_path / "out", ITEMS)
    assert kept(tmp_path / "out")["item_id"].tolist() == ["a", "b"]
    assert kept(tmp_path / "out")["preference"].tolist() == [1, 0]
    assert rejected(tmp_path / "out") == [(4, "item", "is not in the catalog")]
    assert "2 rows name an item by its file" in str(report)
    assert ingest_interactions(log, tmp_path / "out", [*ITEMS, "a.JPG"]).kept == 2
    assert kept(tmp_path / "out")["item_id"].tolist() == ["a.JPG", "b"]


def test_odd_columns_of_typed_tables(tmp_path: Path) -> None:
    ids = pa.array([b"u1", b"\xff", None]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"b", b"\xfe"]).buffers())  # not checked by Parquet
    pq.write_table(pa.table({"user": ids, "item": text}), tmp_path / "log.parquet")
    ingest_interactions(tmp_path / "log.parquet", tmp_path / "out", ITEMS)
    assert kept(tmp_path / "out")["user_id"].tolist() == ["u1"]
    assert [(row, why) for row, _, why in rejected(tmp_path / "out")] == [(2, "is not UTF-8"), (3, "is not UTF-8")]
    pq.write_table(pa.table({"user": [["u"]], "item": ["a"]}), tmp_path / "list.parquet")
    with pytest.raises(InteractionsError, match="'user' holds list"):
        ingest_interactions(tmp_path / "list.parquet", tmp_path / "out", ITEMS)
    dated = write(
        tmp_path / "dated.jsonl", '{"user": "2020-01-01", "item": "a"}\n{"user": "2020-01-02", "item": "b"}\n'
    )
    ingest_interactions(dated, tmp_path / "out", ITEMS)
    assert kept(tmp_path / "out")["user_id"].tolist() == ["2020-01-01", "2020-01-02"]


def test_without_times_the_order_of_the_log_is_the_order(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "user,item\nu,c\nv,a\nu,a\nu,b\n")
    ingest_interactions(log, tmp_path / "out", ITEMS)
    h = load_histories(tmp_path / "out", INDEX)
    assert [items.tolist() for items in h.items] == [[2, 0, 1], [0]]
    with pytest.raises(InteractionsError, match="time column"):
        by_time(h)


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_a_log_in_the_order_of_its_items_is_told_of(tmp_path: Path, share: float) -> None:
    """Everybody's last item is one of the last of the catalog then, which popularity foretells."""
    random, items = np.random.default_rng(0), [f"i{n}" for n in range(40)]
    people = [[item for item in items if random.random() < share] for _ in range(20)]

    def told(people: list[list[str]], head: str = "user,item", more: str = "") -> str:
        rows = [f"u{person},{item}{more}" for person, chosen in enumerate(people) for item in chosen]
        log = write(tmp_path / "log.csv", "\n".join([head, *rows]))
        return str(ingest_interactions(log, tmp_path / "out", items))

    assert "same order" in told(people)
    assert "same order" not in told([random.permutation(chosen).tolist() for chosen in people])
    assert "same order" not in told(people, "user,item,time", ",2020-01-01")


def test_histories_of_another_catalog_are_refused(tmp_path: Path) -> None:
    ingest_interactions(write(tmp_path / "log.csv", "user,item\nu,c\n"), tmp_path / "out", ITEMS)
    with pytest.raises(InteractionsError, match="'c'"):
        load_histories(tmp_path / "out", {"a": 0})
    with pytest.raises(InteractionsError, match="mmrec ingest"):
        load_histories(tmp_path, INDEX)


def test_leave_one_out_on_a_history_one_can_follow() -> None:
    def person(items: list[int], preferences: list[float]) -> tuple[np.ndarray, ...]:
        return np.array(items), np.array(preferences, np.float32), np.arange(len(items), dtype=np.float64)

    people = [
        person([0, 1, 2, 3, 4, 5, 6], [1, -1, 1, 0, 1, -1, 1]),
        person([0, 1, 2], [1, 1, -1]),  # two wanted: not asked about
        person([0, 1, 2, 0, 0], [1, 1, 1, 1, 1]),  # 0 is met again: no target
    ]
    split = leave_one_out(Histories(["p", "q", "r"], *(list(column) for column in zip(*people, strict=True))))
    assert split.train.user_ids == ["p", "q", "r"]
    assert [items.tolist() for items in split.train.items] == [[0, 1, 2, 3], [0, 1, 2], [0]]
    assert split.valid.users.tolist() == split.test.users.tolist() == [0, 2]
    assert [items.tolist() for items in split.valid.histories] == [[0, 1, 2, 3], [0]]
    assert [items.tolist() for items in split.valid.targets] == [[4], [1]]
    assert [items.tolist() for items in split.test.histories] == [[0, 1, 2, 3, 4, 5], [0, 1]]
    assert split.test.preferences[0].tolist() == [1, -1, 1, 0, 1, -1]
    assert [items.tolist() for items in split.test.targets] == [[6], [2]]


@st.composite
def logs(draw: st.DrawFn) -> pd.DataFrame:
    events = st.tuples(
        st.sampled_from(["u1", "u2", "u3", ""]),
        st.sampled_from([*ITEMS, "unknown"]),
        st.sampled_from(["0", "5", "7", "12", "2020-01-01", "soon", ""]),
        st.sampled_from(["1", "3", "4", "5", "nan", "-inf", ""]),
    )
    return pd.DataFrame(draw(st.lists(events, min_size=1, max_size=40)), columns=["user", "item", "time", "rating"])


def sane(event: dict[str, str]) -> bool:
    return (
        event["user"] != ""
        and event["item"] in ITEMS
        and event["time"] not in ("soon", "")
        and event["rating"] not in ("nan", "-inf", "")
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=logs())
def test_every_row_of_a_log_is_kept_or_rejected_and_none_twice(tmp_path: Path, log: pd.DataFrame) -> None:
    log = pd.concat([log, pd.DataFrame([("u0", "a", "1", "5"), ("u0", "b", "2", "1")], columns=log.columns)])
    log.to_csv(tmp_path / "log.csv", index=False)
    report = ingest_interactions(tmp_path / "log.csv", tmp_path / "out", ITEMS)
    good = [tuple(event.values()) for event in log.to_dict("records") if sane(event)]
    events = kept(tmp_path / "out")
    assert report.kept == len(events) == len(set(good))
    assert report.kept + report.rejected == len(log)
    assert len(rejected(tmp_path / "out")) == report.rejected
    assert len({row for row, _, _ in rejected(tmp_path / "out")}) == report.rejected

    def seconds(cell: str) -> float:
        return float(cell) if cell.isdigit() else datetime.fromisoformat(cell).replace(tzinfo=UTC).timestamp()

    expected = Counter((user, item, seconds(time), float(rating)) for user, item, time, rating in set(good))
    assert Counter(events[["user_id", "item_id", "timestamp", "rating"]].itertuples(index=False, name=None)) == expected
    preferences = {5.0: 1, 4.0: 1, 3.0: 0, 1.0: -1}
    assert events["preference"].tolist() == [preferences[rating] for rating in events["rating"]]
    h = load_histories(tmp_path / "out", INDEX)
    assert sum(map(len, h.items)) == len(events)
    assert all((np.diff(times) >= 0).all() for times in h.times)
    assert json.loads(json.dumps(report.reasons)) == report.reasons


@st.composite
def people(draw: st.DrawFn) -> Histories:
    histories = draw(
        st.lists(
            st.lists(st.tuples(st.integers(0, 8), st.sampled_from([-1, 0, 1]), st.integers(0, 30)), max_size=15),
            min_size=1,
            max_size=6,
        ).filter(lambda found: any(found))
    )
    ordered = [sorted(events, key=lambda event: event[2]) for events in histories]
    return Histories(
        [f"u{i}" for i in range(len(ordered))],
        [np.array([event[0] for event in events], np.int64) for events in ordered],
        [np.array([event[1] for event in events], np.float32) for events in ordered],
        [np.array([event[2] for event in events], np.float64) for events in ordered],
    )


@settings(max_examples=80, deadline=None)
@given(h=people())
def test_leave_one_out_leaks_nothing(h: Histories) -> None:
    split = leave_one_out(h)
    asked = {int(u): q for q, u in enumerate(split.test.users)}
    for u in range(len(h)):
        wanted = {int(item) for item, p in zip(h.items[u], h.preferences[u], strict=True) if p > 0}
        if u not in asked:
            assert split.train.items[u].tolist() == h.items[u].tolist()
            continue
        q = asked[u]
        known, target = split.test.histories[q], int(split.test.targets[q][0])
        earlier, before = split.valid.histories[q], int(split.valid.targets[q][0])
        assert known.tolist() == h.items[u][: len(known)].tolist()  # what came first, and no more
        assert h.items[u][len(known)] == target
        assert h.preferences[u][len(known)] > 0
        assert target not in known
        assert before not in earlier
        assert before in known
        assert len(earlier) < len(known)
        assert target in wanted
        assert split.train.items[u].tolist() == earlier.tolist()
        assert len(split.train.items[u]) == len(split.train.preferences[u]) == len(split.train.times[u])
        assert (split.train.preferences[u] > 0).any()


@settings(max_examples=80, deadline=None)
@given(h=people())
def test_a_refit_learns_from_all_but_the_test_and_asks_only_for_what_it_knows(h: Histories) -> None:
    chosen, again = leave_one_out(h), leave_one_out(h, refit=True)
    assert len(again.valid) == 0
    known = {int(item) for items in again.train.items for item in items}
    asked = dict(zip(again.test.users.tolist(), again.test.targets, strict=True))
    for u, history, targets in zip(chosen.test.users, chosen.test.histories, chosen.test.targets, strict=True):
        assert again.train.items[u].tolist() == history.tolist()  # the validation event too
        assert (int(u) in asked) == (int(targets[0]) in known)
    assert set(asked) <= set(chosen.test.users.tolist())
    for u in set(range(len(h))) - set(chosen.test.users.tolist()):
        assert again.train.items[u].tolist() == h.items[u].tolist()


@settings(max_examples=80, deadline=None)
@given(h=people(), valid=st.sampled_from([0.0, 0.1, 0.3]), test=st.sampled_from([0.1, 0.4]))
def test_by_time_never_shows_what_comes_after_the_cut(h: Histories, valid: float, test: float) -> None:
    split = by_time(h, valid, test)
    trained = np.concatenate(split.train.times)
    for u in range(len(h)):
        assert split.train.items[u].tolist() == h.items[u][: len(split.train.items[u])].tolist()
    first_cut = min((t for times in h.times for t in times if not len(trained) or t > trained.max()), default=np.inf)
    for queries in (split.valid, split.test):
        for u, known, targets in zip(queries.users, queries.histories, queries.targets, strict=True):
            cut = len(known)
            assert known.tolist() == h.items[u][:cut].tolist()
            assert len(targets) == len(set(targets.tolist())) >= 1
            assert not set(targets.tolist()) & set(known.tolist())
            for target in targets:
                at = [k for k in range(cut, len(h.items[u])) if h.items[u][k] == target and h.preferences[u][k] > 0]
                assert at
                assert h.times[u][at[0]] >= first_cut
    test_histories = [h.times[u][: len(known)] for u, known in zip(split.test.users, split.test.histories, strict=True)]
    if test_histories:  # one moment for everyone: no known event is later than any event that is held out
        latest = max((times.max() for times in test_histories if len(times)), default=-np.inf)
        earliest = min(h.times[u][len(known)] for u, known in zip(split.test.users, split.test.histories, strict=True))
        assert latest < earliest


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    h = Histories(["u"], [np.array([0])], [np.ones(1, np.float32)], [np.zeros(1)])
    for valid, test in ((0.5, 0.5), (0.1, 0.0), (-0.1, 0.2)):
        with pytest.raises(ValueError):
            by_time(h, valid, test)


def test_a_torn_row_that_is_not_utf8_is_rejected_too(tmp_path: Path) -> None:
    """One cell too few and bytes that are no text: pyarrow hands such a row to nobody."""
    log = tmp_path / "log.csv"
    log.write_bytes(b"user,item,rating\nann,cat,5\n" + b"b\xf6b\nj\xfcrg,cat,4\n" + "zoë,dog,5\n".encode())
    report = ingest_interactions(log, tmp_path, ["cat", "dog"])
    assert (report.rows, report.kept, report.rejected) == (4, 2, 2)
    rejected = pd.read_parquet(tmp_path / "rejected.parquet")
    assert list(rejected["row"]) == [3, 4]
    assert list(rejected["reason"]) == ["has 1 cells where the header has 3", "is not UTF-8"]
    assert list(pd.read_parquet(tmp_path / "interactions.parquet")["user_id"]) == ["ann", "zoë"]
