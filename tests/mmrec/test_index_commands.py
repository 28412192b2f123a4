"""`mmrec index ...` from end to end, over shards and over a workspace's own embeddings layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Answer = tuple[int, str, str]


@pytest.fixture
def mmrec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run `mmrec index`: its exit code, what it said and what it complained of."""
    from mmrec.cli import main

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr("sys.argv", ["mmrec", "index", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return run


def shards(folder: Path, ids: list[str], seed: int, space: str | None) -> Path:
    """What `mmrec embed` writes: image_emb/*.npy, metadata/*.parquet and spaces.json; one item has no picture."""
    (folder / "image_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    vectors = np.random.default_rng(seed).standard_normal((len(ids), 24)).astype(np.float32)
    vectors[-1] = 0
    np.save(folder / "image_emb" / "image_emb_00000.npy", vectors)
    table = {"item_id": ids, "kind": ["fruit" if row % 3 else "boat" for row in range(len(ids))]}
    pq.write_table(pa.table(table), folder / "metadata" / "metadata_00000.parquet")
    if space is not None:
        (folder / "spaces.json").write_text(json.dumps({"image": {"space": space}}))
    return folder


def test_an_index_over_its_life(mmrec: Callable[..., Answer], tmp_path: Path) -> None:
    first = shards(tmp_path / "first", [f"a{row}" for row in range(61)], 0, "efficientnet")
    index = tmp_path / "index"
    code, said, _ = mmrec("build", first, "--out", index, "--recall", "0.9", "--memory", "1GB")
    assert code == 0
    assert "recall@10 1.0000 ± 0.0000 against exact search" in said
    assert "1 rows left out" in said
    assert "60 vectors" in said

    code, said, _ = mmrec("search", index, "--item", "a7", "--where", "kind=fruit", "-k", 3)
    assert code == 0
    assert "a7" in said
    (tmp_path / "some.txt").write_text("a3\na6\na9\n")
    said = mmrec("search", index, "--item", "a7", "--allowed", tmp_path / "some.txt", "-k", 9)[1]
    assert [line.split()[1] for line in said.splitlines() if " a" in line] == sorted(["a3", "a6", "a9"], key=said.find)

    more = shards(tmp_path / "more", ["b0", "b1", "b2"], 1, "efficientnet")
    assert mmrec("add", index, more)[1] == "2 added\n"
    assert mmrec("remove", index, "a0", "a1")[1] == "2 removed\n"
    changed = shards(tmp_path / "changed", ["a2", "a3"], 2, "efficientnet")
    assert "new vector of 'a3' is zero" in mmrec("update", index, changed)[2]
    np.save(changed / "image_emb" / "image_emb_00000.npy", np.eye(2, 24, dtype=np.float32))
    assert mmrec("update", index, changed)[1] == "2 updated\n"
    said = mmrec("info", index)[1]
    assert "60 vectors of 24 dimensions, 4 removed" in said
    assert "space: efficientnet" in said
    assert "4 (current)" in said
    assert mmrec("compact", index)[0] == 0
    assert "60 vectors of 24 dimensions, 0 removed" in mmrec("info", index)[1]
    assert mmrec("rollback", index)[1] == "version 4 answers now\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["build", "{bare}", "--out", "{out}"], "--space"),
        (["build", "{first}", "--out", "{out}", "--space", "CLIP"], "not of 'CLIP'"),
        (["build", "{first}"], "--out"),
        (["build", "{first}", "--out", "{out}", "--memory", "lots"], "--memory 1.2GB"),
        (["build", "{first}", "--out", "{out}", "--factory", "Nonsense"], "Nonsense"),
        (["build", "{first}", "--out", "{out}", "--part", "7/2"], "part 7 of 2"),
        (["build", "{first}", "--out", "{out}", "--modality", "audio"], "it has image|has image"),
        (["search", "{out}", "--item", "a"], "mmrec index build"),
        (["info", "{out}"], "mmrec index build"),
        (["build", "-w", "{out}", "--out", "{out}"], "is no workspace"),
    ],
)
def test_what_is_wrong_is_told(
    mmrec: Callable[..., Answer], tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    import re

    places = {
        "first": shards(tmp_path / "first", ["x", "y", "z"], 0, "efficientnet"),
        "bare": shards(tmp_path / "bare", ["x", "y", "z"], 0, None),
        "out": tmp_path / "out",
    }
    code, _, told = mmrec(*[argument.format(**places) for argument in arguments])
    assert code == 1
    assert re.search(complaint, told), told
    assert "Traceback" not in told


def test_vectors_of_another_space_do_not_come_in(mmrec: Callable[..., Answer], tmp_path: Path) -> None:
    mmrec("build", shards(tmp_path / "a", ["x", "y", "z"], 0, "one"), "--out", tmp_path / "index", "--factory", "Flat")
    code, _, told = mmrec("add", tmp_path / "index", shards(tmp_path / "b", ["v", "w"], 0, "two"))
    assert code == 1
    assert "'two'" in told
    assert "'one'" in told
