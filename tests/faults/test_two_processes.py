"""Two processes on one workspace: one works, the other is told who does, readers go on."""

import os
import signal
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kills import Warm, stop_at

from conftest import Small
from mmrec.errors import MmrecError
from mmrec.workspace import Workspace


def test_the_second_is_told_who_the_first_is(small: Small, mine: Path, warm: Warm, tmp_path: Path) -> None:
    flag = tmp_path / "standing"
    (mine / "recipe.yaml").write_text((mine / "recipe.yaml").read_text() + "seed: 1\n")
    first = warm.start(small.command("retriever", mine), before=partial(stop_at, ".partial/retriever-", flag))
    until(flag.exists)
    second = warm.run(small.command("prior", mine))
    assert second.code == 1
    assert "Traceback" not in second.said
    assert (
        f"another mmrec process is working on {mine}: process {flag.read_text()} on {socket.gethostname()}"
        in second.said
    )
    assert f"(mmrec train retriever -w {mine})" in second.said
    assert "To mend it: wait for it to end" in second.said
    warm.finish(["recommend", "-u", "p01", "-w", str(mine)])
    os.kill(int(flag.read_text()), signal.SIGKILL)
    first.join()
    warm.finish(small.command("prior", mine))
    warm.finish(small.command("retriever", mine))
    assert not (mine / ".holder.json").exists()


def test_many_at_once_make_one_artifact(small: Small, mine: Path, warm: Warm) -> None:
    old = Workspace(mine).require("ids")
    (mine / "recipe.yaml").write_text((mine / "recipe.yaml").read_text() + "seed: 1\n")
    running = [warm.start(small.command("ids", mine)) for _ in range(5)]
    for process in running:
        process.join(120)
    codes = [process.exitcode for process in running]
    assert set(codes) <= {0, 1}
    assert 0 in codes
    new = Workspace(mine).require("ids")
    assert new.fingerprint != old.fingerprint
    assert len(list((mine / ".versions").glob("ids-*"))) == 1
    assert not list((mine / ".partial").iterdir())


def test_one_process_does_not_wait_for_itself(mine: Path) -> None:
    workspace = Workspace(mine)
    with workspace.lock(), pytest.raises(MmrecError, match=f"process {os.getpid()} "):
        workspace.build("ids", {}, {}, lambda folder: None)


def until(happened: Any) -> None:
    for _ in range(1200):
        if happened():
            return
        time.sleep(0.05)
    raise AssertionError("it never happened")
