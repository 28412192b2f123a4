"""`kill -9` in the middle of every stage, then the same command: what lies there is what an undisturbed run writes.

Every workspace is killed at several moments, one after the other, before it may finish: at three that matter most (as
the stage begins, before its artifact is published, between that and the symlink) and at random ones, drawn by seed from
all its touches of files and a little after them. Seventy kills and more in all; every one is counted.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from kills import Moment, Warm, random_moments

from conftest import Small, shards
from mmrec.workspace import MENDS, Workspace
from retrieval.vector_store import VectorStore, versions

RANDOM = 5
TIMED = "users_per_second"
KILLED: list[str] = []
"""One entry per kill, by what was killed; the last test of this file counts them."""


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def take_away(root: Path, stage: str) -> None:
    shutil.rmtree((root / stage).resolve())
    (root / stage).unlink()


def same(stage: str, one: Path, other: Path) -> None:
    """Equal checksums of every file; where one tells its speed or its commit, equal but for that."""
    a, b = Workspace(one).require(stage), Workspace(other).require(stage)
    assert a.fingerprint == b.fingerprint
    assert set(a.files) == set(b.files)
    differ = {name for name in a.files if a.files[name] != b.files[name]}
    if stage == "evaluation":
        for name in ("metrics.parquet", "summary.parquet"):
            frames = [pd.read_parquet(artifact.path / name) for artifact in (a, b)]
            frames = [frame[frame.metric != TIMED].reset_index(drop=True) for frame in frames]
            assert len(frames[0]) > 50
            pd.testing.assert_frame_equal(*frames, check_exact=True)
        pages = [(artifact.path / "report.html").read_text(encoding="utf-8") for artifact in (a, b)]
        numberless = [re.sub(r"<footer>.*</footer>|</?[bu]>|plot-\w+|[-+\d.,e]+", "", page) for page in pages]
        assert numberless[0] == numberless[1]
        differ -= {"metrics.parquet", "summary.parquet", "report.html"}
    assert not differ


def whole(root: Path) -> None:
    """Every artifact that can be seen has the checksums it was written with."""
    workspace = Workspace(root)
    for stage in MENDS:
        workspace.current(stage)


STAGES = ["catalog", "interactions", "embeddings", "vectors", "ids", "index", "retriever", "prior", "decoder",
          "hybrid", "evaluation", "additions"]  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_run_again(stage: str, small: Small, mine: Path, warm: Warm) -> None:
    command = small.command(stage, mine)
    take_away(mine, stage)
    undisturbed = small.copy(mine.with_name("undisturbed"))
    take_away(undisturbed, stage)
    touches = warm.finish(small.command(stage, undisturbed), str(undisturbed)).touches
    same(stage, small.root, undisturbed)

    def kill(moment: Moment) -> None:
        if not warm.run(command, moment).killed:  # a resumed run has less to do, and may have been done before
            take_away(mine, stage)
            return
        KILLED.append(stage)
        whole(mine)

    kill(Moment(f".partial/{stage}-"))
    assert Workspace(mine).current(stage) is None
    for moment in random_moments(f"{stage}", str(mine), touches, RANDOM):
        kill(moment)
    if Workspace(mine).current(stage) is not None:
        take_away(mine, stage)
    shutil.rmtree(mine / ".partial")
    if stage == "embeddings":
        kill(Moment("image_emb"))
    encoded = {file.name: file.stat().st_mtime_ns for file in mine.glob(".partial/*/text_emb/text*.npy")}
    kill(Moment(f".versions/{stage}-"))
    assert Workspace(mine).current(stage) is None
    kill(Moment(f".{stage}.link"))
    finished = Workspace(mine)._finished(stage, Workspace(small.root).require(stage).fingerprint)
    assert finished is not None, "it was finished before the last kill"
    warm.finish(command)
    same(stage, small.root, mine)
    assert not list((mine / ".partial").iterdir())
    assert len(list((mine / ".versions").glob(f"{stage}-*"))) == 1
    if stage == "embeddings":
        shards = {file.name: file.stat().st_mtime_ns for file in (finished / "text_emb").iterdir()}
        assert encoded == shards, "words that were encoded before the kill were encoded again"


@pytest.mark.parametrize("what", ["images", "music"])
def test_making_for_many_people(what: str, small: Small, tmp_path: Path, warm: Warm) -> None:
    people = ["p01", "p02", "p03"]
    command = ["generate", what, "-w", str(small.root), "--users", ",".join(people), "--per-user", "1", "--steps", "2"]
    one, other = tmp_path / "one", tmp_path / "other"
    touches = warm.finish([*command, "--out", str(one)], str(one)).touches
    again = [*command, "--out", str(other)]
    begun: dict[Path, int] = {}

    def kill(moment: Moment) -> None:
        if not warm.run(again, moment).killed:
            shutil.rmtree(other)
            begun.clear()
            return
        KILLED.append("generate")
        if (other / "manifest.parquet").exists():
            same_file(one / "manifest.parquet", other / "manifest.parquet")
        begun.update({f: f.stat().st_mtime_ns for f in other.glob("p*/manifest.json")})

    for moment in random_moments(what, str(other), touches - 1, RANDOM):
        kill(moment)
    if (other / "manifest.parquet").exists():
        shutil.rmtree(other)
    kill(Moment(f".{people[1]}.part/"))
    kill(Moment(f".{people[2]}.part", 2))
    assert (other / people[1] / "manifest.json").is_file()
    assert not (other / people[2]).exists()
    kill(Moment("manifest.parquet"))
    warm.finish(again)
    assert begun == {f: f.stat().st_mtime_ns for f in other.glob("p*/manifest.json") if f in begun}, "made twice"
    names = sorted(f.relative_to(one) for f in one.rglob("*") if f.is_file())
    assert names == sorted(f.relative_to(other) for f in other.rglob("*") if f.is_file())
    for name in names:
        same_file(one / name, other / name)
    assert json.loads((one / people[0] / "manifest.json").read_text(encoding="utf-8"))[0]["user"] == people[0]


def test_a_large_index(tmp_path: Path, warm: Warm) -> None:
    """Killed while it is built, while it grows and while it shrinks; what is in place answers all the while."""
    one, other = tmp_path / "one", tmp_path / "other"
    more = shards(tmp_path / "more", range(3_000, 3_500))
    commands = [
        ["build", str(shards(tmp_path / "shards", range(3_000))), "--factory", "IVF8,SQ8", "--out"],
        ["add", str(more)],
        ["remove", "i7", "i3001"],
    ]
    for change, *rest in commands:
        command = ["index", change, *rest, str(other)] if change == "build" else ["index", change, str(other), *rest]
        touches = warm.finish([str(one) if word == str(other) else word for word in command], str(one)).touches
        before = (other / "current").resolve()
        for moment in random_moments(f"large index, {change}", str(other), touches, RANDOM):
            if not warm.run(command, moment).killed:  # it was done, or had been before the last kill
                break
            KILLED.append("large index")
            if (other / "current").exists():
                versions.verify(versions.current(other))
        if (other / "current").resolve() == before:
            warm.finish(command)
            assert not list((other / ".partial").glob("*"))
        assert VectorStore.open(other).about["files"] == VectorStore.open(one).about["files"]


def same_file(one: Path, other: Path) -> None:
    """The same bytes; of Ogg files, each of which has a serial number of its own, the same sound."""
    if one.suffix == ".ogg":
        np.testing.assert_array_equal(soundfile.read(one)[0], soundfile.read(other)[0])
    else:
        assert digest(one) == digest(other), one.name


DEMO = """
name: drawn
source: {dataset: demo, options: {pictures: 12, music: 1, seconds: 4, users: 20}}
"""


def test_preparing_a_dataset(tmp_path: Path, warm: Warm) -> None:
    """Killed while it draws, while it writes the tables and before it is called finished."""
    recipe = tmp_path / "drawn.yaml"
    recipe.write_text(DEMO, encoding="utf-8")
    one, other = tmp_path / "one", tmp_path / "other"
    beyond = ".partial/embeddings-"
    warm.kill(["run", str(recipe), "-w", str(one)], beyond)
    command = ["run", str(recipe), "-w", str(other)]
    moments = [Moment("sources/pictures", m.touch) for m in random_moments("drawn", "", 20, 2)]
    for moment in [*moments, Moment("items.jsonl"), Moment("demo.json"), Moment(beyond)]:
        if warm.run(command, moment).killed:
            KILLED.append("dataset")
    files = {
        root: {f.relative_to(root): f for f in (root / "sources").rglob("*") if f.is_file()} for root in (one, other)
    }
    assert set(files[one]) == set(files[other])
    for name, file in files[one].items():
        same_file(file, files[other][name])
    for stage in ("catalog", "interactions"):
        assert Workspace(one).require(stage).files.keys() == Workspace(other).require(stage).files.keys()
    for table in ("catalog/items.parquet", "catalog/quarantine.parquet", "interactions/interactions.parquet"):
        assert digest(one / table) == digest(other / table)


def test_it_was_killed_often_enough(request: pytest.FixtureRequest) -> None:
    if not all(request.node.session.config.getoption(name) in ("", None) for name in ("keyword", "markexpr")):
        pytest.skip("only part of the kills was asked for")
    killed = {what: KILLED.count(what) for what in KILLED}
    assert len(KILLED) >= 50, killed
    assert {*STAGES, "generate", "large index", "dataset"} <= set(killed)
