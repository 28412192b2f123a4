"""A very small workspace, really built, and a warm process to run commands in."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from kills import Warm
from PIL import Image

RECIPE = """
name: small
source: {catalog: items.csv, log: log.csv}
fusion: {dim: 16}
tokenizer: {name: residual_kmeans, levels: 2, codebook_size: 8}
retriever: {dim: 16, blocks: 1, heads: 2, epochs: 4}
prior: {width: 32, depth: 1, heads: 2, context_width: 16, steps: 60, batch_size: 32, checkpoint_every: 20}
"""
ITEMS, PEOPLE = 24, 40
WORDS = ("red", "blue", "loud", "calm", "bird", "stone", "river", "lamp")


@dataclass(frozen=True)
class Small:
    """The workspace at `root`, what it was made from, and per stage the command and how often it touches files."""

    root: Path
    source: Path
    commands: dict[str, list[str]]
    touches: dict[str, int]

    def command(self, stage: str, root: Path) -> list[str]:
        return [*self.commands[stage], "-w", str(root)]

    def copy(self, root: Path) -> Path:
        """A copy that reads the same pictures, sounds and tables."""
        shutil.copytree(self.root, root, symlinks=True, ignore=shutil.ignore_patterns(".lock*"))
        return root


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Warm:
    return Warm(tmp_path_factory.mktemp("reports"))


@pytest.fixture(scope="session")
def small(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Every stage, each run undisturbed in a process of its own."""
    folder = tmp_path_factory.mktemp("small")
    source = folder / "source"
    write_source(source)
    tables = [str(source / "items.csv"), "--log", str(source / "log.csv")]
    commands = {
        "catalog": ["ingest", *tables],
        "interactions": ["ingest", *tables],
        "embeddings": ["embed"],
        "vectors": ["embed"],
        "ids": ["tokenize"],
        "index": ["index", "build"],
        "retriever": ["train", "retriever"],
        "prior": ["train", "prior"],
        "decoder": ["train", "decoder"],
        "hybrid": ["train", "hybrid"],
        "evaluation": ["evaluate"],
        "additions": ["add", str(source / "more")],
    }
    made = Small(folder / "workspace", source, commands, {})
    warm.finish(["run", str(source / "small.yaml"), "-w", str(made.root)])
    for stage in ("hybrid", "additions"):
        warm.finish(made.command(stage, made.root))
    return made


def write_source(source: Path) -> None:
    """Tables of 24 items in three kinds of pictures and sounds, of people who like one kind, and three items more."""
    generator = np.random.default_rng(0)
    (source / "more").mkdir(parents=True)
    (source / "small.yaml").write_text(RECIPE, encoding="utf-8")
    items = [["id", "title", "text", "image", "audio"]]
    for i in range(ITEMS + 3):
        folder, name = (source, f"{i:02d}") if i < ITEMS else (source / "more", f"new{i}")
        image = audio = ""
        if i % 3 < 2:
            image = f"{name}.png"
            pixels = np.full((32, 32, 3), generator.integers(0, 256, 3), np.uint8)
            pixels[8:24, 8:24] = generator.integers(0, 256, 3)
            Image.fromarray(pixels).save(folder / image)
        else:
            audio = f"{name}.wav"
            time = np.arange(8000) / 8000
            soundfile.write(folder / audio, np.sin(2 * np.pi * (200 + 40 * i) * time) / 3, 8000)
        words = f"{WORDS[i % 8]} {WORDS[i * 3 % 8]}", f"a {WORDS[i * 5 % 8]} thing, number {i}"
        if i < ITEMS:
            items.append([f"item{name}", *words, image, audio])
        else:
            (folder / f"{name}.txt").write_text(" ".join(words), encoding="utf-8")
    events = [["user", "item", "time", "rating"]]
    for person in range(PEOPLE):
        kind = int(generator.integers(0, 3))
        liked = generator.choice(range(kind, ITEMS, 3), 6, replace=False)
        ratings = np.where(generator.random(6) < 0.9, generator.integers(4, 6, 6), 1)
        events += [
            [f"p{person:02d}", f"item{item:02d}", str(1000 * person + t), str(rating)]
            for t, (item, rating) in enumerate(zip(liked, ratings, strict=True))
        ]
    for name, rows in (("items", items), ("log", events)):
        with (source / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)


def shards(folder: Path, ids: range) -> Path:
    """Embeddings of 32 numbers, and their ids, as `mmrec embed` lays them."""
    (folder / "image_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    vectors = np.random.default_rng(len(ids)).standard_normal((len(ids), 32)).astype(np.float32)
    np.save(folder / "image_emb" / "image_emb_0.npy", vectors)
    pq.write_table(pa.table({"item_id": [f"i{row}" for row in ids]}), folder / "metadata" / "metadata_0.parquet")
    (folder / "spaces.json").write_text('{"image": {"space": "drawn"}}', encoding="utf-8")
    return folder


@pytest.fixture
def mine(small: Small, tmp_path: Path) -> Path:
    return small.copy(tmp_path / "mine")
