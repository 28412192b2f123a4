"""How time, memory and recall of every stage grow with the catalog.

    OMP_NUM_THREADS=1 python benchmarks/scale.py --work /tmp/scale --record docs/results --render docs/scale.md

Every stage at every size runs in a process of its own, so that its peak of memory is its own; what was measured lies in
`--work`, and a run that was killed goes on from there. `--sizes` and `--stages` narrow it.

The items are synthetic: two "encoders" of 128 numbers, each a noisy view of the same 24 latent numbers of an item drawn
around one of N / 500 centres (at least 64); a fifth of the items lacks the second. 5,000 people have 20 events each,
all near one centre. Everything is drawn with seed 0. Item vectors have 128 numbers, as the fusion makes them; encoding
media is left out, its cost per item does not know the catalog (benchmarks/embedding_overhead.py).

Times are CPU seconds of one thread, by `time.process_time`. Memory is what the process's peak of resident memory rose
by, over what it held after its imports.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmrec import results
from mmrec.workspace import write_text

SIZES = (10_000, 100_000, 1_000_000)
PEOPLE, EVENTS, DIM = 5_000, 20, 128
QUERIES = 1_000
COMMAND = "OMP_NUM_THREADS=1 python benchmarks/scale.py --work WORK --record docs/results --render docs/scale.md"
BEGIN, END = "<!-- measured: written by benchmarks/scale.py -->", "<!-- end of measured -->"

Numbers = dict[str, float]
Stage = Callable[[Path, int], Numbers]
STAGES: dict[str, tuple[str, str, Stage]] = {}
"""name -> (what is measured, the unit of its time, the function)."""


def stage(name: str, what: str, unit: str = "") -> Callable[[Stage], Stage]:
    def add(function: Stage) -> Stage:
        STAGES[name] = what, unit, function
        return function

    return add


class Clock:
    """CPU seconds of the block."""

    def __enter__(self) -> Clock:
        self.start = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self.start


def unit_rows(x: np.ndarray) -> np.ndarray:
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def load(folder: Path, name: str) -> np.ndarray:
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def histories(items: int, seed: int = 0, people: int = PEOPLE) -> list[np.ndarray]:
    """Everybody's events lie near one centre; item i belongs to centre i mod centres."""
    random = np.random.default_rng([seed, items])
    centres = max(64, items // 500)
    mine = random.integers(centres, size=(people, 1))
    drawn = mine + centres * random.integers(items // centres, size=(people, EVENTS))
    return list(drawn.astype(np.int64))


@stage("world", "synthetic items are drawn")
def world(folder: Path, items: int) -> Numbers:
    random = np.random.default_rng([0, items])
    centres = random.standard_normal((max(64, items // 500), 24)).astype(np.float32)
    latent = np.tile(centres, (-(-items // len(centres)), 1))[:items]
    latent = latent + 0.5 * random.standard_normal(latent.shape, dtype=np.float32)
    for name in ("first", "second"):
        view = random.standard_normal((24, DIM)).astype(np.float32)
        x = np.tanh(latent @ view / 4)
        x += 0.1 * random.standard_normal(x.shape, dtype=np.float32)
        np.save(folder / f"{name}.npy", unit_rows(x))
    return {}


@stage("fuse", "fit of the fusion, with pairs used together, and a vector for every item")
def fuse(folder: Path, items: int) -> Numbers:
    from encoders.fusion import Fusion, FusionConfig
    from mmrec.stages import used_together

    vectors = {name: np.load(folder / f"{name}.npy") for name in ("first", "second")}
    present = {"first": np.ones(items, bool), "second": np.arange(items) % 5 > 0}
    with Clock() as clock:
        fusion = Fusion.fit(vectors, present, used_together(histories(items)), FusionConfig(dim=DIM), 0)
        fused = fusion.transform(vectors, present)
    np.save(folder / "vectors.npy", fused)
    return {"seconds": clock.seconds}


@stage("tokenize", "residual k-means, 3 x 256 codes: fit and a code for every item")
def tokenize(folder: Path, items: int) -> Numbers:
    from retrieval.semantic_ids import make_tokenizer

    vectors = np.load(folder / "vectors.npy")
    tokenizer = make_tokenizer("residual_kmeans", levels=3, codebook_size=256)
    with Clock() as clock:
        tokenizer.fit(vectors, seed=0)
        codes = tokenizer.encode(vectors)
    tokenizer.save(folder / "tokenizer")
    np.save(folder / "codes.npy", codes)
    return {"seconds": clock.seconds}


@stage("assign", "a further code for every item, so that no two share one")
def assign(folder: Path, items: int) -> Numbers:
    from retrieval.semantic_ids import assign_unique, load_tokenizer

    tokenizer = load_tokenizer(folder / "tokenizer")
    vectors, codes = np.load(folder / "vectors.npy"), np.load(folder / "codes.npy")
    with Clock() as clock:
        ids = assign_unique(codes, vectors, tokenizer, seed=0)
    ids.save(folder / "ids")
    return {"seconds": clock.seconds, "moved": float((ids.wanted != ids.codes[:, :-1]).any(axis=1).mean())}


@stage("trie", "the tree of all codes, and what 256 people may still see of it")
def trie(folder: Path, items: int) -> Numbers:
    from retrieval.semantic_ids import SemanticIds
    from retrieval.trie import Trie

    ids = SemanticIds.load(folder / "ids")
    with Clock() as clock:
        tree = Trie(ids.codes, ids.sizes)
        tree.reachable(None, histories(items, 1, 256))
    return {"seconds": clock.seconds}


@stage("index", "a FAISS index built; recall@10 against exact search, and CPU milliseconds of one query")
def index(folder: Path, items: int) -> Numbers:
    from retrieval.index import VectorIndex

    vectors = np.load(folder / "vectors.npy")
    with Clock() as clock:
        built = build_index(vectors)
    built.save(folder / "index")
    queries = near(vectors, QUERIES)
    with Clock() as asking:
        _, found = built.search(queries, 10)
    del built
    _, exact = VectorIndex.build(vectors, "Flat").search(queries, 10)
    hits = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, exact, strict=True)])
    return {"seconds": clock.seconds, "recall@10": float(hits), "query_ms": asking.seconds / QUERIES * 1e3}


def build_index(vectors: np.ndarray) -> Any:
    """IVF with 4 * sqrt(N) lists, 1/32 of them read for a query."""
    from retrieval.index import VectorIndex

    lists = int(4 * math.sqrt(len(vectors)))
    built = VectorIndex.build(vectors, f"IVF{lists},SQ8")
    built._index.nprobe = max(8, lists // 32)
    return built


def near(vectors: np.ndarray, n: int) -> np.ndarray:
    """Queries: items, moved."""
    random = np.random.default_rng(1)
    chosen = np.asarray(vectors[np.sort(random.choice(len(vectors), n, replace=False))])
    return unit_rows(chosen + 0.5 / math.sqrt(DIM) * random.standard_normal(chosen.shape, dtype=np.float32))


@stage("train retriever", "an epoch of items, six of codes; 100,000 events, 512 sampled negatives", "event")
def train_retriever(folder: Path, items: int) -> Numbers:
    from retrieval.model import RetrieverConfig
    from retrieval.semantic_ids import SemanticIds
    from retrieval.training import train_retriever as train

    ids = SemanticIds.load(folder / "ids")
    with Clock() as clock:
        retriever = train(histories(items), np.load(folder / "vectors.npy"), ids, RetrieverConfig(epochs=1), seed=0)
    retriever.save_pretrained(folder / "retriever")
    return {"seconds": clock.seconds / (PEOPLE * EVENTS)}


def recommend(mode: str) -> Stage:
    def ask(folder: Path, items: int) -> Numbers:
        from retrieval.retriever import Retriever

        retriever = Retriever.from_pretrained(folder / "retriever")
        people = histories(items, 1, 64)
        retriever.recommend(people[:1], 10, mode=mode)  # type: ignore[arg-type]
        with Clock() as clock:
            retriever.recommend(people, 10, mode=mode)  # type: ignore[arg-type]
        return {"seconds": clock.seconds / len(people)}

    return ask


for how, told in (("dense", "the whole catalog ranked"), ("codes", "beam search of 50"), ("fused", "both")):
    STAGES[f"recommend, {how}"] = f"10 items for one person, {told}", "person", recommend(how)


@stage("beam", "recall@10 of the beam search against the score of every item, 4 people")
def beam(folder: Path, items: int) -> Numbers:
    import torch

    from retrieval.decode import score_items
    from retrieval.retriever import Retriever

    retriever = Retriever.from_pretrained(folder / "retriever")
    people = histories(items, 2, 4)
    found, _ = retriever.recommend(people, 10, mode="codes", hide_history=False)
    states = retriever.states(people)
    with torch.no_grad():
        parts = [
            score_items(retriever.model, states, part)
            for part in torch.arange(items).expand(4, -1).split(16_384, dim=1)
        ]
    exact = torch.cat(parts, dim=1).topk(10, dim=1).indices.numpy()
    return {"recall@10": float(np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, exact, strict=True)]))}


@stage("prepare prior", "what training the prior looks up before its first step")
def prepare_prior(folder: Path, items: int) -> Numbers:
    from diffusion.examples import Examples
    from diffusion.network import PriorConfig

    vectors, people = np.load(folder / "vectors.npy"), histories(items)
    liking = [np.ones(EVENTS, np.float32)] * len(people)
    with Clock() as clock:
        examples = Examples(people, liking, vectors, PriorConfig(dim=DIM))
        examples.batch(0)
    return {"seconds": clock.seconds}


@stage("dream", "24 seed embeddings for 64 people, 8 steps with guidance", "seed")
def dream(folder: Path, items: int) -> Numbers:
    import torch

    from diffusion.network import Denoiser, PriorConfig
    from diffusion.prior import Conditions, Prior

    torch.manual_seed(0)
    prior = Prior(Denoiser(PriorConfig(dim=DIM)).eval())
    people = histories(items, 3, 64)
    conditions = Conditions.from_histories(people, [np.ones(EVENTS)] * 64, load(folder, "vectors"))
    prior.sample(conditions, 1)
    with Clock() as clock:
        prior.sample(conditions, 24)
    return {"seconds": clock.seconds / (64 * 24)}


@stage("ground", "50 items for the 24 seeds of one person, nothing seen again", "person")
def ground(folder: Path, items: int) -> Numbers:
    from retrieval.grounding import ground as to_items
    from retrieval.index import VectorIndex

    built = VectorIndex.load(folder / "index")
    seeds = near(load(folder, "vectors"), 24 * 20).reshape(20, 24, DIM)
    people = histories(items, 4, 20)
    with Clock() as clock:
        for mine, seen in zip(seeds, people, strict=True):
            to_items(mine, None, built, 50, exclude=seen)
    return {"seconds": clock.seconds / len(people)}


# -- running and telling -----------------------------------------------------------------------------------------------


def run_one(name: str, items: int, work: Path) -> None:
    """Measure one stage in this process, and write what was found."""
    import faiss
    import sklearn.cluster  # noqa: F401
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    folder = work / str(items)
    before = peak_mb()
    numbers = STAGES[name][2](folder, items)
    numbers |= {"peak_mb": peak_mb(), "added_mb": max(1.0, peak_mb() - before)}
    write_text(result_file(work, name, items), json.dumps(numbers))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def result_file(work: Path, name: str, items: int) -> Path:
    return work / str(items) / "measured" / f"{name}.json"


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of the least-squares line through the points on logarithmic axes."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def gather(work: Path, sizes: list[int]) -> dict[str, dict[int, Numbers]]:
    found: dict[str, dict[int, Numbers]] = {}
    for name in STAGES:
        lying = {n: result_file(work, name, n) for n in sizes}
        numbers = {n: json.loads(file.read_text()) for n, file in lying.items() if file.is_file()}
        if name != "world" and numbers:
            found[name] = numbers
    return found


def records(found: dict[str, dict[int, Numbers]]) -> list[results.Record]:
    commit, machine = results.commit(), results.machine()

    def record(dataset: str, name: str, metric: str, value: float) -> results.Record:
        return results.Record(
            dataset=dataset,
            split="scale",
            model=name,
            metric=metric,
            mean=value,
            seeds=(0,),
            command=COMMAND,
            commit=commit,
            machine=machine,
        )

    told = []
    for name, by_size in found.items():
        for items, numbers in by_size.items():
            told += [record(f"synthetic, {items:,} items", name, metric, value) for metric, value in numbers.items()]
        for metric in ("seconds", "added_mb"):
            sizes = [n for n, numbers in by_size.items() if metric in numbers]
            if len(sizes) > 1:
                slope = exponent(sizes, [by_size[n][metric] for n in sizes])
                told.append(record("synthetic, growth with the catalog", name, f"{metric} exponent", slope))
    return told


def table(found: dict[str, dict[int, Numbers]], sizes: list[int]) -> str:
    head = ["stage", *(f"CPU time, {n:,}" for n in sizes), "grows as"]
    head += [*(f"memory, {n:,}" for n in sizes), "grows as", *(f"recall@10, {n:,}" for n in sizes)]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for name, by_size in found.items():
        what, unit, _ = STAGES[name]
        cells = [f"**{name}**: {what}"]
        for metric, show in (("seconds", duration), ("added_mb", megabytes)):
            known = [n for n in sizes if metric in by_size.get(n, {})]
            if metric == "added_mb" and name == "beam":
                known = []
            cells += [show(by_size[n][metric], unit) if n in known else "" for n in sizes]
            slope = exponent(known, [by_size[n][metric] for n in known]) if len(known) > 1 else None
            cells.append("" if slope is None else f"N^{slope:.2f}")
        cells += [f"{by_size[n]['recall@10']:.3f}" if "recall@10" in by_size.get(n, {}) else "" for n in sizes]
        lines.append("| " + " | ".join(cells) + " |")
    told = [f"{results.machine()}, one thread. Written by `{COMMAND}`."]
    if "index" in found:
        queries = ", ".join(f"{found['index'][n]['query_ms']:.2f} ms at {n:,}" for n in sizes if n in found["index"])
        told.append(f"One query of the index takes {queries} items.")
    if "assign" in found:
        moved = ", ".join(f"{found['assign'][n]['moved']:.2%} of {n:,}" for n in sizes if n in found["assign"])
        told.append(f"Items that had to take another prefix than their own: {moved}.")
    return "\n".join(lines) + "\n\n" + " ".join(told)


def duration(seconds: float, unit: str) -> str:
    per = f" {'an' if unit[0] in 'aeiou' else 'a'} {unit}" if unit else ""
    for limit, factor, name in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {name}{per}"
    return f"{seconds:.3g} s{per}"


def megabytes(value: float, _: str) -> str:
    return f"{value / 1024:.2f} GB" if value >= 1024 else f"{value:.0f} MB"


def render(text: str, page: Path) -> None:
    """Put the table between the markers of the page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    write_text(page, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and for what was measured")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    parser.add_argument("--render", type=Path, help="write the table between the markers of this page")
    options = parser.parse_args()
    if options.one:
        run_one(options.one[0], int(options.one[1]), options.work)
        return
    for items in options.sizes:
        for name in options.stages:
            if result_file(options.work, name, items).is_file():
                continue
            (options.work / str(items)).mkdir(parents=True, exist_ok=True)
            command = [sys.executable, __file__, "--work", str(options.work), "--one", name, str(items)]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            print(f"{items:,} {name}: {result_file(options.work, name, items).read_text()}", flush=True)
    found = gather(options.work, list(SIZES))
    text = table(found, list(SIZES))
    print(text)
    if options.record:
        print(results.write_records("scale", records(found), options.record))
    if options.render:
        render(text, options.render)


if __name__ == "__main__":
    main()
