"""Large indexes: recall, growth against a plain dictionary, kills, versions, filters, foreign and damaged files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from retrieval import gpu, vector_store
from retrieval.index import VectorIndex, unit
from retrieval.vector_store import Arrays, Budget, DamagedIndex, ForeignSpace, VectorStore, faiss_index, plan
from retrieval.vector_store.faiss_index import Effort, create

SPACE = "made for the test"


def vectors(n: int, dim: int = 32, seed: int = 0) -> np.ndarray:
    """Points near a curved sheet of 6 dimensions: neighbours mean something, and there are no clusters to fall into."""
    generator = np.random.default_rng(seed)
    sheet = np.random.default_rng(99).standard_normal((6, dim))
    bent = np.tanh(generator.standard_normal((n, 6)) @ sheet)
    return (bent + 0.05 * generator.standard_normal((n, dim))).astype(np.float32)


def names(n: int, start: int = 0) -> list[str]:
    return [f"item/{row} é" for row in range(start, start + n)]


def nearest(known: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Rows by cosine, best first."""
    units = known / np.linalg.norm(known, axis=1, keepdims=True)
    return np.argsort(-(units @ query), kind="stable")


KINDS = [
    "Flat",
    "SQ8",
    "HNSW16,Flat",
    "PCA16,HNSW16_SQ8,Refine(SQ8)",
    "PCAR16,HNSW16_SQ8_direct,Refine(SQ8)",
    "IVF16,Flat",
    "IVF16,SQ8",
    "IVF16,RaBitQ4",
    "IVF16,RaBitQfs,Refine(SQ8)",
    "OPQ16_32,IVF16,PQ16x4fs,Refine(SQ8)",
]


@pytest.mark.parametrize("factory", KINDS)
def test_every_structure_reaches_the_recall_and_filters(tmp_path: Path, factory: str) -> None:
    known = vectors(1500)
    report = vector_store.build(
        tmp_path, Arrays(known, names(1500)), space=SPACE, factory=factory, budget=Budget(recall=0.9)
    )
    store = VectorStore.open(tmp_path)
    queries = vectors(60, seed=1)
    row_of = {name: row for row, name in enumerate(names(1500))}
    truth = np.stack([nearest(known, query)[:10] for query in queries])
    cosines, rows = store.search(queries, 10, space=SPACE)
    found = [[row_of[name] for name in line] for line in store.ids(rows)]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth.tolist(), strict=True)])
    assert recall > 0.85
    assert report.measured.recall >= 0.9
    assert (np.diff(cosines, axis=1) <= 1e-6).all()
    assert np.abs(cosines).max() < 1.1

    for share in (0.5, 0.01):  # by the structure itself, and with everything allowed compared
        allowed = np.random.default_rng(2).random(1500) < share
        _, rows = store.search(queries, 10, space=SPACE, allowed=allowed)
        assert (rows >= 0).all()
        assert allowed[rows].all()
    few = np.zeros(1500, bool)
    few[[3, 700]] = True
    _, rows = store.search(queries, 10, space=SPACE, allowed=few)
    assert [sorted(line) for line in rows[:, :2].tolist()] == [[3, 700]] * 60
    assert (rows[:, 2:] == -1).all()
    mapped = VectorStore.open(tmp_path, mmap=True)
    np.testing.assert_array_equal(mapped.search(queries, 10, space=SPACE)[1], store.search(queries, 10, space=SPACE)[1])


def test_the_budget_chooses_and_says_what_it_measured() -> None:
    sample = vectors(1200, 64)
    units = sample / np.linalg.norm(sample, axis=1, keepdims=True)
    free = plan.choose(units, 9_000, Budget(recall=0.9), seed=0)
    assert all(trial.measured.recall >= 0.9 for trial in free if trial.fits)
    assert free[0].measured.queries_per_second == max(t.measured.queries_per_second for t in free if t.fits)
    exact = next(trial for trial in free if trial.factory == "Flat")
    assert exact.measured.recall == 1
    assert exact.memory == pytest.approx(plan.PROCESS + 9_000 * 64 * 4, rel=1e-3)
    tight = Budget(memory=plan.PROCESS + 9_000 * 80, recall=0.9)
    assert plan.choose(units, 9_000, tight, seed=0)[0].factory != "Flat"
    with pytest.raises(ValueError, match="nothing keeps"):
        plan.choose(units, 9_000, Budget(memory=plan.PROCESS + 9_000, recall=0.9), seed=0)
    with pytest.raises(ValueError, match="recall"):
        Budget(recall=1.2)


def test_of_many_vectors_the_best_of_each_kind_are_tried_on_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PILOT", 1_000)
    monkeypatch.setattr(plan, "FINAL", 3_000)
    monkeypatch.setattr(plan, "QUERIES", 100)
    seen: list[tuple[str, int]] = []
    really = plan._try

    def watched(template: str, known: np.ndarray, *rest: Any) -> plan.Trial:
        seen.append((template, len(known)))
        return really(template, known, *rest)

    monkeypatch.setattr(plan, "_try", watched)
    assert (plan.sample_size(5_000), plan.sample_size(6_000), plan.sample_size(50)) == (1_100, 3_100, 50)
    sample = vectors(3_100, 64)
    units = sample / np.linalg.norm(sample, axis=1, keepdims=True)
    trials = plan.choose(units, 10_000, Budget(recall=0.8), seed=0)
    again = [template for template, rows in seen if rows == 3_000]
    assert sorted("HNSW" in template for template in again) == [False, True]
    assert trials[0].fits
    assert trials[0].factory in {template.format(lists=plan.inverted_lists(10_000)) for template in again}
    assert len(trials) == len({trial.factory for trial in trials}) == len(seen) - 2


def test_tuning_finds_the_least_effort() -> None:
    known = vectors(3000)
    units = known / np.linalg.norm(known, axis=1, keepdims=True)
    index = create(32, "IVF32,Flat")
    index.train(units[200:])
    index.add(units[200:])
    truth = plan.exact(units[:200], iter([units[200:1000], units[1000:]]))
    expected = np.stack([nearest(units[200:], query)[:10] for query in units[:200]])
    np.testing.assert_array_equal(np.sort(truth, axis=1), np.sort(expected, axis=1))
    effort, measured = plan.tune(index, units[:200], truth, Budget(recall=0.95))
    assert measured.sure_recall >= 0.95
    recall, error = plan.recall_of(index, units[:200], truth, Effort(effort.reach - 1))
    assert recall - error < 0.95
    assert 0 < error < 0.02
    assert effort.reach < 32


# -- changes against a plain dictionary --------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "update", "compact", "rollback"]), st.integers(0, 2**31)),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("factory", ["Flat", "HNSW8,Flat", "IVF4,Flat"])
@settings(max_examples=8, deadline=None, phases=[Phase.generate])
@given(steps=STEPS)
def test_an_index_is_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, factory: str, steps: list[tuple[str, int]]
) -> None:
    root = tmp_path_factory.mktemp("index")
    first = vectors(60)
    vector_store.build(root, Arrays(first, names(60)), space=SPACE, factory=factory)
    truth = dict(zip(names(60), first, strict=True))
    before: dict[str, np.ndarray] | None = None
    fresh = 60
    for step, seed in steps:
        generator = np.random.default_rng(seed)
        some = [str(name) for name in generator.choice(sorted(truth), min(3, len(truth)), replace=False)]
        new = vectors(3, seed=seed)
        was = dict(truth)
        if step == "add":
            vector_store.add(root, Arrays(new, names(3, fresh)), space=SPACE)
            truth |= dict(zip(names(3, fresh), new, strict=True))
            fresh += 3
        elif step == "remove" and len(truth) > 10:
            vector_store.remove(root, some)
            truth = {name: vector for name, vector in truth.items() if name not in some}
        elif step == "update":
            vector_store.update(root, Arrays(new[: len(some)], some), space=SPACE)
            truth |= dict(zip(some, new, strict=False))
        elif step == "compact":
            vector_store.compact(root)
        elif step == "rollback" and before is not None:
            vector_store.rollback(root)
            truth, before = before, None
            _same(root, truth)
            continue
        else:
            continue
        before = was
        _same(root, truth)


def _same(root: Path, truth: dict[str, np.ndarray]) -> None:
    """Whatever the index is asked, it answers as a search through the dictionary would."""
    store = VectorStore.open(root)
    assert len(store) == len(truth)
    assert sorted(store.table["id"].filter(pa.array(~store.removed)).to_pylist()) == sorted(truth)
    keys, known = list(truth), np.stack(list(truth.values()))
    every = np.ones(
        len(store.removed), bool
    )  # a filter that lets all pass; few rows: every structure compares them all
    queries = np.concatenate([vectors(4, seed=7), known[-3:]])
    _, rows = store.search(queries, len(truth), space=SPACE, allowed=every)
    for query, line in zip(queries, store.ids(rows), strict=True):
        assert sorted(line) == sorted(truth)
        cosine = {name: vector @ query / np.linalg.norm(vector) for name, vector in truth.items()}
        expected = [cosine[keys[row]] for row in nearest(known, query)]
        np.testing.assert_allclose([cosine[name] for name in line], expected, rtol=1e-4, atol=1e-4)
    rows = np.flatnonzero(~store.removed)
    for name, vector in zip(store.ids(rows)[0], store.vectors(rows), strict=True):
        np.testing.assert_array_equal(vector, truth[name])


def test_changes_refuse_what_makes_no_sense(tmp_path: Path) -> None:
    vector_store.build(tmp_path, Arrays(vectors(50), names(50)), space=SPACE, factory="Flat")
    with pytest.raises(ValueError, match="there already"):
        vector_store.add(tmp_path, Arrays(vectors(1), names(1)), space=SPACE)
    with pytest.raises(ValueError, match="no 'stranger'"):
        vector_store.remove(tmp_path, ["stranger"])
    with pytest.raises(ValueError, match="no 'stranger'"):
        vector_store.update(tmp_path, Arrays(vectors(1), ["stranger"]), space=SPACE)
    with pytest.raises(ForeignSpace, match="another model"):
        vector_store.add(tmp_path, Arrays(vectors(1), ["new"]), space="another model")
    with pytest.raises(ValueError, match="not unique"):
        vector_store.build(tmp_path / "b", Arrays(vectors(30), ["same"] * 30), space=SPACE, factory="Flat")
    assert VectorStore.open(tmp_path).number == 1
    assert not list((tmp_path / ".partial").glob("*"))


def test_rows_without_a_direction_are_left_out(tmp_path: Path) -> None:
    known = vectors(40)
    known[[3, 17]] = 0
    known[5, 2] = np.nan
    report = vector_store.build(tmp_path, Arrays(known, names(40)), space=SPACE, factory="Flat")
    store = VectorStore.open(tmp_path)
    assert (report.rows, report.skipped, len(store)) == (37, 3, 37)
    assert not store.mask(ids=[names(40)[3], names(40)[5]]).any()


# -- versions ----------------------------------------------------------------------------------------------------------


def test_readers_keep_their_version_and_versions_roll_back(tmp_path: Path) -> None:
    known = vectors(80)
    vector_store.build(tmp_path, Arrays(known, names(80)), space=SPACE, factory="Flat")
    old = VectorStore.open(tmp_path)
    asked = known[5][None]
    for name in names(80)[5:10]:
        vector_store.remove(tmp_path, [name])
    assert [path.name for path in vector_store.all_versions(tmp_path)] == ["000004", "000005", "000006"]
    assert not old.version.exists()
    assert old.ids(old.search(asked, 1, space=SPACE)[1]) == [[names(80)[5]]]  # its version is gone from the disk
    assert len(VectorStore.open(tmp_path)) == 75
    assert vector_store.rollback(tmp_path).name == "000005"
    assert len(VectorStore.open(tmp_path)) == 76
    assert vector_store.rollback(tmp_path, to=6).name == "000006"
    vector_store.rollback(tmp_path)
    vector_store.add(tmp_path, Arrays(vectors(1, seed=9), ["new"]), space=SPACE)
    assert VectorStore.open(tmp_path).number == 7
    with pytest.raises(ValueError, match="no version 99"):
        vector_store.rollback(tmp_path, to=99)


def test_rollback_after_a_rollback_goes_to_what_was_built_on(tmp_path: Path) -> None:
    vector_store.build(tmp_path, Arrays(vectors(50), names(50)), space=SPACE, factory="Flat")
    vector_store.remove(tmp_path, names(1))  # version 2
    vector_store.rollback(tmp_path)
    vector_store.remove(tmp_path, names(3))  # version 3, made after 1
    assert vector_store.rollback(tmp_path).name == "000001"
    with pytest.raises(ValueError, match="before this one"):
        vector_store.rollback(tmp_path)


@pytest.mark.parametrize("file", ["index.faiss", "rows.arrow", "removed.npy", "index.json"])
def test_one_flipped_bit_is_refused(tmp_path: Path, file: str) -> None:
    vector_store.build(tmp_path, Arrays(vectors(50), names(50)), space=SPACE, factory="Flat")
    vector_store.remove(tmp_path, names(1))
    path = (tmp_path / "current" / file).resolve()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # other versions may share the file
    path.write_bytes(data)
    with pytest.raises(DamagedIndex, match=r"damaged.*mmrec index"):
        VectorStore.open(tmp_path)
    vector_store.rollback(tmp_path)
    assert len(VectorStore.open(tmp_path)) == 50


def test_a_damaged_vector_is_found_before_it_is_built_on(tmp_path: Path) -> None:
    vector_store.build(tmp_path, Arrays(vectors(50), names(50)), space=SPACE, factory="Flat")
    path = tmp_path / "current" / "vectors" / "00000.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedIndex, match="vectors/00000"):
        vector_store.compact(tmp_path)


def test_queries_of_another_space_are_refused(tmp_path: Path) -> None:
    vector_store.build(tmp_path, Arrays(vectors(50), names(50)), space=SPACE, factory="Flat")
    store = VectorStore.open(tmp_path)
    with pytest.raises(ForeignSpace, match=r"the space 'CLIP'.*built from 'made for the test'"):
        store.search(vectors(1), 3, space="CLIP")
    with pytest.raises(ValueError, match="32"):
        store.search(vectors(1, 16), 3, space=SPACE)


# -- kill -9 -----------------------------------------------------------------------------------------------------------

BUILD = """
import sys, time
from pathlib import Path
from retrieval import gpu, vector_store
import faiss
faiss.omp_set_num_threads(1)
source = vector_store.open_shards(Path(sys.argv[1]))
def slowly(what, done, total):
    print(what, done, flush=True)
    time.sleep(float(sys.argv[4]))
vector_store.build(Path(sys.argv[2]), source, space="s", factory=sys.argv[3], block=200, progress=slowly)
"""


@pytest.mark.parametrize("factory", ["PCAR16,HNSW8_SQ8_direct,Refine(SQ8)", "IVF8,SQ8"])
def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path: Path, factory: str) -> None:
    folder = tmp_path / "shards" / "img_emb"
    folder.mkdir(parents=True)
    for number in range(4):
        np.save(folder / f"img_emb_{number}.npy", vectors(500, seed=number).astype(np.float16))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(root: Path, pause: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", BUILD, str(tmp_path / "shards"), str(root), factory, str(pause)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    whole = start(tmp_path / "whole", 0)
    assert whole.communicate()[0].count("encoding") == 9
    assert whole.returncode == 0
    for killed_at in ("copying", "encoding 3", "encoding 9"):
        process = start(tmp_path / "killed", 0.2)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(killed_at):
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "killed" / "current").exists()
    last = start(tmp_path / "killed", 0)
    told = last.communicate()[0]
    assert last.returncode == 0
    assert told.count("encoding") < 9, "it went on where it was"
    ours = {path.name: path for path in (tmp_path / "killed" / "current").resolve().rglob("*") if path.is_file()}
    theirs = {path.name: path for path in (tmp_path / "whole" / "current").resolve().rglob("*") if path.is_file()}
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"index.json"}:  # it holds the times
        assert ours[name].read_bytes() == theirs[name].read_bytes(), name


STREAM = """
import re, sys
from pathlib import Path
import faiss, pyarrow.compute, pyarrow.parquet
from retrieval import gpu, vector_store
faiss.omp_set_num_threads(1)
# getrusage would tell the peak of the process that started this one
held = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
shards = vector_store.open_shards(Path(sys.argv[1]))
module = sys.modules["retrieval.vector_store.build"]
module.SAMPLE, module.HELD_OUT = 5_000, 100
before = held()
vector_store.build(Path(sys.argv[2]), shards, space="s", factory="PCA8,SQ8", block=int(sys.argv[3]))
print(held() - before)
"""


def test_vectors_larger_than_memory_stream_through(tmp_path: Path) -> None:
    """Four times the vectors add little to the peak of memory, and all of them at once, for comparison, add them."""
    shard, wide = 10_000, 256
    for name, count in (("few", 6), ("many", 24)):
        (tmp_path / name).mkdir()
        for number in range(count):
            np.save(tmp_path / name / f"{number}.npy", vectors(shard, wide, number % 4).astype(np.float16))
    more = 18 * shard * wide * 2 / 2**20  # MB

    def peak(name: str, block: int) -> float:
        command = [sys.executable, "-c", STREAM, str(tmp_path / name), str(tmp_path / f"{name}-{block}"), str(block)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    few, many, at_once = peak("few", 5_000), peak("many", 5_000), peak("many", 24 * shard)
    assert many - few < more / 3, (few, many, more)
    assert at_once - few > more, (few, at_once, more)


def test_two_writers_are_told_apart(tmp_path: Path) -> None:
    vector_store.build(tmp_path, Arrays(vectors(50), names(50)), space=SPACE, factory="Flat")
    from retrieval.vector_store.versions import writing

    with writing(tmp_path), pytest.raises(ValueError, match="another process"):
        vector_store.remove(tmp_path, names(1))


# -- shards ------------------------------------------------------------------------------------------------------------


def write_shards(folder: Path, pattern: str, counts: list[int], **columns: str) -> np.ndarray:
    """As clip-retrieval writes: img_emb/img_emb_0.npy with metadata/metadata_0.parquet, float16, one after another."""
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    known = vectors(sum(counts)).astype(np.float16)
    start = 0
    for number, count in enumerate(counts):
        rows = range(start, start + count)
        np.save(folder / "img_emb" / pattern.format("img_emb", number, "npy"), known[start : start + count])
        table = {
            "image_path": [f"photos/{row}.jpg" for row in rows],
            "caption": [f"a {('red', 'blue')[row % 2]} thing" for row in rows],
            "colour": [("red", "blue")[row % 2] for row in rows],
        }
        pq.write_table(pa.table(table), folder / "metadata" / pattern.format("metadata", number, "parquet"))
        start += count
    return known


@pytest.mark.parametrize("pattern", ["{}_{}.{}", "{}_{:04d}.{}"])
def test_a_folder_that_clip_retrieval_wrote(tmp_path: Path, pattern: str) -> None:
    counts = [30, 40, 20, 30, 30, 30, 30, 30, 30, 30, 30, 50]  # more than ten: 10 must not come before 2
    known = write_shards(tmp_path / "clip", pattern, counts)
    shards = vector_store.open_shards(tmp_path / "clip")
    assert (len(shards), shards.dim, shards.id_column) == (380, 32, "image_path")
    vector_store.build(tmp_path / "index", shards, space="ViT-B/32", factory="Flat")
    store = VectorStore.open(tmp_path / "index")
    for row in (0, 75, 379):
        _, found = store.search(known[row][None], 1, space="ViT-B/32")
        assert store.ids(found) == [[f"photos/{row}.jpg"]]
    red = store.mask(where={"colour": "red"})
    assert red.sum() == 190
    _, found = store.search(known[1][None], 190, space="ViT-B/32", allowed=red)
    assert {int(name.split("/")[1].split(".")[0]) % 2 for name in store.ids(found)[0]} == {0}
    assert store.mask(ids=["photos/3.jpg", "photos/4.jpg"], where={"colour": ["red"]}).sum() == 1
    with pytest.raises(ValueError, match="no column 'shade'"):
        store.mask(where={"shade": "dark"})

    parts = [shards.part(number, 3) for number in range(3)]
    assert sum(map(len, parts)) == 380
    stores = []
    for number, part in enumerate(parts):
        vector_store.build(tmp_path / f"part{number}", part, space="ViT-B/32", factory="Flat")
        stores.append(VectorStore.open(tmp_path / f"part{number}"))
    together, ids = vector_store.search_shards(stores, known[:5], 7, space="ViT-B/32")
    alone, rows = store.search(known[:5], 7, space="ViT-B/32")
    assert ids == store.ids(rows)
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_shards_that_do_not_fit_together(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", "{}_{}.{}", [20, 20])
    (tmp_path / "a" / "metadata" / "metadata_1.parquet").unlink()
    with pytest.raises(ValueError, match=r"2 shards.*1 tables"):
        vector_store.open_shards(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match=r"no \.npy shards"):
        vector_store.open_shards(tmp_path)
    (tmp_path / "a" / "text_emb").mkdir()
    with pytest.raises(ValueError, match="img, text"):
        vector_store.open_shards(tmp_path / "a")


# -- GPUs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of faiss-gpu that are made, with copies on the CPU in place of those on GPUs: it tells whether they fit
    together and what is handed to them, not whether a GPU does them right."""
    faiss = faiss_index.faiss
    made: list[str] = []

    def copied(index: Any, options: Any = None) -> Any:
        made.append(type(faiss.downcast_index(index)).__name__)
        return faiss.clone_index(index)

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "GpuParameterSpace", faiss.ParameterSpace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", copied, raising=False)
    return made


@pytest.mark.skipif(not gpu.has_gpu(), reason="there is no GPU, or FAISS does not know it")
@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "IVF8,SQ8", "OPQ16_32,IVF8,PQ16", "IVF8,SQ8,Refine(Flat)"])
def test_a_gpu_answers_as_the_cpu_does(tmp_path: Path, factory: str) -> None:
    vector_store.build(tmp_path, Arrays(vectors(3_000), names(3_000)), space=SPACE, factory=factory)
    store = VectorStore.open(tmp_path)
    assert store._gpus is not None
    cosines, rows = store.search(vectors(50, seed=9), 5, space=SPACE)
    known = VectorStore.open(tmp_path, mmap=True).search(vectors(50, seed=9), 5, space=SPACE)
    np.testing.assert_allclose(cosines, known[0], atol=1e-3)
    assert np.mean(rows == known[1]) > 0.95


@pytest.mark.parametrize("factory", ["Flat", "IVF8,SQ8", "OPQ16_32,IVF8,PQ16", "PCA16,IVF8,Flat,Refine(SQ8)"])
def test_the_calls_for_a_gpu_fit_together(tmp_path: Path, pretended_gpu: list[str], factory: str) -> None:
    vector_store.build(tmp_path, Arrays(vectors(3_000), names(3_000)), space=SPACE, factory=factory)
    assert pretended_gpu.count("IndexFlatL2") == ("IVF" in factory), "k-means runs on it"
    store, plain = VectorStore.open(tmp_path), VectorStore.open(tmp_path, mmap=True)
    assert store._gpus is not None
    assert plain._gpus is None
    asked = vectors(50, seed=9)
    for effort in (Effort(1, 1), Effort(8, 4)) if "IVF" in factory else (Effort(),):
        store.effort = plain.effort = effort
        for k, allowed in ((5, None), (5, store.mask(ids=names(40))), (1_500, None)):
            ours, theirs = (each.search(asked, k, space=SPACE, allowed=allowed) for each in (store, plain))
            np.testing.assert_array_equal(ours[1], theirs[1])
            np.testing.assert_array_equal(ours[0], theirs[0])
    assert store._gpus.search(unit(asked), 5, 3_000) is None, "more lists than a GPU reads"


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
def test_the_small_index_makes_the_same_calls(pretended_gpu: list[str], factory: str) -> None:
    index = VectorIndex.build(vectors(3_000), factory)
    if factory != "Flat":
        index._index.nprobe = 4
    assert pretended_gpu
    ours = index.search(vectors(50, seed=9), 5)
    index._gpus = None
    theirs = index.search(vectors(50, seed=9), 5)
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_array_equal(ours[0], theirs[0])


@pytest.mark.parametrize("factory", ["HNSW8,Flat", "IVF8,RaBitQ", "SQ8"])
def test_what_faiss_has_no_gpu_for_stays_on_the_cpu(tmp_path: Path, pretended_gpu: list[str], factory: str) -> None:
    vector_store.build(tmp_path, Arrays(vectors(500), names(500)), space=SPACE, factory=factory)
    pretended_gpu.clear()
    assert VectorStore.open(tmp_path)._gpus is None
    assert not pretended_gpu
