"""Artifacts with a flipped bit or a missing end: checksums catch every one, and the command they name mends it."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kills import Warm

from conftest import Small
from mmrec.errors import MmrecError, StaleArtifact
from mmrec.feedback import Feedback
from mmrec.workspace import MENDS, Workspace

Harm = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]


def cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data))]


def half_written(data: bytes, dice: random.Random) -> bytes:
    """Blocks that never came to the disk read as zeros."""
    at = dice.randrange(len(data))
    rest = len(data) - at
    return data[:at] + bytes(rest) if any(data[at:]) else cut(data, dice)


@pytest.mark.parametrize("stage", list(MENDS))
def test_every_file_of_every_artifact(stage: str, small: Small, mine: Path, warm: Warm) -> None:
    whole = Workspace(mine).require(stage)
    assert whole.files
    told = re.escape(MENDS[stage])
    for name in whole.files:
        file = whole.path / name
        data = file.read_bytes()
        for harm in (flip, cut, half_written):
            file.write_bytes(harm(data, random.Random(f"{stage}/{name}/{harm.__name__}")))
            with pytest.raises(StaleArtifact, match=rf"{re.escape(name)} is missing or not what was written\n.*{told}"):
                Workspace(mine).require(stage)
        file.write_bytes(data)
        assert Workspace(mine).require(stage) == whole
    dice = random.Random(stage)
    victim = whole.path / dice.choice(sorted(name for name in whole.files if (whole.path / name).stat().st_size))
    victim.write_bytes(flip(victim.read_bytes(), dice))
    warm.finish(small.command(stage, mine))
    mended = Workspace(mine).require(stage)
    if stage != "evaluation":  # which holds how fast it was
        assert mended.files == whole.files


@pytest.mark.parametrize("stage", list(MENDS))
def test_the_record_itself(stage: str, mine: Path) -> None:
    """What an artifact was made from is as safe as what it holds: 60 harms to `artifact.json`, each caught."""
    record = mine / stage / "artifact.json"
    data = record.read_bytes()
    for number in range(60):
        harm = (flip, flip, cut)[number % 3]
        record.write_bytes(harm(data, random.Random(f"{stage}/{number}")))
        with pytest.raises(StaleArtifact, match=rf"To mend it: {re.escape(MENDS[stage])} -w"):
            Workspace(mine).require(stage)
    record.write_bytes(data)
    Workspace(mine).require(stage)


def test_records_from_before_records_had_checksums(mine: Path) -> None:
    file = mine / "ids" / "artifact.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    del record["checksum"]
    file.write_text(json.dumps(record), encoding="utf-8")
    Workspace(mine).require("ids")
    file.write_text(json.dumps(record | {"checksun": "0"}), encoding="utf-8")
    with pytest.raises(StaleArtifact):
        Workspace(mine).require("ids")


def test_a_half_written_checkpoint_is_not_gone_on_with(small: Small, mine: Path, warm: Warm) -> None:
    """A power cut may leave a checkpoint cut off; training says where it lies and how to begin again."""
    shutil.rmtree((mine / "prior").resolve())
    (mine / "prior").unlink()
    command = small.command("prior", mine)
    warm.kill(command, "training.safetensors", 3)
    (checkpoint,) = (f for f in mine.glob(".partial/prior-*/.checkpoint/**/*.safetensors") if f.name[0] != ".")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    ended = warm.run(command)
    assert ended.code == 1, ended.said
    assert "Traceback" not in ended.said
    assert str(checkpoint.name) in ended.said
    shutil.rmtree(mine / ".partial")
    warm.finish(command)
    assert Workspace(mine).require("prior").files == Workspace(small.root).require("prior").files


@pytest.mark.parametrize("harm", [cut, half_written])
def test_a_damaged_feedback_file(harm: Harm, tmp_path: Path) -> None:
    """SQLite has no checksums of its own, but what cannot be read is told and never overwritten."""
    file = tmp_path / "feedback.sqlite"
    feedback = Feedback(file)
    for click in range(500):
        feedback.add(f"person {click % 7}", f"item {click}", 1, "start")
    file.write_bytes(harm(file.read_bytes()[: 3 * 4096], random.Random(0)))
    damaged = file.read_bytes()
    with pytest.raises(MmrecError, match=r"feedback.sqlite cannot be used.*\n.*move .* away"):
        Feedback(file).of("person 1")
    assert file.read_bytes() == damaged
