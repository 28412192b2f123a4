"""`kill -9` in the middle of every stage, then the same command: what lies there is what an undisturbed run writes.

The process dies at a chosen touch of a file, so the moments are exact and the same on every machine: as the stage
begins, in its middle (chosen by seed), before the artifact is published and between that and the symlink. The same
workspace is killed at all of them, one after the other, before it may finish.
"""

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mmrec.workspace import Workspace

TOUCHES = {"open", "os.rename", "os.mkdir", "os.symlink"}
TIMED = "users_per_second"


@pytest.fixture(scope="module")
def processes() -> Any:
    """Forks of one process that has the heavy imports behind it; they behave as a new `mmrec` process would."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["mmrec.cli", "mmrec.recommender", "mmrec.evaluation.stage", "diffusion.training", "retrieval.training"]
    )
    return context


def child(command: list[str], needle: str, nth: int, delay: float) -> None:
    """Run `mmrec COMMAND` and die `delay` seconds after the nth touch of a file with `needle` in its path."""
    left = nth

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in TOUCHES and any(needle in str(a) for a in arguments if isinstance(a, str | bytes | os.PathLike)):
            left -= 1
            if left == 0 and delay:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            elif left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    from mmrec.cli import main

    sys.addaudithook(watch)
    sys.argv = ["mmrec", *command]
    main()


def kill(processes: Any, command: list[str], needle: str, nth: int = 1, delay: float = 0.0) -> None:
    process = processes.Process(target=child, args=(command, needle, nth, delay))
    process.start()
    process.join(240)
    assert process.exitcode == -signal.SIGKILL, f"{command} did not come to touch {nth} of {needle!r}"


def finish(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from mmrec.cli import main

    monkeypatch.setattr(sys, "argv", ["mmrec", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


@pytest.fixture
def mine(tiny_workspace: Path, tmp_path: Path) -> Path:
    """A copy that reads the pictures and sounds where they are."""
    root = tmp_path / "mine"
    shutil.copytree(tiny_workspace, root, symlinks=True, ignore=shutil.ignore_patterns("sources", ".lock"))
    (root / "sources").symlink_to(tiny_workspace / "sources")
    return root


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


STAGES = [
    ("catalog", ["run"], []),
    ("interactions", ["run"], []),
    ("embeddings", ["embed"], [("image_00000.json", 1, 0.0)]),
    ("vectors", ["embed"], []),
    ("ids", ["tokenize"], []),
    ("index", ["index", "build"], []),
    ("retriever", ["train", "retriever"], [("checkpoint.pt", 2, 0.0)]),
    ("prior", ["train", "prior"], [("training.safetensors", 2, 0.0), ("training.safetensors", 1, 0.1)]),
    ("decoder", ["train", "decoder"], []),
    ("evaluation", ["evaluate"], [("regression/training.safetensors", 2, 0.0)]),
]


@pytest.mark.parametrize(("stage", "command", "middle"), STAGES, ids=[stage for stage, _, _ in STAGES])
def test_killed_and_run_again(
    stage: str,
    command: list[str],
    middle: list[tuple[str, int, float]],
    tiny_workspace: Path,
    mine: Path,
    processes: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [*command, "-w", str(mine)]
    take_away(mine, stage)
    begins = f".partial/{stage}-"
    kill(processes, command, begins)
    kill(processes, command, begins, random.Random(stage).randint(2, 4))
    assert Workspace(mine).current(stage) is None, "half an artifact can be seen"
    for needle, nth, delay in middle:
        kill(processes, command, needle, nth, delay)
    finished = {file: file.stat().st_mtime_ns for file in mine.glob(".partial/*/text_emb/text_emb_*.npy")}
    kill(processes, command, f".versions/{stage}-")
    assert Workspace(mine).current(stage) is None
    kill(processes, command, f".{stage}.link")
    whole = Workspace(mine)._finished(stage, Workspace(tiny_workspace).require(stage).fingerprint)
    assert whole is not None, "it was finished before the last kill"
    finish(command, monkeypatch)
    same(stage, tiny_workspace, mine)
    assert not list((mine / ".partial").iterdir())
    assert len(list((mine / ".versions").glob(f"{stage}-*"))) == 1
    if stage == "embeddings":
        assert finished, "nothing of the killed run was left to go on with"
        assert (whole / "text_emb" / "text_emb_00000.npy").stat().st_mtime_ns in finished.values()


SOURCES = """
name: small
source: {dataset: demo, options: {pictures: 12, music: 1, seconds: 4, users: 20}}
"""


def test_preparing_a_dataset(tmp_path: Path, processes: Any) -> None:
    """Killed while it draws, while it writes the tables and before it is called finished."""
    recipe = tmp_path / "small.yaml"
    recipe.write_text(SOURCES, encoding="utf-8")
    one, other = tmp_path / "one", tmp_path / "other"
    beyond = ".partial/embeddings-"
    kill(processes, ["run", str(recipe), "-w", str(one)], beyond)
    command = ["run", str(recipe), "-w", str(other)]
    for needle, nth in (("sources/pictures", random.Random(0).randint(3, 20)), ("items.jsonl", 1), ("demo.json", 2)):
        kill(processes, command, needle, nth)
    kill(processes, command, beyond)
    files = {
        root: {f.relative_to(root): f for f in (root / "sources").rglob("*") if f.is_file()} for root in (one, other)
    }
    assert set(files[one]) == set(files[other])
    for name, file in files[one].items():
        if file.suffix == ".ogg":  # each Ogg stream has a serial number of its own
            import soundfile

            np.testing.assert_array_equal(soundfile.read(file)[0], soundfile.read(files[other][name])[0])
        else:
            assert file.read_bytes() == files[other][name].read_bytes(), name
    for stage in ("catalog", "interactions"):
        assert Workspace(one).require(stage).files.keys() == Workspace(other).require(stage).files.keys()
    tables = ("catalog/items.parquet", "catalog/quarantine.parquet", "interactions/interactions.parquet")
    for table in tables:
        assert digest(one / table) == digest(other / table)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_new_items(tiny_workspace: Path, mine: Path, tmp_path: Path, processes: Any, monkeypatch: Any) -> None:
    """Killed while it reads, encodes and publishes."""
    folder = tmp_path / "new"
    folder.mkdir()
    picture = next((tiny_workspace / "sources" / "pictures").glob("*.png"))
    shutil.copy2(picture, folder / "twin.png")
    (folder / "twin.txt").write_text("Twin: a picture seen before")
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(mine, undisturbed, symlinks=True)
    finish(["add", str(folder), "-w", str(undisturbed)], monkeypatch)
    command = ["add", str(folder), "-w", str(mine)]
    for needle, nth in ((".partial/additions-", 3), (".vectors.npy", 1), (".versions/additions-", 1)):
        kill(processes, command, needle, nth)
        assert Workspace(mine).current("additions") is None
    finish(command, monkeypatch)
    same("additions", undisturbed, mine)


@pytest.mark.parametrize("what", ["images", "music"])
def test_making_for_many_people(
    what: str, tiny_workspace: Path, tmp_path: Path, processes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmrec import Recommender

    people = Recommender.load(tiny_workspace).histories.user_ids[:3]
    command = [
        "generate",
        what,
        "-w",
        str(tiny_workspace),
        "--users",
        ",".join(people),
        "--per-user",
        "1",
        "--steps",
        "2",
    ]
    one, other = tmp_path / "one", tmp_path / "other"
    finish([*command, "--out", str(one)], monkeypatch)
    again = [*command, "--out", str(other)]
    kill(processes, again, f".{people[1]}.part/")
    kill(processes, again, f".{people[2]}.part", 2)
    assert (other / people[1] / "manifest.json").is_file()
    assert not (other / people[2]).exists()
    assert not (other / "manifest.parquet").exists()
    made = (other / people[0] / "manifest.json").stat().st_mtime_ns
    finish(again, monkeypatch)
    assert (other / people[0] / "manifest.json").stat().st_mtime_ns == made, "made a second time"
    names = sorted(f.relative_to(one) for f in one.rglob("*") if f.is_file())
    assert names == sorted(f.relative_to(other) for f in other.rglob("*") if f.is_file())
    for name in names:
        if name.suffix == ".ogg":
            import soundfile

            np.testing.assert_array_equal(soundfile.read(one / name)[0], soundfile.read(other / name)[0])
        else:
            assert digest(one / name) == digest(other / name), name
    assert json.loads((one / people[0] / "manifest.json").read_text(encoding="utf-8"))[0]["user"] == people[0]
