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
from mmrec.config import Recipe
from mmrec.workspace import Workspace
from retrieval.retriever import Retriever

ACCELERATE = Path(sys.executable).with_name("accelerate")
LAUNCH = [str(ACCELERATE), "launch", "--multi_gpu", "--num_processes", "2", "-m", "mmrec"]
"""On a machine without a GPU, ACCELERATE_USE_CPU turns "multi GPU" into several CPU processes (gloo)."""


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*LAUNCH, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=280)


def copied(workspace: Path, root: Path, without: str) -> Path:
    shutil.copytree(workspace, root, symlinks=True, ignore=shutil.ignore_patterns("sources", ".lock"))
    (root / "sources").symlink_to(workspace / "sources")
    shutil.rmtree((root / without).resolve())
    (root / without).unlink()
    return root


def test_a_retriever_trained_by_two_processes_is_that_of_one(tiny_workspace: Path, tmp_path: Path) -> None:
    """Without dropout, whose masks differ. Scores, not weights: the gradient of a key's bias is zero but for rounding,
    which AdamW blows up."""
    scores = []
    for count in (1, 2):
        root = copied(tiny_workspace, tmp_path / str(count), "retriever")
        recipe = Recipe.load(root / "recipe.yaml")
        recipe.retriever["dropout"] = 0.0
        recipe.save(root / "recipe.yaml")
        if count == 1:
            alone = [sys.executable, "-m", "mmrec", "train", "retriever", "-w", str(root)]
            done = subprocess.run(alone, capture_output=True, text=True, timeout=280)
        else:
            done = launch("train", "retriever", "-w", root)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("train retriever: done") == 1, "only one of them speaks"
        assert not list((root / ".partial").iterdir())
        people = [np.arange(n, n + 5) for n in range(20)]
        scores.append(Retriever.from_pretrained(root / "retriever").score_all(people))
    np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=1e-3)
    assert scores[0].std() > 0.1, "nothing was learnt"


def test_a_prior_trained_by_two_processes_is_that_of_one(tiny_workspace: Path, tmp_path: Path) -> None:
    root = copied(tiny_workspace, tmp_path / "mine", "prior")
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
