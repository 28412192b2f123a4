"""`mmrec index ...`: indexes for a budget, grown, shrunk, searched and rolled back."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np

    from mmrec.engines import Engine, Files, Task
    from mmrec.workspace import Workspace
    from retrieval.vector_store import Report
    from retrieval.vector_store.build import Assign
    from retrieval.vector_store.sources import Source

app = typer.Typer(no_args_is_help=True, help="Nearest-neighbour indexes: build, grow, shrink, search, roll back.")

Index = Annotated[Path, typer.Argument(help="The folder of the index.")]
Shards = Annotated[Path, typer.Argument(help="A folder of embedding shards, as clip-retrieval or mmrec embed writes.")]
OfWorkspace = Annotated[Path, typer.Option("--workspace", "-w", help="The workspace folder.")]
Modality = Annotated[str | None, typer.Option(help="Which <modality>_emb folder of the shards.")]
IdColumn = Annotated[str | None, typer.Option(help="The metadata column that holds the ids.")]
Space = Annotated[str | None, typer.Option(help="Name of the embedding space, where spaces.json does not say it.")]
HERE = Path("workspace")
SIZES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


@app.command()
def build(
    shards: Annotated[Path | None, typer.Argument(help="A folder of embedding shards; without, the workspace.")] = None,
    workspace: OfWorkspace = HERE,
    out: Annotated[Path | None, typer.Option(help="Folder of the index; without, the workspace's own stage.")] = None,
    memory: Annotated[str | None, typer.Option(help="Most memory while serving, as 1.2GB.")] = None,
    recall: Annotated[float, typer.Option(help="Least recall@10 against exact search.")] = 0.95,
    latency: Annotated[float | None, typer.Option(help="Most milliseconds for one query alone.")] = None,
    factory: Annotated[str | None, typer.Option(help="A FAISS factory string instead of a choice.")] = None,
    modality: Modality = None,
    id_column: IdColumn = None,
    space: Space = None,
    part: Annotated[str | None, typer.Option(help="I/N: every N-th shard from the I-th on, from 0.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same result.")] = 0,
    engine: Annotated[str, typer.Option(help="local, or ray: inverted files are filled by a cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster; without it, one on this machine.")] = None,
) -> None:
    """Build an index for a budget of memory, recall and time, and print what was measured."""
    if shards is None and out is None:
        _stage(workspace, factory)
        return
    from mmrec.engines import make_engine
    from mmrec.errors import MmrecError
    from mmrec.workspace import writing
    from retrieval import vector_store

    runs = make_engine(engine, address)
    about: dict[str, Any]
    source: Source
    if shards is None:
        source, space, about = _items(workspace)
    else:
        source, space = _shards(shards, modality, id_column, space)
        about = {"shards": shards.name, "modality": modality}
        if part is not None:
            number, _, parts = part.partition("/")
            if not (number.isdigit() and parts.isdigit()):
                raise MmrecError(f"{part!r} is no part", mend="--part 0/4 for the first of four")
            source = source.part(int(number), int(parts))  # type: ignore[attr-defined]
    if out is None:
        raise MmrecError("there is no folder to build into", mend="--out INDEX")
    budget = vector_store.Budget(_bytes(memory), recall, latency)
    with writing(out), _progress() as tell:
        report = vector_store.build(
            out,
            source,
            space=space,
            budget=budget,
            factory=factory,
            about=about,
            seed=seed,
            progress=tell,
            assign=None if engine == "local" else _assign_by(runs),
        )
    _say(report, budget)


@app.command()
def add(
    index: Index, shards: Shards, modality: Modality = None, id_column: IdColumn = None, space: Space = None
) -> None:
    """Add the vectors of a folder of shards; nothing is trained again."""
    from mmrec.workspace import writing
    from retrieval import vector_store

    source, name = _shards(shards, modality, id_column, space)
    with writing(index):
        print(f"{vector_store.add(index, source, space=name):,} added")


@app.command()
def update(
    index: Index, shards: Shards, modality: Modality = None, id_column: IdColumn = None, space: Space = None
) -> None:
    """Replace the vectors and metadata of ids that are in the index."""
    from mmrec.workspace import writing
    from retrieval import vector_store

    source, name = _shards(shards, modality, id_column, space)
    with writing(index):
        print(f"{vector_store.update(index, source, space=name):,} updated")


@app.command()
def remove(
    index: Index,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A file with one id a line.")] = None,
) -> None:
    """These ids answer no more; compact wins their place back."""
    from mmrec.workspace import writing
    from retrieval import vector_store

    with writing(index):
        print(f"{vector_store.remove(index, [*(ids or []), *(_lines(file) if file else [])]):,} removed")


@app.command()
def compact(index: Index) -> None:
    """Build again without what was removed, for the budget of before."""
    from mmrec.workspace import writing
    from retrieval import vector_store

    with writing(index), _progress() as tell:
        _say(vector_store.compact(index, tell), None)


@app.command()
def rollback(index: Index, to: Annotated[int | None, typer.Option(help="The number of a version.")] = None) -> None:
    """Go back to the version before, or to one by its number."""
    from mmrec.workspace import writing
    from retrieval import vector_store

    with writing(index):
        print(f"version {int(vector_store.rollback(index, to).name)} answers now")


@app.command()
def info(index: Index) -> None:
    """What an index holds, where it comes from, what was measured, and its versions."""
    from retrieval import vector_store

    store = vector_store.VectorStore.open(index, mmap=True)
    report = store.about["report"]
    gone = int(store.removed.sum())
    print(f"{len(store):,} vectors of {store.dim} dimensions, {gone:,} removed and not yet compacted")
    print(f"space: {store.space}")
    for name, value in store.about["source"].items():
        print(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")
    print(f"columns: {', '.join(store.table.column_names)}")
    print(f"structure: {report['factory']}, effort {report['effort']}")
    print("measured when built: " + ", ".join(f"{name} {value:.4g}" for name, value in report["measured"].items()))
    versions = [int(path.name) for path in vector_store.all_versions(index)]
    print(f"versions: {', '.join(f'{n} (current)' if n == store.number else str(n) for n in versions)}")


@app.command()
def search(
    index: Index,
    text: Annotated[str, typer.Option(help="Words.")] = "",
    image: Annotated[Path | None, typer.Option(help="A picture.")] = None,
    audio: Annotated[Path | None, typer.Option(help="A sound.")] = None,
    item: Annotated[str | None, typer.Option(help="The id of a row: what is nearest to it.")] = None,
    encoder: Annotated[str | None, typer.Option(help="The encoder that made the vectors of the index.")] = None,
    workspace: Annotated[
        Path | None, typer.Option("--workspace", "-w", help="The workspace whose item vectors the index holds.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many.")] = 10,
    allowed: Annotated[Path | None, typer.Option(help="A file with one id a line: only these.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="COLUMN=VALUE of the metadata; may be repeated.")] = None,
) -> None:
    """Nearest rows to words, a picture, a sound, or a row of the index; filtered, k come back wherever k may."""
    from mmrec.cli import _print_table
    from mmrec.errors import MmrecError
    from retrieval.vector_store import VectorStore

    store = VectorStore.open(index)
    asked = [(m, str(what)) for m, what in (("text", text), ("image", image), ("audio", audio)) if what]
    if len(asked) + (item is not None) != 1:
        raise MmrecError("search takes exactly one of --text, --image, --audio and --item", mend="give one")
    if item is not None:
        rows = store.mask(ids=[item]).nonzero()[0]
        if not len(rows):
            raise MmrecError(f"the index has no {item!r}", mend="mmrec index info tells what it holds")
        query, space = store.vectors(rows), store.space
    else:
        query, space = _encode(*asked[0], encoder, workspace)
    mask = None
    if allowed is not None or where:
        pairs = [pair.partition("=") for pair in where or ()]
        filters: dict[str, list[Any]] = {}
        for column, _, value in pairs:
            filters.setdefault(column, []).append(value)
        mask = store.mask(_lines(allowed) if allowed else None, filters)
    scores, found = store.search(query, k, space=space, allowed=mask)
    names = store.ids(found)[0]
    lines = [
        (str(place), name, f"{score:.3f}") for place, (name, score) in enumerate(zip(names, scores[0], strict=False), 1)
    ]
    _print_table("Found", ("", "id", "cosine"), lines)


class _Assigner:
    """Finds the inverted lists of the vectors of one block; the worker of `build`."""

    def __init__(self, trained: Path) -> None:
        self.trained = trained

    def __call__(self, task: Task) -> Files:
        import numpy as np

        from mmrec.engines import npy_bytes
        from retrieval.vector_store import assign_block

        return {"lists": npy_bytes(assign_block(self.trained, Path(task["block"])).astype(np.int32))}


def _assign_by(engine: Engine) -> Assign:
    def assign(trained: Path, blocks: list[Path]) -> Iterator[np.ndarray]:
        import numpy as np

        tasks = [{"block": str(block.resolve())} for block in blocks]
        for files in engine.run(_Assigner(trained.resolve()), tasks):
            yield np.load(io.BytesIO(files["lists"]), allow_pickle=False)

    return assign


def _stage(workspace: Path, factory: str | None) -> None:
    from mmrec import stages
    from mmrec.cli import _done, _open

    opened, recipe = _open(workspace)
    if factory is not None:
        recipe.index = factory
    _done("index", stages.index(opened, recipe)[1])
    recipe.save(workspace / "recipe.yaml")


def _space_of(workspace: Workspace) -> str:
    """The item space of a workspace: its encoders, fusion and catalog are all in this fingerprint."""
    return f"items of {workspace.require('vectors').fingerprint}"


def _items(folder: Path) -> tuple[Source, str, dict[str, Any]]:
    """The item vectors of a workspace with ids, titles and modalities; their space, and what they were made from."""
    import pyarrow as pa

    from mmrec.catalog import Catalog
    from mmrec.cli import _open
    from mmrec.stages import load_vectors
    from retrieval.vector_store import Arrays

    workspace, _ = _open(folder)
    catalog = Catalog.load(workspace.require("catalog").path)
    columns = {
        "title": list(catalog.titles),
        "has_image": [catalog.image_path(row) is not None for row in range(len(catalog))],
        "has_audio": [catalog.audio_path(row) is not None for row in range(len(catalog))],
    }
    spaces = json.loads((workspace.require("embeddings").path / "spaces.json").read_text(encoding="utf-8"))
    about = {
        "encoders": {modality: space["encoder"] for modality, space in spaces.items()},
        "fusion": workspace.require("vectors").fingerprint,
        "catalog": workspace.require("catalog").fingerprint,
    }
    source = Arrays(load_vectors(workspace), list(catalog.item_ids), pa.table(columns))
    return source, _space_of(workspace), about


def _shards(folder: Path, modality: str | None, id_column: str | None, space: str | None) -> tuple[Source, str]:
    from mmrec.errors import MmrecError
    from retrieval.vector_store import open_shards

    shards = open_shards(folder, modality, id_column)
    if shards.space and space and shards.space != space:
        raise MmrecError(f"{folder} holds vectors of {shards.space!r}, not of {space!r}", mend="leave --space out")
    name = space or shards.space
    if name is None:
        raise MmrecError(
            f"{folder} does not say which encoder made its vectors, and an index refuses queries of another",
            mend="name the encoder: --space open_clip:ViT-B-32/openai",
        )
    return shards, name


def _encode(modality: str, what: str, encoder: str | None, workspace: Path | None) -> tuple[Any, str]:
    """A query [1, D] and the name of its space."""
    from mmrec.errors import MmrecError

    if workspace is not None:
        from mmrec import Recommender

        recommender = Recommender.load(workspace)
        return recommender.steer(modality, what)[None], _space_of(recommender.workspace)
    if encoder is None:
        raise MmrecError("words and media need an encoder", mend="--encoder NAME, or -w WORKSPACE")
    from encoders.registry import load_encoder
    from mmrec.embedding import read_media

    loaded = load_encoder(encoder)
    return loaded.encode([read_media(what, modality)], modality), loaded.space


def _bytes(text: str | None) -> int | None:
    from mmrec.errors import MmrecError

    if text is None:
        return None
    match = re.fullmatch(r"([\d.]+)\s*([KMGT]I?B)", text.strip().upper())
    if match is None or match[2] not in SIZES:
        raise MmrecError(f"{text!r} is no amount of memory", mend="--memory 1.2GB")
    return int(float(match[1]) * SIZES[match[2]])


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


@contextmanager
def _progress() -> Iterator[Any]:
    """One progress bar for each thing that is done after another."""
    from mmrec.progress import progress

    with ExitStack() as stack:
        now, tick = "", None

        def tell(what: str, done: int, total: int) -> None:
            nonlocal now, tick
            if what != now:
                stack.close()
                now, tick = what, stack.enter_context(progress(what, unit="steps"))
            assert tick is not None
            tick(done, total)

        yield tell


def _say(report: Report, budget: Any) -> None:
    from mmrec.cli import _print_table

    tried = [
        (
            trial["factory"],
            f"{trial['measured']['recall']:.3f}",
            f"{trial['measured']['queries_per_second']:,.0f}",
            f"{trial['measured']['latency']:.2f}",
            f"{trial['memory'] / 1e6:,.0f}",
        )
        for trial in report.trials
    ]
    if tried:
        head = ("structure", "recall@10", "queries/s", "ms alone", "MB in full, with the process")
        _print_table("Tried on a sample", head, tried)
    measured = report.measured
    print(f"{report.factory} over {report.rows:,} vectors, effort {report.effort.reach} x {report.effort.rerank}")
    if report.skipped:
        print(f"  {report.skipped:,} rows left out: their vector is zero or not finite (no such modality)")
    recall = f"{measured.recall:.4f} ± {measured.recall_error:.4f}"
    print(f"  recall@10 {recall} against exact search, on rows held out while it was built")
    print(f"  {measured.queries_per_second:,.0f} queries a second, {measured.latency:.2f} ms for one alone")
    print(f"  {measured.bytes_per_vector:,.0f} bytes per vector, built in {report.seconds:.1f} s")
    if budget is not None and measured.recall < budget.recall:
        print(f"  below the recall of {budget.recall} asked for: no effort of this structure gets there")
