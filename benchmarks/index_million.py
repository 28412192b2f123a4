"""A million vectors on a laptop: our index for a budget beside exact search, hnswlib, autofaiss and plain FAISS.

    python benchmarks/index_million.py                      # 1,000,000 x 512 into docs/results/index_million.json
    python benchmarks/index_million.py --items 100000 --no-record

Its peers are no dependencies of mmrec: `pip install hnswlib` first. Every part builds in a process of its own and
serves in another, so that resident memory is the server's alone; a part that is finished is skipped when the run is
started again. A server has only what it needs to answer: the index. All cores build; one thread answers, and its rate
is told for each second of CPU, which other work on the machine does not bend.

The vectors are synthetic. Each comes from a point in 48 dimensions, drawn around one of 2,000 centres of unequal size
whose spread is as wide as the distance between them, so that they overlap and no partition separates them; a random
network of two layers bends that sheet into 512 dimensions, and noise of a quarter of its deviation is added in all
512 of them. 64 principal components hold 90 % of the variance, 256 97 %. Queries are drawn alike and are in no index.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

DIM, LATENT, CENTRES, QUERIES, K = 512, 48, 2_000, 1_000, 10
SHARD = 50_000
EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
PLAIN = [
    "HNSW32_SQ8",
    "IVF{lists},Flat",
    "IVF{lists},SQ8",
    "IVF{lists},RaBitQfs,Refine(SQ8)",
    "OPQ64_256,IVF{lists},PQ64x4fs,Refine(SQ8)",
]


def make(folder: Path, items: int) -> None:
    """Shards of float16 vectors in the clip-retrieval layout, queries.npy, and the exact neighbours of the queries."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((CENTRES, LATENT)).astype(np.float32)
    first = generator.standard_normal((LATENT, 256)).astype(np.float32) / np.sqrt(LATENT)
    second = generator.standard_normal((256, DIM)).astype(np.float32) / 16
    sizes = 1 / np.arange(1, CENTRES + 1) ** 0.7
    (folder / "img_emb").mkdir(parents=True, exist_ok=True)

    def draw(n: int, seed: int) -> np.ndarray:
        generator = np.random.default_rng([1, seed])
        latent = 0.7 * centres[generator.choice(CENTRES, n, p=sizes / sizes.sum())]
        latent += 0.7 * generator.standard_normal((n, LATENT), dtype=np.float32)
        bent = np.tanh(1.2 * latent @ first) @ second
        bent += 0.25 * bent.std() * generator.standard_normal((n, DIM), dtype=np.float32)
        return (bent / np.linalg.norm(bent, axis=1, keepdims=True)).astype(np.float16)

    for number, start in enumerate(range(0, items, SHARD)):
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", draw(min(SHARD, items - start), number))
    np.save(folder / "queries.npy", draw(QUERIES, 1_000_000))


def vectors(folder: Path) -> np.ndarray:
    """All of them, float32 [N, D] of unit length."""
    files = sorted((folder / "img_emb").glob("*.npy"), key=lambda file: int(file.stem.rsplit("_", 1)[1]))
    known = np.concatenate([np.load(file) for file in files]).astype(np.float32)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    return known


def unit_queries(folder: Path) -> np.ndarray:
    queries = np.load(folder / "queries.npy").astype(np.float32)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


# -- the parts: what each builds, and how each serves ------------------------------------------------------------------


def build_part(part: str, folder: Path, place: Path) -> dict[str, Any]:
    kind, _, detail = part.partition(": ")
    if kind == "mmrec":
        from retrieval import vector_store
        from retrieval.vector_store.plan import PROCESS

        source = vector_store.open_shards(folder, "img")
        memory = PROCESS + (1_200_000_000 - PROCESS) * len(source) // 1_000_000  # 1.2 GB at a million
        budget = vector_store.Budget(memory=memory, recall=0.95)
        report = vector_store.build(place, source, space="synthetic", budget=budget, progress=print_progress)
        return {"chose": report.factory, "effort": [report.effort.reach, report.effort.rerank]}
    if kind == "hnswlib":
        import hnswlib

        index = hnswlib.Index("ip", DIM)
        known = vectors(folder)
        index.init_index(len(known), M=16, ef_construction=100, random_seed=0)
        for start in range(0, len(known), 20_000):
            index.add_items(known[start : start + 20_000], np.arange(start, min(start + 20_000, len(known))))
            print_progress("adding", start, len(known))
        index.save_index(str(place / "index.bin"))
        return {}
    if kind == "autofaiss":
        import autofaiss

        known = vectors(folder)
        _, told = autofaiss.build_index(
            known,
            index_path=str(place / "index.faiss"),
            index_infos_path=str(place / "told.json"),
            max_index_memory_usage="1.05GB",
            metric_type="ip",
            current_memory_available="16GB",
            nb_cores=len(os.sched_getaffinity(0)),
        )
        return {"chose": str(told["index_key"]), "param": str(told["index_param"])}
    import faiss

    index = faiss.index_factory(DIM, detail, faiss.METRIC_INNER_PRODUCT)
    known = vectors(folder)
    if not index.is_trained:
        lists = int(detail.split("IVF")[1].split(",")[0]) if "IVF" in detail else 0
        picked = np.random.default_rng(0).choice(len(known), min(len(known), max(50_000, 64 * lists)), replace=False)
        index.train(known[np.sort(picked)])
    for start in range(0, len(known), 50_000):
        index.add(known[start : start + 50_000])
        print_progress("adding", start, len(known))
    faiss.write_index(index, str(place / "index.faiss"))
    return {}


def serve_part(part: str, folder: Path, place: Path, built: dict[str, Any]) -> list[dict[str, Any]]:
    """Per effort: recall@10, queries for a second of CPU (many at once, on one thread), and resident bytes."""
    kind, _, detail = part.partition(": ")
    queries, truth = unit_queries(folder), np.load(folder / "truth.npy")
    settings: list[Any] = [None]
    if kind == "mmrec":
        from retrieval.vector_store import VectorStore

        store = VectorStore.open(place)
        order = store.table["id"].cast("int64").to_numpy()  # without metadata an id is the number of the row

        def ask(asked: np.ndarray, setting: Any) -> np.ndarray:
            return order[store.search(asked, K, space="synthetic")[1]]
    elif kind == "hnswlib":
        import hnswlib

        index = hnswlib.Index("ip", DIM)
        index.load_index(str(place / "index.bin"))
        index.set_num_threads(1)
        settings = list(EFFORTS)

        def ask(asked: np.ndarray, setting: Any) -> np.ndarray:
            index.set_ef(setting)
            return index.knn_query(asked, K)[0].astype(np.int64)
    else:
        import faiss

        faiss_index = faiss.read_index(str(place / "index.faiss"))
        space = faiss.ParameterSpace()
        if kind == "autofaiss":
            space.set_index_parameters(faiss_index, built["param"])
        elif "HNSW" in detail:
            settings = [f"efSearch={effort}" for effort in EFFORTS]
        elif "Refine" in detail:
            settings = [f"nprobe={n},k_factor_rf={f}" for n in (16, 32, 64, 128, 256, 512) for f in (4, 8, 16)]
        elif "IVF" in detail:
            settings = [f"nprobe={n}" for n in (16, 32, 64, 128, 192, 256, 384, 512)]

        def ask(asked: np.ndarray, setting: Any) -> np.ndarray:
            if setting is not None:
                space.set_index_parameters(faiss_index, setting)
            return faiss_index.search(asked, K)[1]

    points = []
    for setting in settings:
        answers: list[np.ndarray] = []
        rounds = [
            timed(lambda: answers.append(ask(queries, setting)))  # noqa: B023
            for _ in range(1 if kind == "exact" else 4)
        ]
        recall = float(np.mean([len(set(a) & set(b)) for a, b in zip(answers[0], truth, strict=True)]) / K)
        singles = queries[: 20 if kind == "exact" else 100]
        alone = float(np.median([timed(lambda: ask(query[None], setting)) for query in singles]))  # noqa: B023
        points.append(
            {
                "setting": str(setting),
                "recall": recall,
                "per CPU second": len(queries) / min(rounds),
                "alone": 1 / alone,
                "resident": resident(),
            }
        )
        print(f"  {part} {points[-1]}", flush=True)
        if recall >= 0.97 and kind not in ("exact", "mmrec"):
            break
    return points


def timed(call: Any) -> float:
    """Seconds of CPU."""
    started = time.process_time()
    call()
    return time.process_time() - started


def resident() -> int:
    """Bytes of this process that are in memory, pages of files included."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def print_progress(what: str, done: int, total: int) -> None:
    print(f"  {what} {done:,} of {total:,}", flush=True)


# -- the run -----------------------------------------------------------------------------------------------------------


def run_part(step: str, part: str, folder: Path, python: str) -> None:
    """Build or serve one part, in this process; what it finds goes beside its index."""
    place = folder / part.replace(": ", "-").replace(",", "_").replace("(", "_").replace(")", "")
    place.mkdir(exist_ok=True)
    file = place / f"{step}.json"
    if file.is_file():
        return
    if python != sys.executable:
        subprocess.run([python, __file__, "--step", step, "--part", part, "--folder", str(folder)], check=True)
        return
    started, cpu = time.perf_counter(), time.process_time()
    if step == "build":
        told: Any = build_part(part, folder, place)
        told |= {"seconds": time.perf_counter() - started, "CPU seconds": time.process_time() - cpu}
    else:
        told = serve_part(part, folder, place, json.loads((place / "build.json").read_text()))
    file.with_suffix(".part").write_text(json.dumps(told))
    file.with_suffix(".part").replace(file)


def best_at(points: list[dict[str, Any]], recall: float = 0.95) -> dict[str, Any]:
    """The quickest point that has the recall, or the one nearest to it."""
    able = [point for point in points if point["recall"] >= recall]
    return max(able, key=lambda p: p["per CPU second"]) if able else max(points, key=lambda p: p["recall"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=None, help="scratch: vectors and indexes (about 20 GB)")
    parser.add_argument("--autofaiss-python", default="", help="a Python that has autofaiss (which needs NumPy 1)")
    parser.add_argument("--only", nargs="*", help="parts by the start of their names")
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--step", choices=["make", "truth", "build", "serve"], help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = given.folder or Path("workspaces") / f"index-{given.items}"
    if given.step == "make":
        make(folder, given.items)
    elif given.step == "truth":
        truth(folder)
    elif given.step:
        run_part(given.step, given.part, folder, sys.executable)
    else:
        orchestrate(folder, given)


def truth(folder: Path) -> None:
    queries, known = unit_queries(folder), vectors(folder)
    best = []
    for asked in np.array_split(queries, 100):
        cosines = asked @ known.T
        near = np.argpartition(-cosines, K - 1, axis=1)[:, :K]
        order = np.argsort(-np.take_along_axis(cosines, near, axis=1), axis=1)
        best.append(np.take_along_axis(near, order, axis=1))
    np.save(folder / "truth.npy", np.concatenate(best))


def orchestrate(folder: Path, given: argparse.Namespace) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    mine = [sys.executable, __file__, "--folder", str(folder), "--items", str(given.items)]
    for step, done in (("make", "queries.npy"), ("truth", "truth.npy")):
        if not (folder / done).is_file():
            subprocess.run([*mine, "--step", step], check=True)
    lists = 2 ** round(np.log2(4 * given.items**0.5))
    parts = ["exact: Flat", "mmrec", "hnswlib: M=16", *(f"faiss: {p.format(lists=lists)}" for p in PLAIN)]
    parts += ["autofaiss"] if given.autofaiss_python else []
    rows = []
    for part in parts:
        if given.only and not any(part.startswith(name) for name in given.only):
            continue
        for step in ("build", "serve"):
            python = given.autofaiss_python if part == "autofaiss" else sys.executable
            threads = {} if step == "build" else {"OMP_NUM_THREADS": "1"}
            command = [python, __file__, "--step", step, "--part", part, "--folder", str(folder)]
            ended = subprocess.run(command, env={**os.environ, **threads})
            if ended.returncode:
                print(f"{part}: {step} failed")
                break
        else:
            place = folder / part.replace(": ", "-").replace(",", "_").replace("(", "_").replace(")", "")
            built, points = (json.loads((place / f"{step}.json").read_text()) for step in ("build", "serve"))
            name = f"{part} ({built['chose']})" if "chose" in built else part
            rows.append((name, built, best_at(points)))
    if not given.autofaiss_python:
        print("autofaiss is left out: its releases need NumPy 1 (--autofaiss-python names a Python that has it)")
    show(rows)
    if not given.no_record:
        record(rows, given.items)


def show(rows: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> None:
    print("| index | recall@10 | queries per CPU s | one by one | resident MB | build s | build CPU s | setting |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for name, built, p in rows:
        print(
            f"| {name} | {p['recall']:.4f} | {p['per CPU second']:,.0f} | {p['alone']:,.0f} | "
            f"{p['resident'] / 1e6:,.0f} | {built['seconds']:,.0f} | {built['CPU seconds']:,.0f} | {p['setting']} |"
        )


def record(rows: list[tuple[str, dict[str, Any], dict[str, Any]]], items: int) -> None:
    from mmrec import results

    at, on = results.commit(), results.machine()
    exact = next((point for name, _, point in rows if name.startswith("exact")), None)
    records = []
    for name, built, p in rows:
        numbers = {
            "recall@10 of exact": p["recall"],
            "queries per CPU second": p["per CPU second"],
            "queries per CPU second, one by one": p["alone"],
            "resident MB": p["resident"] / 1e6,
            "build seconds": built["seconds"],
            "build CPU seconds": built["CPU seconds"],
        }
        if exact is not None:
            numbers["times exact, per CPU second"] = p["per CPU second"] / exact["per CPU second"]
        records += [
            results.Record(
                dataset=f"{items:,} synthetic vectors of {DIM} dimensions",
                split=f"{QUERIES:,} unseen queries",
                model=name,
                metric=metric,
                mean=round(value, 4),
                seeds=(0,),
                command=f"python benchmarks/index_million.py --items {items}",
                commit=at,
                machine=on,
            )
            for metric, value in numbers.items()
        ]
    print(results.write_records("index_million", records))


if __name__ == "__main__":
    main()
