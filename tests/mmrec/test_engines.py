"""Engines: a Ray cluster of several processes, one of them killed on the way, writes what this process writes."""

import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mmrec import embedding
from mmrec.config import Recipe
from mmrec.engines import Files, LocalEngine, RayEngine, Task, make_engine
from mmrec.errors import MmrecError
from mmrec.stages import embed
from mmrec.workspace import Workspace


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayEngine]:
    """Ray on this machine with two actors' worth of cores, every actor a process of its own."""
    ray = pytest.importorskip("ray")
    import torch

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that there is room for two actors
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the cluster cannot import this file
    ray.init(num_cpus=2, object_store_memory=150_000_000, include_dashboard=False, log_to_driver=False)
    yield RayEngine()
    ray.shutdown()
    torch.set_num_threads(threads)


class Squares:
    """A worker that says which process it is, and dies once if it is told to."""

    def __call__(self, task: Task) -> Files:
        if task["n"] < 0:
            raise ValueError(f"{task['n']} has no root")
        grave = task.get("grave")
        if grave and not Path(grave).exists():
            Path(grave).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"square": str(task["n"] ** 2).encode(), "process": str(os.getpid()).encode()}


def test_files_come_in_the_order_of_the_tasks_though_a_worker_is_killed(cluster: RayEngine, tmp_path: Path) -> None:
    tasks: list[Task] = [{"n": n} for n in range(8)]
    tasks[3]["grave"] = str(tmp_path / "grave")
    found = list(cluster.run(Squares(), tasks))
    assert (tmp_path / "grave").exists(), "nobody was killed"
    assert [files["square"] for files in found] == [files["square"] for files in map(Squares(), tasks)]
    assert os.getpid() not in {int(files["process"]) for files in found}


def test_an_error_of_the_worker_is_raised_as_it_was(cluster: RayEngine) -> None:
    for engine in (LocalEngine(), cluster):
        with pytest.raises(ValueError, match=r"^-1 has no root"):
            list(engine.run(Squares(), [{"n": 1}, {"n": -1}]))
    assert list(cluster.run(Squares(), [])) == []


def copied(workspace: Path, root: Path, without: str) -> Path:
    shutil.copytree(workspace, root, symlinks=True, ignore=shutil.ignore_patterns("sources", ".lock"))
    (root / "sources").symlink_to(workspace / "sources")
    shutil.rmtree((root / without).resolve())
    (root / without).unlink()
    return root


def kill_an_actor_once(folder: Path, pattern: str, killed: list[int]) -> threading.Thread:
    """As soon as two files of ``pattern`` lie in ``folder``."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(list(folder.glob(pattern))) < 2:
            time.sleep(0.002)
        for process in psutil.Process().children(recursive=True):
            if process.name().startswith("ray::MapWorker") or "ray::MapWorker" in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_embeddings_of_a_cluster_are_those_of_one_process(
    cluster: RayEngine, tiny_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "SHARD", 6)
    recipe = Recipe.load(tiny_workspace / "recipe.yaml")
    here, there = (copied(tiny_workspace, tmp_path / name, "embeddings") for name in ("here", "there"))
    recipe.encoders.text = recipe.encoders.audio = None
    one, _ = embed(Workspace(here), recipe)

    killed: list[int] = []
    thread = kill_an_actor_once(there, ".partial/embeddings-*/image_emb/*.npy", killed)
    other, built = embed(Workspace(there), recipe, cluster)
    thread.join()
    assert killed, "nobody was killed"
    assert built
    assert other.fingerprint == one.fingerprint
    assert len([name for name in one.files if name.endswith(".npy")]) == 12
    assert other.files == one.files, "the checksums of all files"
    assert (other.path / "artifact.json").read_bytes() == (one.path / "artifact.json").read_bytes()


def test_only_the_shards_that_are_missing_are_made(
    tiny_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "SHARD", 24)
    recipe = Recipe.load(tiny_workspace / "recipe.yaml")
    recipe.encoders.audio = recipe.encoders.image = None
    root = copied(tiny_workspace, tmp_path / "mine", "embeddings")

    class Dies:
        def run(self, worker: Any, tasks: list[Task]) -> Iterator[Files]:
            yield worker(tasks[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(Workspace(root), recipe, Dies())  # type: ignore[arg-type]
    (lying,) = root.glob(".partial/embeddings-*/text_emb/*.npy")
    written = lying.stat().st_mtime_ns
    asked: list[Task] = []

    class Counts:
        def run(self, worker: Any, tasks: list[Task]) -> Iterator[Files]:
            asked.extend(tasks)
            return LocalEngine().run(worker, tasks)

    artifact, _ = embed(Workspace(root), recipe, Counts())  # type: ignore[arg-type]
    assert [task["shard"] for task in asked] == [f"text_emb/text_emb_0000{n}.npy" for n in (1, 2)]
    assert (artifact.path / "text_emb" / lying.name).stat().st_mtime_ns == written


def sums(folder: Path) -> dict[Path, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_creations_of_a_cluster_are_those_of_one_process(
    cluster: RayEngine, tiny_workspace: Path, tmp_path: Path
) -> None:
    from mmrec import Recommender
    from mmrec.generation import generate

    opened = Recommender.load(tiny_workspace)
    people = opened.histories.user_ids[:3]
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, engine in ((here, LocalEngine()), (there, cluster)):
        generate(opened, "audio", people, folder, per_user=1, steps=1, seed=5, engine=engine)
    assert len(sums(here)) == 2 + 3 * len(people), "a clip, its notes and its part of the manifest for each"
    assert sums(here) == sums(there)


def index_files(folder: Path, source: Any, factory: str, engine: Any) -> dict[str, str]:
    from mmrec.commands.index import _assign_by
    from retrieval import vector_store

    assign = None if engine is None else _assign_by(engine)
    vector_store.build(folder, source, space="any", factory=factory, block=500, assign=assign)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("index.faiss")}


@pytest.mark.parametrize("factory", ["OPQ4,IVF8,PQ4x4", "IVF8,RaBitQ4", "IVF8,SQ8,Refine(Flat)", "Flat", "HNSW8"])
def test_an_index_whose_lists_are_found_elsewhere_is_the_same(factory: str, tmp_path: Path) -> None:
    from retrieval.vector_store import Arrays

    vectors = np.random.default_rng(0).standard_normal((2200, 16)).astype(np.float32)
    source = Arrays(vectors, [str(row) for row in range(len(vectors))])
    asked: list[Task] = []

    class Counts:
        def run(self, worker: Any, tasks: list[Task]) -> Iterator[Files]:
            asked.extend(tasks)
            return LocalEngine().run(worker, tasks)

    plain = index_files(tmp_path / "plain", source, factory, None)
    assert index_files(tmp_path / "other", source, factory, Counts()) == plain
    assert len(plain) == 1
    assert len(asked) == (4 if "IVF" in factory else 0), "a graph grows in one process"


def test_an_index_built_by_a_cluster_is_that_of_one_process(cluster: RayEngine, tmp_path: Path) -> None:
    from retrieval.vector_store import Arrays

    vectors = np.random.default_rng(1).standard_normal((2200, 16)).astype(np.float32)
    source = Arrays(vectors, [str(row) for row in range(len(vectors))])
    plain = index_files(tmp_path / "plain", source, "OPQ4,IVF8,PQ4x4", None)
    assert index_files(tmp_path / "cluster", source, "OPQ4,IVF8,PQ4x4", cluster) == plain


def test_shards_of_other_weights_are_refused(tiny_workspace: Path, tmp_path: Path) -> None:
    class Mixed:
        def run(self, worker: Any, tasks: list[Task]) -> Iterator[Files]:
            for number, task in enumerate(tasks):
                files = worker(task)
                record = json.loads(files[task["record"]])
                record["space"]["space"] += f"-{number}"
                yield {**files, task["record"]: json.dumps(record).encode()}

    recipe = Recipe.load(tiny_workspace / "recipe.yaml")
    recipe.encoders.audio = recipe.encoders.image = None
    root = copied(tiny_workspace, tmp_path / "mine", "embeddings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "SHARD", 40)
        with pytest.raises(MmrecError, match=r"shard 1 of text was encoded into .*\n.*same weights"):
            embed(Workspace(root), recipe, Mixed())  # type: ignore[arg-type]


def test_an_engine_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MmrecError, match="there is no engine 'spark'"):
        make_engine("spark")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MmrecError, match=r'needs Ray\n.*pip install "ray\[data\]"'):
        list(make_engine("ray").run(Squares(), [{"n": 1}]))
