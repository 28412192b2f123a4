"""`accelerate launch -m mmrec train ...`: several processes, one artifact, the same as of one process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mmrec import processes
from mmrec.workspace import Workspace

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m", "mmrec"]
"""On a machine without a GPU, ACCELERATE_USE_CPU turns "multi GPU" into several CPU processes (gloo)."""


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*LAUNCH, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=280)


def test_a_prior_trained_by_two_processes_is_that_of_one(tiny_workspace: Path, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    shutil.copytree(tiny_workspace, root, symlinks=True, ignore=shutil.ignore_patterns("sources", ".lock"))
    (root / "sources").symlink_to(tiny_workspace / "sources")
    shutil.rmtree((root / "prior").resolve())
    (root / "prior").unlink()
    done = launch("train", "prior", "-w", root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train prior: done") == 1, "only one of them speaks"
    assert done.stderr.count("training the prior, seed 0: 80 steps in") == 1

    one, two = Workspace(tiny_workspace).require("prior"), Workspace(root).require("prior")
    assert one.fingerprint == two.fingerprint
    assert one.files.keys() == two.files.keys()
    ours, theirs = (load_file(artifact.path / "model.safetensors") for artifact in (two, one))
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-4, err_msg=name)
    assert not list((root / ".partial").iterdir())


def test_what_only_one_process_can_do_is_refused(tmp_path: Path) -> None:
    env = {**os.environ, "WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, "-m", "mmrec", "tokenize", "-w", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "mmrec tokenize runs in one process\nTo mend it: run it without accelerate launch" in done.stderr


def test_the_first_of_several_processes_is_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # a batch system's own variable says nothing yet
    assert (processes.count(), processes.is_main()) == (1, True)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        assert (processes.count(), processes.is_main()) == (4, rank == 0)
