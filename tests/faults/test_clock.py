"""A clock that goes backwards, and files that come from the future, change nothing."""

import os
import shutil
import time
from pathlib import Path

from kills import Moment, Warm, backwards
from PIL import Image

from conftest import Small
from mmrec.workspace import MENDS, Workspace

YEAR = 365 * 86400


def test_every_stage(small: Small, tmp_path: Path, warm: Warm) -> None:
    """Killed in the middle by the right clock, gone on with a year earlier, by a clock that runs backwards."""
    root = tmp_path / "workspace"
    command = ["run", str(small.source / "small.yaml"), "-w", str(root)]
    for needle in ("image_emb", "training.safetensors"):
        ended = warm.run(command, Moment(needle, 2), before=backwards)
        assert ended.killed, ended.said
        for file in root.rglob("*"):
            os.utime(file, (time.time() + YEAR, time.time() + YEAR), follow_symlinks=False)
    assert warm.run(command, before=backwards).code == 0
    for stage in set(MENDS) - {"hybrid", "evaluation", "additions"}:
        one, other = Workspace(small.root).require(stage), Workspace(root).require(stage)
        assert (one.fingerprint, one.files) == (other.fingerprint, other.files)
    assert ": done" not in warm.finish(command).said


def test_a_picture_from_the_past_is_seen_as_changed(small: Small, tmp_path: Path, warm: Warm) -> None:
    """A file replaced by an older one of the same size is another file."""
    source = tmp_path / "source"
    shutil.copytree(small.source, source)
    root = tmp_path / "workspace"
    warm.finish(["ingest", str(source / "items.csv"), "-w", str(root)])
    warm.finish(["embed", "-w", str(root)])
    before = Workspace(root).require("embeddings")
    picture = source / "00.png"
    Image.open(picture).rotate(90).save(picture)
    os.utime(picture, (time.time() - YEAR, time.time() - YEAR))
    warm.finish(["embed", "-w", str(root)])
    assert Workspace(root).require("embeddings").fingerprint != before.fingerprint
