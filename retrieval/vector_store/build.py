"""Building an index: vectors stream through in blocks, and a killed build goes on where it was.

What lies in a version of an index, beside index.json:

    vectors/00000.npy ...   the vectors as they came, in blocks; shared between versions by hard links
    rows.arrow              row -> id and metadata, memory-mapped
    index.faiss             the structure that answers
    removed.npy             bool per row: it answers no more, and goes when the index is compacted

The last block holds rows that were drawn at random. They are added last, so that until then they are queries that the
index has never seen: on them its effort is tuned and its recall measured against exact search.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval.files import read_json, write_array, write_index, write_json
from retrieval.vector_store import faiss_index, plan
from retrieval.vector_store.faiss_index import Effort
from retrieval.vector_store.plan import Budget, Measured
from retrieval.vector_store.sources import Source, gather
from retrieval.vector_store.versions import publish, writing

if TYPE_CHECKING:
    import pyarrow as pa

Progress = Callable[[str, int, int], None]
"""Called with (what is done, done, total)."""
Assign = Callable[[Path, list[Path]], Iterator[np.ndarray]]
"""Called with a trained index and blocks of vectors, both files: the inverted list of every vector, block by block."""
BLOCK = 65_536
HELD_OUT = 1_000
SAMPLE = 50_000
CHECKPOINTS = 16
"""A killed build loses at most about so manieth a part of the encoding."""


@dataclass(frozen=True)
class Report:
    """What was built and how it did; `seconds` counts the last run only where a killed one was gone on with."""

    factory: str
    effort: Effort
    measured: Measured
    seconds: float
    resumed: bool
    rows: int
    skipped: int
    trials: list[dict[str, Any]]


def build(
    root: Path,
    source: Source,
    *,
    space: str,
    budget: Budget | None = None,
    factory: str | None = None,
    about: dict[str, Any] | None = None,
    seed: int = 0,
    block: int = BLOCK,
    progress: Progress | None = None,
    assign: Assign | None = None,
) -> Report:
    """Make a new version of the index at `root` and put it before its readers.

    space: the name of the embedding space; queries and later vectors must name the same. budget: what to choose and
    tune for. factory: a FAISS factory string instead of a choice (it is tuned all the same). about: what else to keep
    of where the vectors come from (JSON-able). assign: finds the lists of an inverted file elsewhere, as on other
    machines (`assign_block` is what they run); the index is the same. Rows without a direction (zero or not finite:
    items that lack the modality) are left out and counted.

    The same source, options and seed give the same bytes, whether or not the build was killed and run again, with two
    exceptions: a graph (HNSW) that several threads grew, and a choice that two structures of one speed compete for.

    Raises ValueError: nothing keeps the budget, FAISS cannot make `factory`, ids that are not unique, no vectors.
    """
    root, budget = Path(root), budget or Budget()
    identity = [source.fingerprint(), space, asdict(budget), factory, about, seed, block]
    name = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
    started = time.monotonic()
    with writing(root):
        work = root / ".partial" / name
        resumed = work.exists()
        (work / "vectors").mkdir(parents=True, exist_ok=True)
        job = _Job(work, seed, budget, progress or (lambda what, done, total: None), assign)
        state = job.copy(source, block)
        choice = job.choose(state["rows"], source.dim, factory)
        index = job.encode(choice["factory"], source.dim)
        effort, measured = job.tune(index)
        job.finish(index, state)
        report = Report(
            choice["factory"],
            effort,
            measured,
            time.monotonic() - started,
            resumed,
            state["rows"],
            state["skipped"],
            choice["trials"],
        )
        record = {"space": space, "dim": source.dim, "budget": asdict(budget), "seed": seed, "chosen": factory is None}
        publish(root, work, {**record, "source": about or {}, "rows": state["rows"], "report": asdict(report)})
        shutil.rmtree(root / ".partial")
    return report


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 [n, D] of unit length; rows without a direction become NaN."""
    vectors = np.asarray(vectors, np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(units)


def assign_block(trained: Path, block: Path) -> np.ndarray:
    """The inverted list of every vector of a block, int64 [n]."""
    index = _trained(trained, trained.stat().st_mtime_ns)
    return faiss_index.assign(index, unit(np.load(block, mmap_mode="r", allow_pickle=False)))


@lru_cache(1)
def _trained(path: Path, written: int) -> Any:
    return faiss_index.load(path)


class _Job:
    """The steps of one build in its working folder; each finds there what a killed run has finished."""

    def __init__(self, work: Path, seed: int, budget: Budget, progress: Progress, assign: Assign | None) -> None:
        self.work, self.seed, self.budget, self.progress, self.assign = work, seed, budget, progress, assign

    @property
    def blocks(self) -> list[Path]:
        return sorted((self.work / "vectors").glob("*.npy"))

    def copy(self, source: Source, block: int) -> dict[str, int]:
        """The rows that have a direction, those drawn as queries last: vectors/*.npy and rows.arrow."""
        done = self.work / "copied.json"
        if done.is_file():
            return read_json(done)
        import pyarrow as pa

        held = np.zeros(len(source), bool)
        asked = min(HELD_OUT, len(source) // 10)
        held[np.random.default_rng(self.seed).choice(len(source), asked, replace=False)] = True
        stream = _regroup(source.blocks(block), held, block, lambda n: self.progress("copying", n, len(source)))
        rows, writer, schema = 0, None, None
        rows_file = self.work / "rows.arrow"
        for number, (vectors, table) in enumerate(stream):
            schema = schema or table.schema
            writer = writer or pa.ipc.new_file(str(rows_file), schema)
            writer.write_table(table.cast(schema))
            write_array(self.work / "vectors" / f"{number:05d}.npy", vectors)
            rows += len(vectors)
        if writer is None:
            raise ValueError("none of the vectors has a direction: there is nothing to index")
        writer.close()
        _check_ids(rows_file)
        state = {"rows": rows, "skipped": len(source) - rows, "queries": 0}
        if asked:
            state["queries"] = len(np.load(self.blocks[-1], mmap_mode="r", allow_pickle=False))
        write_json(done, state)
        return state

    def choose(self, rows: int, dim: int, factory: str | None) -> dict[str, Any]:
        """The factory string, and what was tried to find it."""
        if factory is not None:
            faiss_index.create(dim, factory)
            return {"factory": factory, "trials": []}
        done = self.work / "choice.json"
        if not done.is_file():
            sample = self._sample(plan.sample_size(rows), rows)
            trials = plan.choose(
                sample, rows, self.budget, self.seed, lambda n, total: self.progress("trying structures", n, total)
            )
            write_json(done, {"factory": trials[0].factory, "trials": [trial.to_dict() for trial in trials]})
        return read_json(done)

    def encode(self, factory: str, dim: int) -> Any:
        """The trained index over all blocks but the last (over all of them where no queries were drawn)."""
        blocks = self.blocks[: len(self.blocks) - bool(read_json(self.work / "copied.json")["queries"])]
        trained = self.work / "trained.faiss"
        if not trained.is_file():
            index = faiss_index.create(dim, factory)
            rows = read_json(self.work / "copied.json")["rows"]
            lists = int(getattr(faiss_index.core(index), "nlist", 0))
            self.progress("training", 0, 1)
            faiss_index.train(index, self._sample(max(SAMPLE, lists * faiss_index.TRAINING_POINTS), rows))
            write_index(trained, index)
        checkpoints = sorted(self.work.glob("encoded-*.faiss"))
        start = int(checkpoints[-1].stem.removeprefix("encoded-")) if checkpoints else 0
        index = faiss_index.load(checkpoints[-1] if checkpoints else trained)
        every = max(1, -(-len(blocks) // CHECKPOINTS))
        elsewhere = self.assign(trained, blocks[start:]) if self.assign and faiss_index.can_assign(index) else None
        for number in range(start, len(blocks)):
            units = unit(np.load(blocks[number], mmap_mode="r", allow_pickle=False))
            if elsewhere is None:
                faiss_index.append(index, units, number)
            else:
                faiss_index.append_assigned(index, units, next(elsewhere))
            self.progress("encoding", number + 1, len(blocks))
            if (number + 1) % every == 0 or number + 1 == len(blocks):
                checkpoint = self.work / f"encoded-{number + 1:06d}.faiss"
                write_index(checkpoint, index)
                for old in checkpoints:
                    old.unlink(missing_ok=True)
                checkpoints = [checkpoint]
        return index

    def tune(self, index: Any) -> tuple[Effort, Measured]:
        """The effort that reaches the recall on the rows held out, and what was measured there."""
        done = self.work / "tuned.json"
        if not done.is_file():
            blocks = self.blocks
            queries = unit(np.load(blocks[-1], allow_pickle=False))
            if int(index.ntotal) < read_json(self.work / "copied.json")["rows"]:
                blocks = blocks[:-1]
            self.progress("measuring", 0, 1)
            units = (unit(np.load(block, mmap_mode="r", allow_pickle=False)) for block in blocks)
            truth = plan.exact(queries[:HELD_OUT], units)
            effort, measured = plan.tune(index, queries[:HELD_OUT], truth, self.budget)
            write_json(done, {"effort": asdict(effort), "measured": asdict(measured)})
        told = read_json(done)
        return Effort(**told["effort"]), Measured(**told["measured"])

    def finish(self, index: Any, state: dict[str, int]) -> None:
        """Add the rows held out, and leave nothing in the folder but the version."""
        if int(index.ntotal) < state["rows"]:
            faiss_index.append(index, unit(np.load(self.blocks[-1], allow_pickle=False)), len(self.blocks) - 1)
        write_index(self.work / "index.faiss", index)
        write_array(self.work / "removed.npy", np.zeros(state["rows"], bool))
        for name in ("copied.json", "choice.json", "trained.faiss", "tuned.json"):
            (self.work / name).unlink(missing_ok=True)
        for file in [*self.work.glob("encoded-*"), *self.work.glob(".*"), *self.work.glob("vectors/.*")]:
            file.unlink()

    def _sample(self, most: int, rows: int) -> np.ndarray:
        picked = np.random.default_rng(self.seed).choice(rows, min(most, rows), replace=False)
        return unit(gather(self.blocks, np.sort(picked)))


def _regroup(
    blocks: Iterator[tuple[np.ndarray, pa.Table]], held: np.ndarray, rows: int, seen: Callable[[int], None]
) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Blocks of `rows` rows that have a direction, and at the end one of those that are `held` (bool [N])."""
    import pyarrow as pa

    ready: list[tuple[np.ndarray, pa.Table]] = []
    last: list[tuple[np.ndarray, pa.Table]] = []
    start = waiting = 0
    for vectors, table in blocks:
        good = np.isfinite(unit(vectors)).all(axis=1)
        mine = held[start : start + len(vectors)]
        for keep, pile in ((good & ~mine, ready), (good & mine, last)):
            if keep.any():
                pile.append((np.asarray(vectors[keep]), table.filter(pa.array(keep))))
        waiting += int((good & ~mine).sum())
        start += len(vectors)
        seen(start)
        while waiting >= rows:
            merged, merged_table = _merge(ready)
            yield merged[:rows], merged_table.slice(0, rows)
            ready = [(merged[rows:], merged_table.slice(rows))]
            waiting -= rows
    for pile in (ready, last):
        if sum(len(vectors) for vectors, _ in pile):
            yield _merge(pile)


def _merge(pile: list[tuple[np.ndarray, pa.Table]]) -> tuple[np.ndarray, pa.Table]:
    import pyarrow as pa

    vectors = np.concatenate([vectors for vectors, _ in pile])
    return vectors, pa.concat_tables([table for _, table in pile], promote_options="default")


def _check_ids(rows_file: Path) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    with pa.memory_map(str(rows_file)) as file:
        ids = pa.ipc.open_file(file).read_all()["id"]
        if ids.null_count or pc.count_distinct(ids).as_py() != len(ids):
            repeated = ids.value_counts().sort(order="descending", by="counts")[0].as_py() if len(ids) else {}
            raise ValueError(
                f"the ids are not unique ({repeated}): name another column as the ids, or leave the repeats out"
            )
