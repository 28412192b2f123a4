import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mmrec.errors import MmrecError, StaleArtifact
from mmrec.workspace import CHECKPOINTS, Workspace, fingerprint_of, fingerprint_of_source, write_text


def writes(text: str, calls: list[str] | None = None):
    def write(folder: Path) -> None:
        if calls is not None:
            calls.append(text)
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "a.txt").write_text(text)
        (folder / "deep" / "b.txt").write_text(text * 2)

    return write


def content(workspace: Workspace, stage: str) -> str:
    return (workspace.require(stage).path / "a.txt").read_text()


def chain(root: Path, source: str = "one") -> Workspace:
    """Three stages, each made from the one before."""
    workspace = Workspace(root)
    catalog, _ = workspace.build("catalog", {"source": source}, {}, writes(f"catalog {source}"))
    vectors, _ = workspace.build("vectors", {"catalog": catalog.fingerprint}, {}, writes(f"vectors {source}"))
    workspace.build("ids", {"vectors": vectors.fingerprint}, {}, writes(f"ids {source}"))
    return workspace


def test_fresh_is_skipped_and_every_change_builds_again(tmp_path: Path) -> None:
    workspace, calls = Workspace(tmp_path), []
    tries = [({"source": "x"}, {"n": 1}), ({"source": "x"}, {"n": 1}), ({"source": "x"}, {"n": 2})]
    tries += [({"source": "y"}, {"n": 2}), ({"source": "y"}, {"n": 2})]
    built = [
        workspace.build("catalog", inputs, options, writes(f"{inputs}{options}", calls))[1] for inputs, options in tries
    ]
    assert built == [True, False, True, True, False]
    assert len(calls) == 3
    assert content(workspace, "catalog") == calls[-1]
    assert [v.name for v in (tmp_path / ".versions").iterdir()] == [workspace.require("catalog").path.name]
    assert Workspace(tmp_path).build("catalog", *tries[-1], writes("never"))[1] is False, "another process"


def test_the_same_fingerprint_whatever_the_order_of_options_and_types_of_paths() -> None:
    assert fingerprint_of({"a": 1, "b": (2, Path("c"))}) == fingerprint_of({"b": [2, "c"], "a": 1})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})


def test_the_artifact_says_what_it_was_made_from(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    made, _ = workspace.build("catalog", {"source": "x"}, {"root": Path("m"), "n": (1, 2)}, writes("t"))
    read = Workspace(tmp_path).require("catalog")
    assert read == made
    assert read.inputs == {"source": "x"}
    assert read.options == {"root": "m", "n": [1, 2]}
    assert set(read.files) == {"a.txt", "deep/b.txt"}
    assert all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in read.files.values())


def test_absent_is_refused_with_the_command(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    assert workspace.current("ids") is None
    with pytest.raises(StaleArtifact, match=f"has no ids yet\nTo mend it: mmrec tokenize -w {tmp_path / 'w'}"):
        workspace.require("ids")
    assert not (tmp_path / "w").exists(), "reading wrote something"


def test_stale_is_refused_with_the_command_however_deep(tmp_path: Path) -> None:
    workspace = chain(tmp_path)
    assert content(workspace, "ids") == "ids one"
    catalog, _ = workspace.build("catalog", {"source": "two"}, {}, writes("catalog two"))
    with pytest.raises(StaleArtifact, match=r"vectors was made from catalog .*\n.*mmrec embed"):
        workspace.require("ids")
    workspace.build("vectors", {"catalog": catalog.fingerprint}, {}, writes("vectors two"))
    with pytest.raises(StaleArtifact, match=r"ids was made from vectors .*stale.*\n.*mmrec tokenize -w"):
        workspace.require("ids")


@pytest.mark.parametrize("how", ["as a folder", "as a version"])
def test_an_artifact_of_another_catalog_is_refused_and_the_named_command_mends_it(tmp_path: Path, how: str) -> None:
    mine, other = chain(tmp_path / "mine", "one"), chain(tmp_path / "other", "two")
    (mine.root / "ids").unlink()
    if how == "as a folder":
        shutil.copytree(other.root / "ids", mine.root / "ids")
    else:
        version = other.require("ids").path
        shutil.copytree(version, mine.root / ".versions" / version.name)
        (mine.root / "ids").symlink_to(f".versions/{version.name}")
    reopened = Workspace(mine.root)
    with pytest.raises(StaleArtifact, match=r"another catalog\n.*mmrec tokenize"):
        reopened.require("ids")
    vectors = reopened.require("vectors").fingerprint
    assert reopened.build("ids", {"vectors": vectors}, {}, writes("ids one"))[1] is True
    assert content(Workspace(mine.root), "ids") == "ids one"
    assert len(list((mine.root / ".versions").glob("ids-*"))) == 1


def test_the_artifact_of_another_stage_is_refused(tmp_path: Path) -> None:
    workspace = chain(tmp_path)
    (tmp_path / "ids").unlink()
    (tmp_path / "ids").symlink_to(os.readlink(tmp_path / "vectors"))
    with pytest.raises(StaleArtifact, match="holds the artifact of stage 'vectors'"):
        Workspace(workspace.root).require("ids")


def test_a_folder_of_ones_own_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.txt").write_text("years of work")
    with pytest.raises(MmrecError, match=r"is in the way.*\n.*move"):
        Workspace(tmp_path).build("index", {}, {}, lambda folder: pytest.fail("began although it cannot end"))
    assert (tmp_path / "index" / "thesis.txt").read_text() == "years of work"


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("harm", [flip, Path.unlink], ids=["a bit is flipped", "a file is gone"])
@pytest.mark.parametrize("name", ["a.txt", "deep/b.txt"])
def test_damage_is_caught_and_mended(tmp_path: Path, harm, name: str) -> None:
    chain(tmp_path)
    harm(tmp_path / "vectors" / name)
    workspace = Workspace(tmp_path)
    with pytest.raises(StaleArtifact, match=rf"{name} is missing or not what was written\n.*mmrec embed"):
        workspace.require("vectors")
    with pytest.raises(StaleArtifact, match="vectors is damaged"):
        workspace.require("ids")
    catalog = workspace.require("catalog").fingerprint
    assert workspace.build("vectors", {"catalog": catalog}, {}, writes("vectors one"))[1] is True
    assert content(Workspace(tmp_path), "ids") == "ids one", "what was made from the mended artifact is good again"


def test_an_unreadable_record_is_caught(tmp_path: Path) -> None:
    chain(tmp_path)
    (tmp_path / "ids" / "artifact.json").write_text('{"stage": "ids"')
    with pytest.raises(StaleArtifact, match=r"artifact.json cannot be read.*\n.*mmrec tokenize"):
        Workspace(tmp_path).require("ids")


def test_a_half_written_artifact_is_not_seen_and_is_gone_on_with(tmp_path: Path) -> None:
    workspace, seen = chain(tmp_path), []

    def killed(folder: Path) -> None:
        (folder / CHECKPOINTS).mkdir()
        (folder / CHECKPOINTS / "step").write_text("41")
        (folder / ".a.txt").write_text("half")
        raise KeyboardInterrupt

    def resumed(folder: Path) -> None:
        seen.append((folder / CHECKPOINTS / "step").read_text())
        writes("new")(folder)

    with pytest.raises(KeyboardInterrupt):
        workspace.build("catalog", {"source": "new"}, {}, killed)
    assert content(Workspace(tmp_path), "ids") == "ids one"
    assert list((tmp_path / ".partial").glob("catalog-*"))
    artifact, _ = Workspace(tmp_path).build("catalog", {"source": "new"}, {}, resumed)
    assert seen == ["41"]
    assert set(artifact.files) == {"a.txt", "deep/b.txt"}
    assert sorted(f.name for f in artifact.path.rglob("*") if f.is_file()) == ["a.txt", "artifact.json", "b.txt"]
    assert not list((tmp_path / ".partial").iterdir())


def test_what_another_run_left_half_done_is_not_gone_on_with(tmp_path: Path) -> None:
    def killed(folder: Path) -> None:
        (folder / "old").write_text("of other options")
        raise KeyboardInterrupt

    workspace = Workspace(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        workspace.build("catalog", {}, {"n": 1}, killed)
    assert "old" not in workspace.build("catalog", {}, {"n": 2}, writes("t"))[0].files
    assert not list((tmp_path / ".partial").iterdir())


@pytest.mark.parametrize("force", [False, True])
def test_a_write_that_raises_leaves_the_old_artifact(tmp_path: Path, force: bool) -> None:
    def fails(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        assert content(Workspace(tmp_path), "catalog") == "old", "gone before the new one is there"
        raise RuntimeError("no space left")

    workspace = Workspace(tmp_path)
    workspace.build("catalog", {}, {}, writes("old"))
    with pytest.raises(RuntimeError, match="no space"):
        workspace.build("catalog", {}, {} if force else {"n": 2}, fails, force=force)
    assert content(Workspace(tmp_path), "catalog") == "old"
    workspace.build("catalog", {}, {}, writes("new"), force=True)
    assert content(Workspace(tmp_path), "catalog") == "new"


def test_a_finished_version_without_its_symlink_is_taken_as_it_is(tmp_path: Path) -> None:
    workspace = chain(tmp_path)
    (tmp_path / "ids").unlink()
    inputs = {"vectors": workspace.require("vectors").fingerprint}
    artifact, built = Workspace(tmp_path).build("ids", inputs, {}, lambda folder: pytest.fail("made a second time"))
    assert built
    assert (artifact.path / "a.txt").read_text() == "ids one"


HOLD = """
import sys, time
from mmrec.workspace import Workspace
def write(folder):
    print("working", flush=True)
    sys.stdin.read()
Workspace(sys.argv[1]).build("catalog", {}, {}, write)
"""


def test_a_second_process_is_told_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "working\n"
    told = rf"another mmrec process is working on .*: process {holder.pid} on .* since .*\n.*wait for it to end"
    with pytest.raises(MmrecError, match=told):
        Workspace(tmp_path).build("ids", {}, {}, writes("t"))
    assert Workspace(tmp_path).current("catalog") is None, "readers need no lock"
    holder.kill()
    holder.wait()
    assert Workspace(tmp_path).build("catalog", {}, {}, writes("t"))[1] is True
    holder.stdout.close()
    assert holder.stdin is not None
    holder.stdin.close()


def test_readers_see_one_version_or_another_and_never_half(tmp_path: Path) -> None:
    """A reader in a loop beside a writer that replaces the artifact 60 times, at times by one of the same name."""
    workspace, done, seen, wrong = Workspace(tmp_path), threading.Event(), set(), []
    workspace.build("catalog", {}, {"n": -1}, writes("-1"))

    def read() -> None:
        while not done.is_set():
            try:
                artifact = Workspace(tmp_path).require("catalog")
                a, b = (artifact.path / "a.txt").read_text(), (artifact.path / "deep" / "b.txt").read_text()
                if b != a * 2:
                    wrong.append((a, b))
                seen.add(a)
            except FileNotFoundError:
                continue  # swept between asking and opening: told, not mixed
            except Exception as error:
                wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for n in range(60):
        workspace.build("catalog", {}, {"n": n // 2}, writes(str(n)), force=True)
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert len(seen) > 1


def test_sources_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    before = fingerprint_of_source(folder)
    assert fingerprint_of_source(folder) == before
    (folder / "b.txt").write_text("two")
    assert fingerprint_of_source(folder) != before
    one = fingerprint_of_source(folder / "a.txt")
    (folder / "c.txt").write_text("one")
    assert fingerprint_of_source(folder / "c.txt") == one
    assert fingerprint_of_source(folder / "b.txt") != one
    with pytest.raises(MmrecError, match="no file or folder at"):
        fingerprint_of_source(tmp_path / "absent")


def test_text_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep" / "recipe.yaml"
    write_text(file, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(file, "new")
    assert file.read_text() == "old"


def test_the_record_is_json_one_can_read(tmp_path: Path) -> None:
    Workspace(tmp_path).build("catalog", {"source": "ü"}, {}, writes("t"))
    record = json.loads((tmp_path / "catalog" / "artifact.json").read_text(encoding="utf-8"))
    assert set(record) == {"stage", "fingerprint", "inputs", "options", "files", "checksum"}
    assert record["inputs"] == {"source": "ü"}
