"""The command line: one command per stage, the questions one asks, and `run` for a whole recipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmrec.commands import index

if TYPE_CHECKING:
    from mmrec.config import Recipe
    from mmrec.recommender import Item, Recommender
    from mmrec.workspace import Workspace

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pictures, sounds and words, and a log of who liked what: to recommendations, and to what could exist.",
)
train = typer.Typer(no_args_is_help=True, help="Train one model of the workspace.")
app.add_typer(train, name="train")
app.add_typer(index.app, name="index")

Folder = Annotated[Path, typer.Option("--workspace", "-w", help="The workspace folder.")]
Likes = Annotated[list[str] | None, typer.Option("--like", help="An item id that is liked; may be repeated.")]
Dislikes = Annotated[list[str] | None, typer.Option("--dislike", help="An item id that is disliked; may be repeated.")]
User = Annotated[str | None, typer.Option("--user", "-u", help="A user of the log.")]
Count = Annotated[int, typer.Option("-k", min=1, help="How many items.")]
Seed = Annotated[int, typer.Option("--seed", help="Same seed, same result.")]
Where = Annotated[str, typer.Option("--engine", help="local, or ray: on a cluster, with the same result.")]
Exploration = Annotated[
    float, typer.Option("--exploration", "--temperature", min=0, help="0 is safe, 1 the model's own, 2 wild.")
]
Guidance = Annotated[
    list[str] | None,
    typer.Option(help="WHAT=WEIGHT for likes, dislikes, text, image, audio or avoid; 0 ignores, 1 is plain."),
]
Interval = Annotated[str, typer.Option(help="LOW,HIGH: noise levels in which guidance acts, 0 is data and 1 noise.")]
Edit = Annotated[str | None, typer.Option("--edit", help="Change this item instead of dreaming from nothing.")]
Strength = Annotated[float, typer.Option(min=0, max=1, help="How far an edit may go: 0 nowhere, 1 anywhere.")]
Tries = Annotated[
    int | None,
    typer.Option("--candidates", min=1, help="The best of so many is kept of each; 4 if not said, of clips 2."),
]
Address = Annotated[str | None, typer.Option(help="Of the Ray cluster; without it, one on this machine.")]
HERE = Path("workspace")


def main() -> None:
    """Run the command line; errors a person can mend are shown without a traceback."""
    from mmrec import processes

    try:
        _run()
    except SystemExit as end:
        if processes.count() > 1:
            processes.leave(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def _run() -> None:
    from mmrec import processes
    from mmrec.errors import MmrecError

    try:
        if processes.count() > 1 and sys.argv[1:3] not in (["train", "retriever"], ["train", "prior"]):
            raise MmrecError(
                f"mmrec {' '.join(sys.argv[1:2])} runs in one process",
                mend="run it without accelerate launch; that is for mmrec train retriever and mmrec train prior",
            )
        if not processes.is_main():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        app()
    except (MmrecError, ValueError, KeyError, OSError) as error:
        if os.environ.get("MMREC_TRACEBACK"):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"mmrec: {message}", file=sys.stderr)
        sys.exit(1)


@app.command()
def ingest(
    source: Annotated[Path, typer.Argument(help="A folder of media, a CSV/JSONL/Parquet table, or a datasets folder.")],
    log: Annotated[Path | None, typer.Option("--log", help="Who liked what: a CSV/JSONL/Parquet table.")] = None,
    workspace: Folder = HERE,
    media_root: Annotated[Path | None, typer.Option(help="Where the paths of the table start.")] = None,
    like_at: Annotated[float | None, typer.Option(help="Ratings from here up are likes.")] = None,
    dislike_at: Annotated[float | None, typer.Option(help="Ratings up to here are dislikes.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="OWN=NAME: your column OWN is the catalog's NAME; may be repeated.")
    ] = None,
    log_column: Annotated[list[str] | None, typer.Option(help="The same for the log.")] = None,
) -> None:
    """Read a catalog and a log into a workspace; what is broken is set aside with its reason."""
    from mmrec import stages
    from mmrec.config import Recipe, Source
    from mmrec.workspace import Workspace

    space = Workspace(workspace)
    file = workspace / "recipe.yaml"
    recipe = Recipe.load(file) if file.is_file() else Recipe(name=workspace.resolve().name)
    recipe.source = Source(
        catalog=source.resolve(),
        log=log.resolve() if log else None,
        media_root=media_root.resolve() if media_root else None,
        columns=_pairs(column),
        log_columns=_pairs(log_column),
        like_at=like_at,
        dislike_at=dislike_at,
    )
    _done("ingest", any(built for _, built in stages.ingest(space, recipe, look_again=True)))
    recipe.save(file)


@app.command()
def embed(
    workspace: Folder = HERE,
    text: Annotated[str | None, typer.Option(help="Encoder of words.")] = None,
    image: Annotated[str | None, typer.Option(help="Encoder of pictures.")] = None,
    audio: Annotated[str | None, typer.Option(help="Encoder of sounds.")] = None,
    engine: Where = "local",
    address: Address = None,
) -> None:
    """Encode words, pictures and sounds, and fuse them into one vector per item."""
    from mmrec import stages
    from mmrec.engines import make_engine

    runs = make_engine(engine, address)
    space, recipe = _open(workspace)
    for modality, name in (("text", text), ("image", image), ("audio", audio)):
        if name is not None:
            setattr(recipe.encoders, modality, None if name == "none" else name)
    _done("embed", stages.embed(space, recipe, runs)[1])
    _done("fuse", stages.fuse(space, recipe)[1])
    recipe.save(workspace / "recipe.yaml")


@app.command()
def tokenize(
    workspace: Folder = HERE,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="Which item tokenizer.")] = None,
) -> None:
    """Quantise item vectors into semantic IDs, no two items on one."""
    from mmrec import stages

    space, recipe = _open(workspace)
    if tokenizer not in (None, recipe.tokenizer.get("name")):
        recipe.tokenizer = {"name": tokenizer}  # another one has other options
    _done("tokenize", stages.tokenize(space, recipe)[1])
    recipe.save(workspace / "recipe.yaml")


@train.command("retriever")
def train_retriever(workspace: Folder = HERE) -> None:
    """The sequence model that spells the semantic ID of the next item."""
    from mmrec import stages

    _done("train retriever", stages.train_retriever(*_open(workspace))[1])


@train.command("prior")
def train_prior(workspace: Folder = HERE) -> None:
    """The diffusion prior that dreams vectors a person would love."""
    from mmrec import stages

    _done("train prior", stages.train_prior(*_open(workspace))[1])


@train.command("hybrid")
def train_hybrid(workspace: Folder = HERE) -> None:
    """What the scores of beam, neighbours and prior are worth, for recommend --mode hybrid."""
    from mmrec.hybrid import calibrate

    _done("train hybrid", calibrate(*_open(workspace))[1])


@train.command("decoder")
def train_decoder(workspace: Folder = HERE) -> None:
    """The picture decoder: new pictures out of the shapes of this catalog's own."""
    from mmrec import stages

    _done("train decoder", stages.train_decoder(*_open(workspace))[1])


@app.command()
def add(
    source: Annotated[Path | None, typer.Argument(help="New items: a folder or a table, as for ingest.")] = None,
    workspace: Folder = HERE,
) -> None:
    """Make new items recommendable at once, with nothing trained again."""
    from mmrec import stages

    space, recipe = _open(workspace)
    _done("add", stages.add(space, recipe, source.resolve() if source else None)[1])


@app.command()
def recommend(
    workspace: Folder = HERE,
    user: User = None,
    like: Likes = None,
    dislike: Dislikes = None,
    k: Count = 10,
    mode: Annotated[
        str, typer.Option(help="fused, dense, codes (beam search over semantic IDs alone) or hybrid.")
    ] = "fused",
    text: Annotated[str, typer.Option(help="What it should be like, in words.")] = "",
    exploration: Annotated[float, typer.Option(min=0, help="0 is the best guess, 1 adventurous.")] = 0.0,
    allowed: Annotated[Path | None, typer.Option(help="A file with one item id a line: only these.")] = None,
    seed: Seed = 0,
) -> None:
    """What exists for a person: the items they will want next."""
    permitted = _lines(allowed) if allowed else None
    items = _recommender(workspace).recommend(
        user,
        likes=like or (),
        dislikes=dislike or (),
        k=k,
        mode=mode,  # type: ignore[arg-type]
        allowed=permitted,
        text=text,
        exploration=exploration,
        seed=seed,
    )
    _table("Recommended", items)


@app.command()
def imagine(
    workspace: Folder = HERE,
    user: User = None,
    like: Likes = None,
    dislike: Dislikes = None,
    text: Annotated[str, typer.Option(help="Steer toward these words.")] = "",
    image: Annotated[Path | None, typer.Option(help="Steer toward this picture.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Steer toward this sound.")] = None,
    avoid: Annotated[str, typer.Option(help="Keep away from these words.")] = "",
    pictures: Annotated[
        Path | None, typer.Option(help="A folder of the person's own pictures, read as things they like.")
    ] = None,
    vector: Annotated[
        Path | None, typer.Option(help="A .npy file with a vector of the item space that stands for the person.")
    ] = None,
    refuse: Annotated[
        list[str] | None, typer.Option("--refuse", help="An item id shown before in vain; may be repeated.")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many dreams.")] = 6,
    k: Count = 10,
    steps: Annotated[int, typer.Option(min=1, max=16, help="Network evaluations along the path.")] = 8,
    edit: Edit = None,
    strength: Strength = 0.3,
    candidates: Tries = None,
    exploration: Exploration = 1.0,
    guidance: Guidance = None,
    interval: Interval = "0,1",
    out: Annotated[Path | None, typer.Option(help="Also make the dreams: pictures and music into this folder.")] = None,
    seed: Seed = 0,
) -> None:
    """What could exist for a person: dreams, how new they are, and the real items nearest to them."""
    import numpy as np

    from mmrec.generation import save
    from mmrec.recommender import DREAMT

    dials = _dials(guidance, interval, exploration)
    recommender = _recommender(workspace)
    who: Any = {"user": user, "likes": like or (), "dislikes": dislike or ()}
    imagined = recommender.imagine(
        **who,
        text=text,
        image=image,
        audio=audio,
        avoid=avoid,
        pictures=pictures or (),
        vector=None if vector is None else np.load(vector, allow_pickle=False),
        refused=refuse or (),
        n=n,
        k=k,
        steps=steps,
        dials=dials,
        edit=edit,
        strength=strength,
        candidates=candidates or DREAMT,
        seed=seed,
    )
    rows = [
        (str(i), dream.medium, f"{dream.novelty:.2f}", ", ".join(item.title for item in dream.items[:3]))
        for i, dream in enumerate(imagined.dreams)
    ]
    _print_table("Dreams (novelty: 0 lies on an item, 1 beyond all)", ("", "made as", "novelty", "nearest items"), rows)
    _table("Real items that ground them", imagined.items)
    if out is not None:
        told = {"seed": seed, "text": text, "avoid": avoid, "edit": edit}
        made = recommender.create(imagined.dreams, **who, candidates=candidates, seed=seed)
        for number, creation in enumerate(made):
            print(save(creation, out / f"dream-{number:02d}", told))


@app.command()
def rank(
    workspace: Folder = HERE,
    user: User = None,
    like: Likes = None,
    dislike: Dislikes = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Words to steer by; may be repeated.")] = None,
    decoder: Annotated[list[str] | None, typer.Option(help="A decoder's name or folder; may be repeated.")] = None,
    what: Annotated[str, typer.Option(help="images or music.")] = "images",
    n: Annotated[int, typer.Option("-n", min=1, help="How many dreams for each prompt.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Also keep what was made, the best first, in this folder.")] = None,
    seed: Seed = 0,
) -> None:
    """What each decoder makes of each prompt, and what of it this person would like best."""
    from mmrec.generation import save

    ranked = _recommender(workspace).rank(
        user,
        likes=like or (),
        dislikes=dislike or (),
        prompts=prompt or ("",),
        decoders=decoder or (None,),
        medium=_medium(what),
        n=n,
        seed=seed,
    )
    prompts = list(dict.fromkeys(prompt or ("",)))
    scores: dict[str, dict[str, list[float]]] = {}
    for one in ranked:
        scores.setdefault(one.decoder, {}).setdefault(one.prompt, []).append(one.score)
    rows = [
        (name, *(f"{sum(of[words]) / len(of[words]):.3f}" for words in prompts))
        for name, of in sorted(scores.items(), key=lambda named: -max(map(max, named[1].values())))
    ]
    head = ("decoder", *(words or "(taste alone)" for words in prompts))
    _print_table("Probability that this person likes it (mean)", head, rows)
    best = [
        (
            str(place),
            f"{one.score:.3f}",
            one.decoder,
            one.prompt,
            ", ".join(i.title for i in one.creation.dream.items[:3]),
        )
        for place, one in enumerate(ranked, 1)
    ]
    _print_table("What was made, the best first", ("", "score", "decoder", "prompt", "nearest items"), best)
    for place, one in enumerate(ranked if out is not None else [], 1):
        assert out is not None
        print(save(one.creation, out / f"rank-{place:02d}", {"seed": seed, "text": one.prompt, "score": one.score}))


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="Words.")] = "",
    workspace: Folder = HERE,
    image: Annotated[Path | None, typer.Option(help="A picture instead of words.")] = None,
    audio: Annotated[Path | None, typer.Option(help="A sound instead of words.")] = None,
    by: Annotated[str, typer.Option(help="neighbours, or codes: semantic IDs spelled in answer.")] = "neighbours",
    k: Count = 10,
) -> None:
    """Items for words, a picture or a sound."""
    found = _recommender(workspace).search(text, image=image, audio=audio, k=k, by=by)  # type: ignore[arg-type]
    _table("Found", found)


@app.command()
def show(item: Annotated[str, typer.Argument(help="An item id.")], workspace: Folder = HERE) -> None:
    """All that is known of an item: words, metadata, what its semantic ID says, how it sounds."""
    recommender = _recommender(workspace)
    told = recommender.describe(item)
    rows = [("title", told["title"]), ("text", told["text"]), ("liked by", f"{told['liked_by']:,} people")]
    rows += [(str(name), str(value)) for name, value in told["metadata"].items()]
    rows += [(f"code {level}", f"{code}  {label}") for level, (code, label) in enumerate(told["code"], 1)]
    rows += [(f"sound: {name}", str(value)) for name, value in told.get("sound", {}).items()]
    _print_table(item, ("", ""), rows)
    _table("Nearest items", recommender.similar(item, k=5))


@app.command()
def generate(
    what: Annotated[str, typer.Argument(help="images or music.")],
    workspace: Folder = HERE,
    users: Annotated[str, typer.Option(help="User ids with commas between, a file with one a line, or all.")] = "all",
    per_user: Annotated[int, typer.Option(min=1, help="How many for each.")] = 4,
    text: Annotated[str, typer.Option(help="Steer toward these words.")] = "",
    avoid: Annotated[str, typer.Option(help="Keep away from these words.")] = "",
    steps: Annotated[int, typer.Option(min=1, max=16)] = 8,
    exploration: Exploration = 1.0,
    guidance: Guidance = None,
    interval: Interval = "0,1",
    edit: Edit = None,
    strength: Strength = 0.3,
    candidates: Tries = None,
    batch_size: Annotated[int, typer.Option(min=1, help="People at once; changes the speed only.")] = 16,
    out: Annotated[Path, typer.Option(help="Where to; a killed job goes on there.")] = Path("generated"),
    seed: Seed = 0,
    engine: Where = "local",
    address: Address = None,
) -> None:
    """Make pictures or music for many people; resumable."""
    from mmrec.engines import make_engine
    from mmrec.generation import generate as make

    medium = _medium(what)
    runs = make_engine(engine, address)
    recommender = _recommender(workspace)
    if users == "all":
        people = recommender.histories.user_ids
    elif Path(users).is_file():
        people = _lines(Path(users))
    else:
        people = users.split(",")
    options: Any = {"per_user": per_user, "text": text, "avoid": avoid, "steps": steps, "seed": seed}
    options |= {"edit": edit, "strength": strength, "candidates": candidates}
    options |= {"dials": _dials(guidance, interval, exploration)}
    print(make(recommender, medium, people, out, engine=runs, batch_size=batch_size, **options))


@app.command()
def evaluate(
    workspace: Folder = HERE,
    seeds: Annotated[str | None, typer.Option(help="Seeds with commas between, as 0,1,2.")] = None,
    also: Annotated[str | None, typer.Option(help="Published models to measure, too, as sasrec_bce,hstu.")] = None,
    protocol: Annotated[Literal["strict", "refit"] | None, typer.Option(help="This one; else the recipe's.")] = None,
    record: Annotated[Path | None, typer.Option(help="Also write the numbers as records into this folder.")] = None,
) -> None:
    """Measure every recommender and every baseline on the test part, in one table."""
    from mmrec.evaluation import stage

    space, recipe = _open(workspace)
    asked = recipe.evaluation
    if seeds is not None:
        asked.seeds = [int(seed) for seed in seeds.split(",")]
    if also is not None:
        asked.recommenders = list(dict.fromkeys([*stage.contenders(recipe), *also.split(",")]))
    if protocol is not None:
        asked.protocols = [protocol]
    _done("evaluate", stage.evaluate(space, recipe)[1])
    recipe.save(workspace / "recipe.yaml")
    _report(space, recipe, record)


@app.command()
def run(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe; without one, the workspace's own.")] = None,
    workspace: Annotated[Path | None, typer.Option("--workspace", "-w", help="Default: workspaces/<recipe>.")] = None,
    record: Annotated[Path | None, typer.Option(help="Also write the numbers as records into this folder.")] = None,
) -> None:
    """Run every stage of a recipe that is stale, and print its evaluation."""
    from mmrec import stages
    from mmrec.config import Recipe
    from mmrec.workspace import Workspace

    if recipe is None:
        space, loaded = _open(workspace or HERE)
    else:
        loaded = Recipe.load(recipe)
        space = Workspace(workspace or Path("workspaces") / loaded.name)
    stages.run(space, loaded)
    if stages.has_log(space):
        _report(space, loaded, record)


@app.command("app")
def serve(
    workspace: Folder = HERE,
    port: Annotated[int, typer.Option(help="Port of the page.")] = 8501,
    host: Annotated[str, typer.Option(help="Address to listen on; only this machine by default.")] = "127.0.0.1",
) -> None:
    """Serve the demo app; it listens on this machine only unless told otherwise."""
    import importlib.util

    _open(workspace)
    found = importlib.util.find_spec("apps")
    assert found is not None
    assert found.submodule_search_locations is not None
    page = Path(found.submodule_search_locations[0]) / "app.py"
    print(f"mmrec app: http://{host}:{port}", flush=True)
    options = {
        "server.address": host,
        "server.port": port,
        "server.headless": "true",
        "browser.gatherUsageStats": "false",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": 20,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "streamlit", "run", str(page), *flags, "--", "--workspace", str(workspace)]
    os.execv(sys.executable, command)


def _open(workspace: Path) -> tuple[Workspace, Recipe]:
    from mmrec.config import Recipe
    from mmrec.errors import MmrecError
    from mmrec.workspace import Workspace

    if not (workspace / "recipe.yaml").is_file():
        raise MmrecError(f"{workspace} is no workspace", mend=f"mmrec ingest SOURCE --log LOG -w {workspace}")
    return Workspace(workspace), Recipe.load(workspace / "recipe.yaml")


def _recommender(workspace: Path) -> Recommender:
    from mmrec import Recommender

    return Recommender.load(workspace)


def _report(workspace: Workspace, recipe: Recipe, record: Path | None) -> None:
    from mmrec.evaluation import stage

    stage.show(workspace, recipe)
    if record is not None:
        print(f"  records: {stage.record(workspace, recipe, record)}")


def _pairs(given: list[str] | None) -> dict[str, str]:
    from mmrec.errors import MmrecError

    for pair in given or ():
        if "=" not in pair:
            raise MmrecError(f"{pair!r} names no column", mend="--column OWN=NAME, as --column sku=id")
    return dict(pair.split("=", 1) for pair in given or ())


def _medium(what: str) -> Literal["image", "audio"]:
    from mmrec.errors import MmrecError

    if what not in ("images", "music"):
        raise MmrecError(f"what is made are images or music, not {what!r}", mend="say images")
    return "image" if what == "images" else "audio"


def _dials(guidance: list[str] | None, interval: str, exploration: float) -> Any:
    """The dials of a dream out of what was typed."""
    from mmrec import Dials
    from mmrec.errors import MmrecError

    try:
        low, high = (float(end) for end in interval.split(","))
        weights: Any = {name: float(weight) for name, weight in (pair.split("=") for pair in guidance or ())}
        return Dials(**weights, temperature=exploration, interval=(low, high))
    except (ValueError, TypeError) as error:
        raise MmrecError(
            f"the dials cannot be read: {error}", mend="as in --guidance likes=2 --guidance text=3 --interval 0.2,0.9"
        ) from error


def _lines(file: Path) -> list[str]:
    """One id a line; ids may hold blanks."""
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _done(stage: str, built: bool) -> None:
    print(f"{stage}: {'done' if built else 'fresh, nothing to do'}")


def _table(title: str, items: list[Item]) -> None:
    rows = [
        (str(place), item.item_id, item.title, f"{item.score:.3f}", "-".join(map(str, item.code)), item.reason)
        for place, item in enumerate(items, 1)
    ]
    _print_table(title, ("", "item", "title", "score", "semantic ID", "why"), rows)


def _print_table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for row in rows:  # titles are data: neither rich's markup nor the terminal's control codes
        table.add_row(*("".join(c if c.isprintable() else " " for c in cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 140, markup=False).print(table)
