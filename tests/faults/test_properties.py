"""Properties of the readers, of the trie and of fingerprints, tried on inputs drawn by hypothesis."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mmrec.catalog import Catalog, ingest_catalog
from mmrec.errors import MmrecError
from mmrec.interactions import ingest_interactions, load_histories
from mmrec.workspace import fingerprint_of
from retrieval.trie import Trie

QUICK = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

WORDS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\ufdd0\ufdd1"), max_size=12)
ROW = st.fixed_dictionaries({"id": WORDS, "title": WORDS, "text": WORDS, "colour": WORDS})
EVENT = st.fixed_dictionaries(
    {
        "user": st.sampled_from(["ann", "bob", " ann ", ""]) | WORDS,
        "item": st.sampled_from(["a", "b", "c", "a.jpg", "z", ""]),
        "time": st.integers(0, 2_000_000_000).map(str) | WORDS,
        "rating": st.sampled_from(["1", "2", "3", "4", "5", "", "nan", "x"]),
    }
)


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    """The rows in the format that the suffix names."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def strip(text: str) -> str:
    return text.strip()


@QUICK
@given(st.lists(ROW, min_size=1, max_size=8))
def test_a_catalog_is_the_same_in_every_format_and_loses_no_row(rows: list[dict[str, str]]) -> None:
    """Every row is an item, or stands in quarantine; ids are unique; the words are those that were given."""
    catalogs = []
    for suffix in (".jsonl", ".parquet", ".csv"):
        with tempfile.TemporaryDirectory() as folder:
            source = write(Path(folder) / f"items{suffix}", rows)
            try:
                report = ingest_catalog(source, Path(folder) / "out")
            except MmrecError as error:
                assert "no item that can be used" in str(error)  # noqa: PT017
                catalogs.append(None)
                continue
            catalog = Catalog.load(Path(folder) / "out")
        assert report.items + report.left_out == len(rows)
        assert len(catalog) == len(set(catalog.item_ids)) == report.items
        catalogs.append((catalog.item_ids, catalog.titles, catalog.texts, catalog.metadata))
    assert catalogs[0] == catalogs[1]
    if not any("\r" in cell for row in rows for cell in row.values()):  # CSV takes it for the end of a line
        assert catalogs[2] == catalogs[1]
    if catalogs[0] is not None:
        firsts: dict[str, dict[str, str]] = {}
        for row in rows:
            if strip(row["id"]):
                firsts.setdefault(strip(row["id"]), row)
        ids, titles, texts, _ = catalogs[0]
        assert ids == [i for i, row in firsts.items() if strip(row["title"]) or strip(row["text"])]
        assert titles == [strip(firsts[i]["title"]) for i in ids]
        assert texts == [strip(firsts[i]["text"]) for i in ids]


@QUICK
@given(st.lists(EVENT, min_size=1, max_size=12))
def test_a_log_is_the_same_in_every_format_and_loses_no_event(rows: list[dict[str, str]]) -> None:
    """Every row is kept or rejected, and histories are in the order of time, whatever the order of the rows."""
    assume(not any("\r" in row["user"] + row["time"] for row in rows))
    told = []
    for suffix in (".parquet", ".csv"):
        with tempfile.TemporaryDirectory() as folder:
            source = write(Path(folder) / f"log{suffix}", rows)
            try:
                report = ingest_interactions(source, Path(folder), ["a", "b", "c"])
            except MmrecError:
                told.append(None)
                continue
            histories = load_histories(Path(folder), {"a": 0, "b": 1, "c": 2})
        assert report.kept + report.rejected == report.rows == len(rows)
        assert sum(map(len, histories.items)) == report.kept
        for items, preferences, times in zip(histories.items, histories.preferences, histories.times, strict=True):
            assert set(items) <= {0, 1, 2}
            assert set(preferences) <= {-1, 0, 1}
            seen = times[~np.isnan(times)]
            assert (np.diff(seen) >= 0).all()
        told.append((histories.user_ids, [list(x) for x in histories.items], [list(x) for x in histories.preferences]))
    assert told[0] == told[1]


@QUICK
@given(st.binary(max_size=300), st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet"]), st.booleans())
def test_any_bytes_are_read_or_refused_in_words(data: bytes, suffix: str, named: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"items{suffix}"
        source.write_bytes((b"id,title,user,item\n" if named else b"") + data)
        for read in (ingest_catalog, lambda path, out: ingest_interactions(path, out, ["a"])):
            try:
                read(source, Path(folder) / "out")
            except MmrecError as error:
                assert error.mend  # noqa: PT017


CODES = st.integers(1, 3).flatmap(
    lambda levels: st.tuples(
        st.lists(st.integers(1, 5), min_size=levels, max_size=levels),
        st.lists(st.lists(st.integers(0, 4), min_size=levels, max_size=levels), min_size=1, max_size=25),
    )
)


@QUICK
@given(CODES, st.data())
def test_a_trie_is_a_set_of_tuples(drawn: tuple[list[int], list[list[int]]], data: st.DataObject) -> None:
    """Walked code by code it knows every prefix that an item has and no other, and which lead to permitted items."""
    sizes, raw = drawn
    codes = list(dict.fromkeys(tuple(code % size for code, size in zip(row, sizes, strict=True)) for row in raw))
    trie = Trie(np.array(codes), sizes)
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=len(codes), max_size=len(codes))))
    hidden = [np.array(data.draw(st.lists(st.integers(0, len(codes) - 1), max_size=6)), np.int64) for _ in range(2)]
    reachable = trie.reachable(allowed, hidden)
    nodes: dict[tuple[int, ...], int] = {(): 0}
    for level, size in enumerate(sizes):
        first, edges, dense = trie.first[level], trie.codes[level], trie.dense[level]
        alive, dead = reachable.alive[level], reachable.dead[level]
        for prefix, node in [(p, n) for p, n in nodes.items() if len(p) == level]:
            children = {int(edges[child]): child for child in range(int(first[node]), int(first[node + 1]))}
            items_of = {
                code: {i for i, row in enumerate(codes) if row[: level + 1] == (*prefix, code)} for code in range(size)
            }
            assert set(children) == {code for code, items in items_of.items() if items}
            if dense is not None:
                assert dense[node].tolist() == [children.get(code, -1) for code in range(size)]
            for code, child in children.items():
                nodes[*prefix, code] = child
                assert {i for i in range(len(codes)) if int(trie.path[level + 1][i]) == child} == items_of[code]
                for person in range(2):
                    closed = dead is not None and (node, child) in zip(
                        dead[0][person].tolist(), dead[1][person].tolist(), strict=True
                    )
                    open_to = any(allowed[i] and i not in hidden[person] for i in items_of[code])
                    assert ((alive is None or bool(alive[child])) and not closed) == open_to
                if level == len(sizes) - 1:
                    assert items_of[code] == {int(trie.leaf_items[child])}
    for level in range(1, len(sizes) + 1):
        known = sorted(node for prefix, node in nodes.items() if len(prefix) == level)
        assert known == list(range(trie.nodes(level))), "every node is reached by exactly one prefix"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
OPTIONS = st.dictionaries(WORDS, JSON, min_size=1, max_size=4)


@QUICK
@given(OPTIONS, st.randoms(use_true_random=False))
def test_a_fingerprint_does_not_ask_for_the_order_of_keys(options: dict[str, Any], dice: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            keys = list(value)
            dice.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return tuple(shuffled(v) for v in value) if isinstance(value, list) else value

    assert fingerprint_of(shuffled(options)) == fingerprint_of(options)


@QUICK
@given(OPTIONS, OPTIONS)
def test_a_fingerprint_changes_with_any_choice(one: dict[str, Any], other: dict[str, Any]) -> None:
    def written(value: Any) -> str:
        return json.dumps(value, sort_keys=True)

    assert (fingerprint_of(one) == fingerprint_of(other)) == (written(one) == written(other))
    for key in one:
        assert fingerprint_of({k: v for k, v in one.items() if k != key}) != fingerprint_of(one)
        assert fingerprint_of({**one, key: [one[key]]}) != fingerprint_of(one)
        if isinstance(one[key], float) and math.isfinite(one[key]):
            assert fingerprint_of({**one, key: math.nextafter(one[key], math.inf)}) != fingerprint_of(one)
