"""Full disks and folders closed to writing: every stage says so in words, and leaves what was there as it was."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from kills import Warm, limited

from conftest import Small, shards
from mmrec.errors import MmrecError
from mmrec.feedback import Feedback
from mmrec.workspace import Workspace
from retrieval.vector_store import VectorStore, versions

Mount = Callable[[Path], Path]
DISK = 48 * 2**20
PAGE = 4096
CHANGED = {
    "catalog": ["--media-root", "SOURCE"],
    "interactions": ["--like-at", "5"],
    "embeddings": ["--audio", "none"],
    "index": ["--factory", "HNSW8"],
    "evaluation": ["--seeds", "1"],
}
"""What is typed behind the command so that it has to build anew; the other stages are given another seed."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a disk can be mounted by root only: {mounted.stderr.decode().strip()}")

    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture
def small_disk(disk: Path) -> Mount:
    """Copies a workspace onto the small disk."""

    def copied(root: Path) -> Path:
        shutil.copytree(root, disk / "workspace", symlinks=True)
        return disk / "workspace"

    return copied


def otherwise(small: Small, stage: str, root: Path) -> list[str]:
    """The command of `stage` with a choice that differs, so that a new artifact has to take the place of the old."""
    if stage not in CHANGED:
        recipe = root / "recipe.yaml"
        recipe.write_text(
            recipe.read_text(encoding="utf-8") + "seed: 1\ndecoder_training: {side: 128}\n", encoding="utf-8"
        )
    if stage == "additions":
        other = small.source / "another"
        other.mkdir(exist_ok=True)
        for file in (small.source / "more").iterdir():
            shutil.copy2(file, other / f"another-{file.name}")
        return ["add", str(other), "-w", str(root)]
    extra = [word.replace("SOURCE", str(small.source)) for word in CHANGED.get(stage, [])]
    return [*small.command(stage, root), *extra]


STAGES = ["catalog", "interactions", "embeddings", "vectors", "ids", "index", "retriever", "prior", "decoder",
          "hybrid", "evaluation", "additions"]  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk(stage: str, small: Small, mine: Path, small_disk: Mount, warm: Warm) -> None:
    old = Workspace(mine).require(stage)
    root = small_disk(mine)
    warm.finish(otherwise(small, stage, mine))
    new = Workspace(mine).current(stage)
    assert new is not None
    assert new.fingerprint != old.fingerprint
    needed = sum((new.path / name).stat().st_size for name in new.files)
    command = otherwise(small, stage, root)
    ballast = root.parent / "ballast"
    for room in (0, needed // 2):
        ballast.unlink(missing_ok=True)
        ballast.write_bytes(bytes(shutil.disk_usage(root).free - room))
        ended = warm.run(command)
        assert ended.code == 1, ended.said
        assert "there is no room left to write in" in ended.said
        assert "To mend it: make room" in ended.said
        assert "Traceback" not in ended.said
        assert Workspace(root).require(stage).files == old.files, "the old artifact is not what it was"
    ballast.unlink()
    warm.finish(command)
    again = Workspace(root).current(stage)
    assert again is not None
    if stage != "additions":  # which tells of the batches by the paths where they lie
        assert again.fingerprint == new.fingerprint
    if stage != "evaluation":  # which holds how fast it was
        assert again.files == new.files
    assert not list((root / ".partial").iterdir())


def test_a_full_disk_while_making_for_many_people(small: Small, small_disk: Mount, warm: Warm) -> None:
    root = small_disk(small.root)
    out = root.parent / "out"
    command = ["generate", "images", "-w", str(root), "--users", "p01,p02", "--per-user", "1", "--steps", "2"]
    ballast = root.parent / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(root).free - 8192))
    ended = warm.run([*command, "--out", str(out)])
    assert ended.code == 1, ended.said
    assert "there is no room left to write in" in ended.said
    assert "Traceback" not in ended.said
    ballast.unlink()
    warm.finish([*command, "--out", str(out)])
    assert sorted(f.name for f in out.iterdir()) == ["job.json", "manifest.parquet", "p01", "p02"]


@pytest.mark.parametrize("change", ["build", "add", "update", "remove", "compact"])
def test_a_full_disk_under_a_large_index(change: str, disk: Path, tmp_path: Path, warm: Warm) -> None:
    """However much room there is, the version in place is whole and answers; FAISS itself does not tell of a full disk
    when it closes a file, so that a cut index could be given a checksum."""
    index, spare = disk / "index", tmp_path / "index"
    build = ["index", "build", str(shards(tmp_path / "shards", range(3_000))), "--factory", "Flat", "--out"]
    warm.finish([*build, str(index)])
    warm.finish(["index", "remove", str(index), "i0"])
    more = shards(tmp_path / "more", range(3_000, 4_000) if change == "add" else range(500, 1_500))
    changes = {"add": [str(more)], "update": [str(more)], "remove": ["i1", "i2"], "compact": []}
    command = ["index", change, str(index), *changes.get(change, [])]
    if change == "build":
        command = [*build, str(index), "--seed", "1"]
    old = VectorStore.open(index).number
    shutil.copytree(index, spare, symlinks=True)
    whole = shutil.disk_usage(disk).used
    warm.finish([str(spare) if word == str(index) else word for word in command])
    needed = sum((versions.current(spare) / name).stat().st_size for name in VectorStore.open(spare).about["files"])
    for room in (0, 1, needed // 20, needed // 4, needed // 3, needed // 2):
        (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - room // PAGE * PAGE))
        ended = warm.run(command)
        store = VectorStore.open(index)
        versions.verify(store.version)
        assert store.search(store.vectors(np.array([7])), 1, space="drawn")[1] == [[7]]
        (disk / "ballast").unlink()
        if ended.code == 0:
            assert store.number == old + 1
            break
        assert ended.code == 1, ended.said
        assert "there is no room left to write in" in ended.said
        assert "Traceback" not in ended.said
        assert store.number == old
    else:
        warm.finish(command)
    assert ended.code == 0 or change != "remove", "it should have found room: it writes little"
    assert room > 0, "a full disk was not noticed"
    assert VectorStore.open(index).about["files"] == VectorStore.open(spare).about["files"]
    assert whole < shutil.disk_usage(disk).used


@pytest.mark.parametrize("stage", ["embeddings", "vectors", "retriever", "prior", "index"])
def test_a_quota(stage: str, small: Small, mine: Path, warm: Warm) -> None:
    old = Workspace(mine).require(stage)
    command = otherwise(small, stage, mine)
    ended = warm.run(command, before=partial(limited, 1024))
    assert ended.code == 1, ended.said
    assert "there is no room left to write in" in ended.said
    assert "Traceback" not in ended.said
    assert Workspace(mine).require(stage).files == old.files


@pytest.fixture
def closed(mine: Path, small_disk: Mount) -> Iterator[Path]:
    """A workspace on a disk that may be read only: root may write everywhere else, whatever the permissions say."""
    root = small_disk(mine)
    subprocess.run(["mount", "-o", "remount,ro", root.parent], check=True)
    yield root
    subprocess.run(["mount", "-o", "remount,rw", root.parent], check=True)


def test_a_read_only_workspace(small: Small, closed: Path, warm: Warm, tmp_path: Path) -> None:
    """Every command that writes says that it cannot; whoever only asks is answered."""
    before = {f: os.stat(f).st_mtime_ns for f in closed.rglob("*") if f.is_file()}
    for stage in STAGES:
        ended = warm.run([*small.command(stage, closed), *map(str, CHANGED.get(stage, []))])
        assert ended.code == 1, f"{stage}: {ended.said}"
        assert "cannot be written in" in ended.said, ended.said
        assert "To mend it: make the folder writable" in ended.said
        assert "Traceback" not in ended.said
    for question in (["recommend", "-u", "p01"], ["search", "a blue bird"], ["imagine", "-u", "p01", "-n", "2"]):
        warm.finish([*question, "-w", str(closed)])
    warm.finish(
        ["generate", "images", "--users", "p01", "--per-user", "1", "-w", str(closed), "--out", str(tmp_path / "o")]
    )
    with pytest.raises(MmrecError, match=r"feedback.sqlite cannot be used.*\n.*writable"):
        Feedback(closed / "feedback.sqlite").add("ann", "apple", 1, "start")
    assert {f: os.stat(f).st_mtime_ns for f in closed.rglob("*") if f.is_file()} == before


def test_a_click_on_a_full_disk(small_disk: Mount, mine: Path) -> None:
    """What was answered is kept, what cannot be kept is refused, and all goes on when there is room again."""
    root = small_disk(mine)
    feedback = Feedback(root / "feedback.sqlite")
    feedback.add("ann", "first", 1, "start")
    ballast = root.parent / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(root).free))
    kept = ["first"]

    def click_on() -> None:
        for click in range(10_000):
            feedback.add("ann", f"item {click}", 1, "start")
            kept.append(f"item {click}")

    with pytest.raises(MmrecError, match=r"feedback.sqlite cannot be used: .*\n.*leave room on its disk"):
        click_on()
    ballast.unlink()
    assert list(Feedback(root / "feedback.sqlite").of("ann")) == kept
    feedback.add("ann", "last", 1, "start")
    assert list(feedback.of("ann")) == [*kept, "last"]
