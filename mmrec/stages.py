"""The stages: each reads artifacts of the workspace and writes one. Read top to bottom, this is the whole path.

Every function takes the workspace and its recipe and returns the artifact and whether it had to be built. The models
learn from the training part of the split only; the validation part chooses, the test part is read by `evaluate` alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from mmrec.catalog import Catalog, ingest_catalog
from mmrec.config import Recipe, in_words
from mmrec.embedding import FROM_FILES, MODALITIES, ShardEncoder, media_of, write_embeddings
from mmrec.engines import Engine, LocalEngine
from mmrec.errors import MmrecError
from mmrec.interactions import Histories, Split, by_time, ingest_interactions, leave_one_out, load_histories
from mmrec.processes import build_together
from mmrec.progress import Tick, progress
from mmrec.workspace import (
    CHECKPOINTS,
    Artifact,
    Workspace,
    fingerprint_of,
    fingerprint_of_source,
    json_able,
    write_text,
)

if TYPE_CHECKING:
    from encoders.fusion import FusionConfig
    from retrieval.model import RetrieverConfig
    from retrieval.retriever import Retriever
    from retrieval.semantic_ids import Context as ItemContext
    from retrieval.semantic_ids import ItemTokenizer

Built = tuple[Artifact, bool]
Config = TypeVar("Config")
BRIDGED = 10
"""A modality that fewer items have than this gets no bridge."""
PAIR_WINDOW = 3
"""Two wanted items of one person that lie at most so many steps apart count as used together."""


# -- ingest ------------------------------------------------------------------------------------------------------------


def ingest(workspace: Workspace, recipe: Recipe, *, look_again: bool = False) -> list[Built]:
    """Read the catalog and, if there is one, the log of who liked what.

    With ``look_again`` a catalog is read anew if pictures or sounds of it were set aside: they may have been mended.
    """
    source = recipe.source
    if source.dataset is not None:
        told = {"dataset": source.dataset, "options": source.options, "seed": recipe.seed}
        identity = {"source": fingerprint_of(told)}
        log_identity: dict[str, str] | None = identity
    elif source.catalog is not None:
        identity = {"source": fingerprint_of_source(source.catalog)}
        log_identity = {"source": fingerprint_of_source(source.log)} if source.log else None
    else:
        raise MmrecError("the recipe names no source", mend="set source.dataset, or source.catalog and source.log")

    @cache
    def files() -> tuple[Path | None, Path | None, Path | None]:
        """The catalog, the log and where media lie; a named dataset is prepared only when it is read."""
        if source.dataset is None:
            return source.catalog, source.log, source.media_root
        from mmrec.datasets import prepare

        with progress(f"preparing {source.dataset}") as tick:
            made = prepare(source.dataset, workspace.root / "sources", progress=tick, **source.options)
        return made.catalog, made.interactions, made.media_root

    def write_catalog(folder: Path) -> None:
        catalog_file, _, media_root = files()
        assert catalog_file is not None
        with progress("reading the catalog") as tick:
            report = ingest_catalog(
                catalog_file, folder, media_root=media_root, columns=source.columns or None, progress=tick
            )
        _say(report)

    options = {"columns": source.columns, "media_root": source.media_root}
    again = look_again and _media_set_aside(workspace)
    built = [workspace.build("catalog", identity, options, write_catalog, force=again)]

    if log_identity is not None:
        item_ids = Catalog.load(built[0][0].path).item_ids

        def write_log(folder: Path) -> None:
            log = files()[1]
            assert log is not None
            with progress("reading the log", unit="events") as tick:
                report = ingest_interactions(
                    log,
                    folder,
                    item_ids,
                    like_at=source.like_at,
                    dislike_at=source.dislike_at,
                    columns=source.log_columns or None,
                    progress=tick,
                )
            _say(report)

        thresholds = {"columns": source.log_columns, "like_at": source.like_at, "dislike_at": source.dislike_at}
        inputs = {"catalog": built[0][0].fingerprint, **log_identity}
        built.append(workspace.build("interactions", inputs, thresholds, write_log))
    return built


def _media_set_aside(workspace: Workspace) -> bool:
    import pyarrow.parquet as pq

    try:
        catalog = workspace.current("catalog")
    except MmrecError:  # it will be read anew
        return False
    file = workspace.root / "catalog" / "quarantine.parquet"
    return catalog is not None and bool({"image", "audio", "file"} & set(pq.read_table(file)["column"].to_pylist()))


def load_split(workspace: Workspace, recipe: Recipe, refit: bool = False) -> tuple[Catalog, Histories, Split]:
    """The catalog, everyone's whole history, and the split of the recipe (`refit`: see `leave_one_out`)."""
    catalog = Catalog.load(workspace.require("catalog").path)
    histories = load_histories(workspace.require("interactions").path, catalog.index)
    return catalog, histories, (leave_one_out if recipe.split == "leave_one_out" else by_time)(histories, refit=refit)


def validation_of(split: Split) -> tuple[list[np.ndarray], np.ndarray]:
    """What stops a sequence model: the validation histories without dislikes, and the first item wanted after each."""
    targets = np.array([targets[0] for targets in split.valid.targets], np.int64)
    return wanted_only(split.valid.histories, split.valid.preferences), targets


def wanted_only(items: Sequence[np.ndarray], preferences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The part of each history that a sequence model reads: what was not disliked."""
    return [history[liking >= 0] for history, liking in zip(items, preferences, strict=True)]


# -- embed and fuse ----------------------------------------------------------------------------------------------------


def embed(workspace: Workspace, recipe: Recipe, engine: Engine | None = None) -> Built:
    """Encode every modality of every item into ``<modality>_emb/*.npy`` shards with ``metadata/*.parquet`` beside them.

    A shard that a killed run finished is kept. Rows of items that lack a modality are zeros, and ``has_<modality>`` in
    the metadata is false; whoever reads the shards masks them. The artifact is the same whatever the ``engine`` (None:
    this process).
    """
    source = workspace.require("catalog")
    catalog = Catalog.load(source.path)
    names = {modality: name for modality in MODALITIES if (name := getattr(recipe.encoders, modality))}
    names = {modality: name for modality, name in names.items() if any(media_of(catalog, modality))}
    media = [
        (path, *_size_and_time(Path(path)))
        for modality in names
        if modality in FROM_FILES
        for path in media_of(catalog, modality)
        if path
    ]
    inputs = {"catalog": source.fingerprint, "media": fingerprint_of(media)}
    return workspace.build(
        "embeddings",
        inputs,
        {"encoders": names},
        lambda folder: write_embeddings(catalog, names, folder, engine or LocalEngine()),
    )


def _size_and_time(path: Path) -> tuple[int, int]:
    """Of a file; zeros if it is gone, which the reader then says."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


@dataclass(frozen=True)
class Embeddings:
    """Per modality what its encoder made: vectors float32 [N, d], which rows are present bool [N], and its space."""

    vectors: dict[str, np.ndarray]
    present: dict[str, np.ndarray]
    spaces: dict[str, dict[str, Any]]


def load_embeddings(workspace: Workspace) -> Embeddings:
    """Read the shards back."""
    import pyarrow.parquet as pq

    folder = workspace.require("embeddings").path
    spaces = json.loads((folder / "spaces.json").read_text(encoding="utf-8"))
    table = pq.read_table(folder / "metadata")
    vectors = {
        modality: np.concatenate([np.load(shard, allow_pickle=False) for shard in _shards(folder, modality)])
        for modality in spaces
    }
    present = {modality: table[f"has_{modality}"].to_numpy(zero_copy_only=False) for modality in spaces}
    return Embeddings(vectors, present, spaces)


def _shards(folder: Path, modality: str) -> list[Path]:
    return sorted((folder / f"{modality}_emb").glob("*.npy"))


def fuse(workspace: Workspace, recipe: Recipe) -> Built:
    """One unit vector per item, and the bridges that lead words, a picture or a sound alone into the item space."""
    from encoders.fusion import FusionConfig

    embeddings = workspace.require("embeddings")
    inputs = {"embeddings": embeddings.fingerprint}
    if has_log(workspace):
        inputs["interactions"] = workspace.require("interactions").fingerprint
    config = configure(FusionConfig, recipe.fusion, "fusion")
    options = {"fusion": recipe.fusion, "seed": recipe.seed, "split": recipe.split}

    def write(folder: Path) -> None:
        from encoders.bridge import Bridge
        from encoders.fusion import Fusion

        data = load_embeddings(workspace)
        pairs = None
        if "interactions" in inputs:
            train = load_split(workspace, recipe)[2].train
            pairs = used_together(wanted_only(train.items, train.preferences))
        fusion = Fusion.fit(data.vectors, data.present, pairs, config, recipe.seed)
        vectors = fusion.transform(data.vectors, data.present)
        _save_array(folder / "vectors.npy", vectors)
        fusion.save(folder / "fusion")
        told = {}
        for modality, present in data.present.items():
            known = data.vectors[modality][present]
            if present.sum() < BRIDGED:
                continue
            to_item = Bridge.fit(known, vectors[present], recipe.seed)
            to_item.save(folder / "bridges" / f"{modality}_to_item")
            told[f"{modality}_to_item"] = to_item.held_out
        told |= words_alone(data, config, recipe.seed)
        write_text(folder / "bridges.json", json.dumps(json_able(told), indent=1))
        for name, held_out in told.items():
            found, chance = held_out["recall@10"], held_out["chance"]
            print(f"  {name.replace('_', ' ')}: recall@10 {found:.2f} on held-out items (chance {chance:.3f})")

    return workspace.build("vectors", inputs, options, write)


def words_alone(data: Embeddings, config: FusionConfig, seed: int) -> dict[str, dict[str, float]]:
    """How well words find a picture or a sound that has no words of its own: ``text_to_unseen_<modality>``.

    The fusion is fitted without a fifth of the items; of those, the words ask and the picture (or sound) alone answers.
    This is the hard question. The bridges' own figures are easier: their targets hold the words too.
    """
    from encoders.fusion import Fusion

    told = {}
    for modality in sorted(set(data.present) - {"text"}) if "text" in data.present else []:
        both = np.flatnonzero(data.present[modality] & data.present["text"])
        if len(both) < 50:
            continue
        asked = np.random.default_rng(seed).permutation(both)[: len(both) // 5]
        rest = np.setdiff1d(np.arange(len(data.present["text"])), asked)
        vectors = {m: x[rest] for m, x in data.vectors.items()}
        present = {m: p[rest] for m, p in data.present.items()}
        fusion = Fusion.fit(vectors, present, None, config, seed)
        words = fusion.transform({"text": data.vectors["text"][asked]})
        answers = fusion.transform({modality: data.vectors[modality][asked]})
        scores = words @ answers.T
        better = (scores > scores.diagonal()[:, None]).sum(axis=1)
        told[f"text_to_unseen_{modality}"] = {
            "recall@10": float((better < 10).mean()),
            "chance": min(1.0, 10 / len(asked)),
            "n": float(len(asked)),
        }
    return told


def has_log(workspace: Workspace) -> bool:
    """Whether the workspace has interactions at all."""
    return workspace.current("interactions") is not None


def used_together(histories: Sequence[np.ndarray], window: int = PAIR_WINDOW) -> np.ndarray:
    """Pairs int64 [P, 2] of items at most ``window`` steps apart in somebody's history.

    >>> used_together([np.array([4, 5, 6])], window=1).tolist()
    [[4, 5], [5, 6]]
    """
    pairs = [
        np.stack([history[:-step], history[step:]], axis=1)
        for history in histories
        for step in range(1, min(window, len(history) - 1) + 1)
    ]
    return np.concatenate(pairs).astype(np.int64) if pairs else np.zeros((0, 2), np.int64)


def load_vectors(workspace: Workspace) -> np.ndarray:
    """Item vectors float32 [N, D], unit length."""
    return np.load(workspace.require("vectors").path / "vectors.npy", allow_pickle=False)


# -- semantic IDs ------------------------------------------------------------------------------------------------------


def tokenize(workspace: Workspace, recipe: Recipe) -> Built:
    """Quantise item vectors into semantic IDs, unique by construction, with diagnostics and readable labels.

    A tokenizer that needs more than vectors gets the training part of the log, or the vectors of each modality.
    """
    from retrieval.semantic_ids import assign_unique, describe_prefixes, diagnostics

    tokenizer = _tokenizer_of(recipe)
    name = tokenizer.name
    if "histories" in tokenizer.needs and not has_log(workspace):
        raise MmrecError(
            f"the tokenizer {name} learns from who used what, and there is no log of it",
            mend="mmrec ingest SOURCE --log LOG, or mmrec tokenize --tokenizer residual_kmeans",
        )
    inputs = _inputs(workspace, "vectors")
    options = {"tokenizer": recipe.tokenizer, "seed": recipe.seed}
    if "histories" in tokenizer.needs:
        inputs |= _inputs(workspace, "interactions")
        options["split"] = recipe.split
    if "modalities" in tokenizer.needs:
        inputs |= _inputs(workspace, "embeddings")

    def write(folder: Path) -> None:
        vectors = load_vectors(workspace)
        context = _context_for(tokenizer.needs, workspace, recipe)
        codes = _trained(
            f"fitting the tokenizer {name}",
            lambda tick: tokenizer.fit(
                vectors, recipe.seed, context, checkpoint_dir=folder / CHECKPOINTS, progress=tick
            ),
        )
        ids = assign_unique(codes, vectors, tokenizer, seed=recipe.seed)
        report = diagnostics(ids, tokenizer, vectors)
        tokenizer.save(folder / "tokenizer")
        ids.save(folder / "ids")
        used = ", ".join(f"{share:.0%}" for share in report["use"])
        print(f"  {len(ids):,} semantic IDs, {report['collisions']:.0f} shared; codes in use per level: {used}")
        catalog = Catalog.load(workspace.require("catalog").path)
        labels = describe_prefixes(ids, [catalog.describe(i) for i in range(len(catalog))])
        write_text(folder / "diagnostics.json", json.dumps(json_able(report), indent=1))
        write_text(folder / "labels.json", json.dumps({"/".join(map(str, k)): v for k, v in labels.items()}, indent=0))

    return workspace.build("ids", inputs, options, write)


def _tokenizer_of(recipe: Recipe) -> ItemTokenizer:
    from retrieval.semantic_ids import make_tokenizer

    return configure(make_tokenizer, {"name": "residual_kmeans"} | recipe.tokenizer, "tokenizer")


def _context_for(needs: Sequence[str], workspace: Workspace, recipe: Recipe) -> ItemContext:
    """What a tokenizer needs besides the item vectors."""
    from retrieval.semantic_ids import Context

    histories: Sequence[np.ndarray] = ()
    modalities: dict[str, np.ndarray] = {}
    if "histories" in needs:
        train = load_split(workspace, recipe)[2].train
        histories = wanted_only(train.items, train.preferences)
    if "modalities" in needs:
        data = load_embeddings(workspace)
        modalities = {name: x for name, x in data.vectors.items() if data.present[name].any()}
    return Context(histories, modalities)


# -- models ------------------------------------------------------------------------------------------------------------


def train_retriever(workspace: Workspace, recipe: Recipe, *, seed: int | None = None) -> Built:
    """The sequence model that spells the semantic ID of the next item."""
    inputs = _inputs(workspace, "vectors", "ids", "interactions")
    options = {"retriever": recipe.retriever, "seed": recipe.seed, "split": recipe.split}

    def train(folder: Path) -> Callable[[Path], None]:
        _, _, split = load_split(workspace, recipe)
        return fit_retriever(workspace, recipe, split, recipe.seed, folder / CHECKPOINTS).save_pretrained

    return build_together(workspace, "retriever", inputs, options, train)


def fit_retriever(
    workspace: Workspace,
    recipe: Recipe,
    split: Split,
    seed: int,
    checkpoints: Path,
    config: RetrieverConfig | None = None,
) -> Retriever:
    """Train one retriever on the training part; the validation part stops it.

    config: instead of the recipe's, as the one of a retriever that was chosen by validation. In a refitted split nobody
    is left to validate with.
    """
    from retrieval.model import RetrieverConfig
    from retrieval.semantic_ids import SemanticIds
    from retrieval.training import train_retriever as train

    ids = SemanticIds.load(workspace.require("ids").path / "ids")
    histories = wanted_only(split.train.items, split.train.preferences)
    config = config or configure(RetrieverConfig, recipe.retriever, "retriever")
    return _trained(
        f"training the retriever, seed {seed}",
        lambda tick: train(
            histories,
            load_vectors(workspace),
            ids,
            config,
            steers=bridged(workspace) if config.queries else None,
            validation=validation_of(split) if len(split.valid) else None,
            seed=seed,
            checkpoint_dir=checkpoints,
            progress=tick,
        ),
    )


def train_prior(workspace: Workspace, recipe: Recipe) -> Built:
    """The diffusion prior that dreams vectors a person would love, and the verifier that refuses some of them."""
    inputs = _inputs(workspace, "vectors", "interactions")
    options = {"prior": recipe.prior, "seed": recipe.seed, "split": recipe.split, "verifier": True}

    def train(folder: Path) -> Callable[[Path], None]:
        from diffusion.verifier import fit_verifier

        _, _, split = load_split(workspace, recipe)
        prior = fit_prior(workspace, recipe, split, recipe.seed, folder / CHECKPOINTS)

        def write(target: Path) -> None:
            prior.save_pretrained(target)
            rated = split.train.items, split.train.preferences
            verifier = fit_verifier(*rated, load_vectors(workspace), seed=recipe.seed)
            verifier.save(target)
            if "auc" in verifier.held_out:
                auc, people = verifier.held_out["auc"], verifier.held_out["people"]
                print(f"  verifier of taste: AUC {auc:.2f} on {people:,.0f} people it has not seen")

        return write

    return build_together(workspace, "prior", inputs, options, train)


def fit_prior(
    workspace: Workspace, recipe: Recipe, split: Split, seed: int, checkpoints: Path, *, regression: bool = False
) -> Any:
    """Train a prior on the training part, or with ``regression`` its baseline: the same network trained to the mean."""
    from diffusion.prior import PriorConfig
    from diffusion.regression import train_regression
    from diffusion.training import train_prior as train

    config = configure(PriorConfig, recipe.prior or {}, "prior")
    vectors = load_vectors(workspace)
    what = f"training the {'regression baseline' if regression else 'prior'}, seed {seed}"
    data = (split.train.items, split.train.preferences, vectors, config)
    if regression:
        return _trained(
            what, lambda tick: train_regression(*data, seed=seed, checkpoint_dir=checkpoints, progress=tick)
        )
    steers = bridged(workspace)
    return _trained(
        what, lambda tick: train(*data, seed=seed, steers=steers, checkpoint_dir=checkpoints, progress=tick)
    )


def bridged(workspace: Workspace) -> dict[str, np.ndarray]:
    """Per modality what its bridge makes of each item alone, float32 [N, D]: the steers the prior is trained with.

    Rows of items without the modality are NaN.
    """
    from encoders.bridge import Bridge

    data = load_embeddings(workspace)
    folder = workspace.require("vectors").path / "bridges"
    steers = {}
    for modality, present in data.present.items():
        if not (folder / f"{modality}_to_item").exists():
            continue
        bridge = Bridge.load(folder / f"{modality}_to_item")
        vectors = bridge.transform(data.vectors[modality])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9
        steers[modality] = np.where(present[:, None], vectors, np.nan).astype(np.float32)
    return steers


def train_decoder(workspace: Workspace, recipe: Recipe) -> Built:
    """The built-in picture decoder, which draws new pictures out of the shapes of this catalog's own."""
    inputs = _inputs(workspace, "embeddings")

    def write(folder: Path) -> None:
        from diffusion.decoders.builtin_image import ImageDecoderConfig, train_image_decoder

        data = load_embeddings(workspace)
        catalog = Catalog.load(workspace.require("catalog").path)
        if not data.present.get("image", np.zeros(1, bool)).any():
            raise MmrecError("the catalog has no pictures to learn from", mend="mmrec ingest a catalog that has some")
        rows = np.flatnonzero(data.present["image"])
        config = configure(
            ImageDecoderConfig, {"space": data.spaces["image"]["space"], **recipe.decoder_training}, "decoder_training"
        )
        paths = [path for row in rows if (path := catalog.image_path(int(row)))]
        with progress("learning to draw", unit="pictures") as tick:
            train_image_decoder(paths, data.vectors["image"][rows], config, progress=tick).save_pretrained(folder)

    return workspace.build("decoder", inputs, {"training": recipe.decoder_training}, write)


def draws_itself(workspace: Workspace, recipe: Recipe) -> bool:
    """Whether the recipe wants the built-in picture decoder and the catalog has pictures to teach it."""
    spaces = json.loads((workspace.require("embeddings").path / "spaces.json").read_text(encoding="utf-8"))
    return recipe.decoders.image == "builtin_image" and "image" in spaces


def index(workspace: Workspace, recipe: Recipe) -> Built:
    """The FAISS index over item vectors."""
    inputs = _inputs(workspace, "vectors")

    def write(folder: Path) -> None:
        from retrieval.index import VectorIndex

        vectors = load_vectors(workspace)
        VectorIndex.build(vectors, factory=recipe.index).save(folder)
        _save_array(folder / "map.npy", flat_map(vectors, recipe.seed))

    return workspace.build("index", inputs, {"factory": recipe.index}, write)


def flat_map(vectors: np.ndarray, seed: int, most: int = 5000) -> np.ndarray:
    """Where each item lies on a flat map, float32 [N, 2]: t-SNE (van der Maaten & Hinton 2008), PCA above ``most``."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    flat = PCA(2, random_state=seed)
    if 30 <= len(vectors) <= most:
        flat = TSNE(2, perplexity=min(30, len(vectors) / 4), metric="cosine", init="pca", random_state=seed)
    return (
        flat.fit_transform(vectors).astype(np.float32) if len(vectors) > 2 else np.zeros((len(vectors), 2), np.float32)
    )


# -- new items, nothing trained again ----------------------------------------------------------------------------------


def add(workspace: Workspace, recipe: Recipe, source: Path | None = None) -> Built:
    """Make the items of ``source`` recommendable: encoded, fused, given codes that are free; nothing is trained again.

    They lie beside the catalog as ``additions/batch-*``. Without ``source``, the items added earlier are encoded anew,
    which is what a catalog that was trained again needs.
    """
    inputs = _inputs(workspace, "catalog", "embeddings", "vectors", "ids")
    try:
        current = workspace.current("additions")
    except MmrecError:
        current = None
    lying = sorted(current.path.glob("batch-*")) if current else []
    options: dict[str, Any] = {"batches": [batch.name for batch in lying]}
    if source is not None:
        options["batches"].append(f"batch-{len(lying):04d}")
        inputs["source"] = fingerprint_of([fingerprint_of_source(source), [str(batch) for batch in lying]])
    elif current is not None:
        inputs["source"] = current.inputs["source"]
    else:
        raise MmrecError("there is nothing to add", mend="mmrec add SOURCE")

    def write(folder: Path) -> None:
        for batch in lying:
            shutil.copytree(batch, folder / batch.name, dirs_exist_ok=True)
        if source is not None:
            with progress("reading the new items") as tick:
                _say(ingest_catalog(source, folder / options["batches"][-1], progress=tick))
        _encode_additions(workspace, folder)

    return workspace.build("additions", inputs, options, write)


def _encode_additions(workspace: Workspace, folder: Path) -> None:
    from encoders.fusion import Fusion
    from retrieval.semantic_ids import Context, SemanticIds, assign_unique, load_tokenizer

    known = Catalog.load(workspace.require("catalog").path)
    for batch in sorted(folder.glob("batch-*")):
        known = known.extend(Catalog.load(batch))
    ids_folder = workspace.require("ids").path
    ids = SemanticIds.load(ids_folder / "ids")
    rows = range(len(ids), len(known))
    if not rows:
        raise MmrecError("no item of the source is new and readable", mend="see quarantine.parquet in additions/")
    spaces = json.loads((workspace.require("embeddings").path / "spaces.json").read_text(encoding="utf-8"))
    vectors, present = {}, {}
    for modality, space in spaces.items():
        media = media_of(known, modality)[rows.start :]
        vectors[modality], present[modality], failed = ShardEncoder(space["encoder"], modality).encode(media)
        for row, reason in failed:
            raise MmrecError(f"{known.item_ids[rows[row]]}: {reason}", mend="mend the file and add it again")
    empty = [known.item_ids[row] for i, row in enumerate(rows) if not any(has[i] for has in present.values())]
    if empty:
        raise MmrecError(
            f"{empty[0]} (and {len(empty) - 1} more) has none of {', '.join(spaces)}", mend="give it words or media"
        )
    fused = Fusion.load(workspace.require("vectors").path / "fusion").transform(vectors, present)
    tokenizer = load_tokenizer(ids_folder / "tokenizer")
    _save_array(folder / "vectors.npy", fused)
    codes = tokenizer.encode(fused, Context(modalities=vectors))
    assign_unique(codes, fused, tokenizer, taken=ids).save(folder / "ids")
    print(f"  {len(rows)} new items can be recommended; nothing was trained again")


# -- the whole path ----------------------------------------------------------------------------------------------------


def check(recipe: Recipe) -> None:
    """Refuse a recipe that a later stage would refuse, before hours are spent on the first.

    Raises:
        MmrecError: naming the section of the recipe and the option.
    """
    from diffusion.decoders import decoder_names
    from diffusion.network import PriorConfig
    from encoders.fusion import FusionConfig
    from encoders.registry import encoder_names
    from mmrec.evaluation.stage import contenders
    from retrieval.model import RetrieverConfig

    for part, names, known in (
        ("encoders", recipe.encoders, encoder_names()),
        ("decoders", recipe.decoders, decoder_names()),
    ):
        families = {name.partition(":")[0] for name in known}
        for medium, name in names:
            if name is None or name.partition(":")[0] in families:
                continue
            if part == "encoders" or not ("/" in name or Path(name).is_dir()):  # a decoder may be a folder
                raise MmrecError(f"{part}.{medium} names {name!r}", mend=f"use one of: {', '.join(known)}")
    configure(FusionConfig, recipe.fusion, "fusion")
    _tokenizer_of(recipe)
    configure(RetrieverConfig, recipe.retriever, "retriever")
    configure(PriorConfig, recipe.prior or {}, "prior")
    contenders(recipe)


def run(workspace: Workspace, recipe: Recipe) -> list[Built]:
    """Run every stage that is stale, in order. Without a log it stops at search; with one it goes on to evaluation."""
    from mmrec.evaluation.stage import evaluate
    from mmrec.hybrid import TooFewEvents, calibrate

    check(recipe)
    recipe.save(workspace.root / "recipe.yaml")
    path: list[tuple[str, Callable[[Workspace, Recipe], Built]]] = [
        ("embed", embed),
        ("fuse", fuse),
        ("tokenize", tokenize),
        ("index", index),
        ("train retriever", train_retriever),
        ("train prior", train_prior),
        ("train hybrid", calibrate),
        ("train decoder", train_decoder),
        ("evaluate", evaluate),
    ]
    built = ingest(workspace, recipe)
    _tell("ingest", any(fresh for _, fresh in built))
    for name, stage in path:
        if not has_log(workspace) and name in ("train retriever", "train prior", "train hybrid", "evaluate"):
            print(f"{name}: left out, for there is no log of who liked what (mmrec ingest SOURCE --log LOG)")
            continue
        if name == "train decoder" and not draws_itself(workspace, recipe):
            continue
        if name in ("train prior", "train hybrid") and recipe.prior is None:
            continue
        try:
            built.append(stage(workspace, recipe))
        except TooFewEvents as few:
            print(f"{name}: left out, {few.args[0]}")
            continue
        _tell(name, built[-1][1])
    if (workspace.root / "additions").exists():
        built.append(add(workspace, recipe))
        _tell("add", built[-1][1])
    return built


def _tell(name: str, built: bool) -> None:
    print(f"{name}: {'done' if built else 'fresh'}", flush=True)


# -- helpers -----------------------------------------------------------------------------------------------------------


def configure(config: Callable[..., Config], options: dict[str, Any], where: str) -> Config:
    """Build a config dataclass, or whatever else is made of options, from those of a recipe.

    Raises:
        MmrecError: naming the section of the recipe, if an option is unknown, of another type or out of range.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        made = config(**options)
        return cast("Config", TypeAdapter(config).validate_python(options)) if is_dataclass(config) else made
    except (KeyError, TypeError, ValueError) as error:
        told = in_words(error) if isinstance(error, ValidationError) else error.args[0]
        raise MmrecError(f"the recipe's section {where}: {told}", mend="see docs/recipes.md for the options") from error


def _inputs(workspace: Workspace, *stages: str) -> dict[str, str]:
    return {stage: workspace.require(stage).fingerprint for stage in stages}


def _trained(what: str, train: Callable[[Tick], Any]) -> Any:
    with progress(what, unit="steps") as tick:
        return train(tick)


def _save_array(path: Path, array: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    temporary.replace(path)


def _say(report: Any) -> None:
    print(f"  {report}")
