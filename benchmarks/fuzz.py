"""Do the readers of media and tables survive anything? A hundred thousand damaged files, read one after the other.

    python benchmarks/fuzz.py --record docs/results

Input ``i`` of a reader is one of a few small good files, damaged in a way drawn from (seed, reader, i): bits flipped,
bytes overwritten, cut out, repeated, swapped with another file's, lengths set to extremes, the end cut off. The reader
must either take it or refuse it with the error it promises; anything else counts: another exception, a crash of the
process, more than `LIMIT` seconds, more than `MEMORY` above what the libraries need. Work is cut into chunks, each in a
process of its own, so that a crash loses nothing; a chunk that is in the state file is not done again.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

LIMIT = 10
"""Seconds one input may take, of which most take a thousandth."""
MEMORY = 1 << 30
"""Bytes of address space that inputs may take in all, above what the warm process has."""
CHUNK = 1500
ITEMS = ("a", "b", "c")
Read = Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """What is fuzzed: good files to damage, what reads them, and the error it promises."""

    seeds: Callable[[], list[bytes]]
    suffix: str
    reads: tuple[Read, ...]
    promised: type[Exception]
    share: int = 1


# -- good files --------------------------------------------------------------------------------------------------------


def pictures(kind: str, **options: Any) -> list[bytes]:
    """Small pictures of one format: colours, greys, with transparency, with a palette, in several frames."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 4), np.uint8)
    whole = Image.fromarray(noise)
    made = []
    for mode in ("RGB", "L", "RGBA", "P"):
        picture = whole.convert(mode)
        if kind == "JPEG" and mode in ("RGBA", "P"):
            picture = picture.convert("CMYK" if mode == "RGBA" else "L")
        file = io.BytesIO()
        more = (
            {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}
            if kind == "JPEG"
            else {}
        )
        if kind in ("GIF", "WEBP", "PNG") and mode == "P":
            more |= {"save_all": True, "append_images": [picture.rotate(90), picture.rotate(180)]}
        picture.save(file, kind, **options, **more)
        made.append(file.getvalue())
    return made


def sounds(kind: str, *subtypes: str) -> list[bytes]:
    """A twentieth of a second of noise, in one channel and in two."""
    import numpy as np
    import soundfile

    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (800, 2))
    made = []
    for subtype in subtypes:
        for channels in (1, 2):
            file = io.BytesIO()
            soundfile.write(file, noise[:, :channels], 16000, format=kind, subtype=subtype)
            made.append(file.getvalue())
    return made


ROWS: list[dict[str, Any]] = [
    {"id": "a", "title": 'one, "two"', "text": "first\nsecond", "user": "ann", "item": "a", "time": "2024-01-02"},
    {"id": "b", "title": "süß ☃", "text": "", "user": "bob", "item": "b", "time": "1700000000", "rating": 1.0},
    {"id": "c", "title": None, "text": "x" * 60, "user": "ann", "item": "c", "time": "1700000001.5", "rating": 5.0},
]


def csv_tables() -> list[bytes]:
    import csv

    made = []
    for delimiter in ",;":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(ROWS[1]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
        made.append(text.getvalue().encode())
    return [*made, b"\xef\xbb\xbf" + made[0], made[0].replace(b"\r\n", b"\n")]


def json_tables() -> list[bytes]:
    lines = [json.dumps(row).encode() for row in ROWS]
    nested = json.dumps({"id": "d", "metadata": {"deep": [1, [2, {"x": None}]]}, "user": "ann", "item": "a"}).encode()
    return [b"\n".join(lines), b"\n".join([*lines, nested]) + b"\n"]


def parquet_tables() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = []
    for compression in ("none", "snappy", "zstd", "gzip"):
        for version in ("1.0", "2.0"):
            file = io.BytesIO()
            pq.write_table(
                pa.Table.from_pylist(ROWS),
                file,
                compression=compression,
                data_page_version=version,
                use_dictionary=version == "1.0",
                write_page_index=version == "2.0",
            )
            made.append(file.getvalue())
    return made


# -- readers -----------------------------------------------------------------------------------------------------------


def reader_of(name: str) -> Reader:
    """The reader called ``name``; imports are made here, before memory is bounded."""
    from encoders import media
    from mmrec.errors import MmrecError

    family, kind = name.split("/")
    if family == "picture":
        seeds = {
            "png": lambda: pictures("PNG"),
            "jpeg": lambda: pictures("JPEG"),
            "webp": lambda: pictures("WEBP") + pictures("WEBP", lossless=True),
            "gif": lambda: pictures("GIF"),
            "bmp": lambda: pictures("BMP"),
            "tiff": lambda: pictures("TIFF") + pictures("TIFF", compression="tiff_lzw"),
        }[kind]
        return Reader(seeds, f".{kind}", (media.check_image, media.read_image), media.MediaError)
    if family == "sound":
        subtypes = {"wav": ("PCM_16", "FLOAT", "IMA_ADPCM"), "flac": ("PCM_16",), "ogg": ("VORBIS", "OPUS")}
        subtypes |= {"mp3": ("MPEG_LAYER_III",), "aiff": ("PCM_16",)}
        return Reader(
            lambda: sounds(kind.upper(), *subtypes[kind]),
            f".{kind}",
            (media.check_audio, media.read_audio),
            media.MediaError,
        )
    tables = {"csv": csv_tables, "jsonl": json_tables, "parquet": parquet_tables}[kind]
    return Reader(tables, f".{kind}", (_catalog if family == "catalog" else _log,), MmrecError)


READERS = {
    **{f"picture/{kind}": 9000 for kind in ("png", "jpeg", "webp", "gif")},
    **{f"picture/{kind}": 4500 for kind in ("bmp", "tiff")},
    **{f"sound/{kind}": 7500 for kind in ("wav", "flac", "ogg", "mp3")},
    "sound/aiff": 3000,
    **{f"{family}/{kind}": 4500 for family in ("catalog", "log") for kind in ("csv", "jsonl", "parquet")},
}
"""Readers, and how many of 105,000 inputs each is given."""


def _catalog(path: Path) -> object:
    from mmrec.catalog import Catalog, ingest_catalog

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        report = ingest_catalog(path, Path(folder))
        catalog = Catalog.load(Path(folder))
    assert len(catalog) == report.items == len(set(catalog.item_ids)) > 0
    return catalog


def _log(path: Path) -> object:
    import numpy as np

    from mmrec.interactions import ingest_interactions, load_histories

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        report = ingest_interactions(path, Path(folder), ITEMS)
        histories = load_histories(Path(folder), {item: i for i, item in enumerate(ITEMS)})
    assert sum(map(len, histories.items)) == report.kept > 0
    assert all(np.isin(p, (-1, 0, 1)).all() for p in histories.preferences)
    return histories


# -- damage ------------------------------------------------------------------------------------------------------------


def damaged(seeds: list[bytes], dice: random.Random) -> bytes:
    """One of the good files after one to six blows."""
    data = bytearray(dice.choice(seeds))
    for _ in range(dice.choice((1, 1, 1, 2, 3, 6))):
        size = max(len(data), 1)
        at = dice.randrange(size)
        if dice.random() < 0.4:
            at = min(at, dice.randrange(min(size, 64)))  # headers matter most
        much = dice.choice((1, 2, 4, 8, dice.randrange(1, 64)))
        match dice.randrange(9):
            case 0 | 1 if data:
                data[min(at, len(data) - 1)] ^= 1 << dice.randrange(8)
            case 2:
                data[at : at + much] = dice.randbytes(much)
            case 3:
                del data[at : at + much]
            case 4:
                data[at:at] = data[at : at + much] * dice.randrange(1, 9)
            case 5:
                extreme = dice.choice((0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1))
                wide = dice.choice((1, 2, 4, 8))
                data[at : at + wide] = (extreme % 256**wide).to_bytes(wide, dice.choice(("little", "big")))
            case 6:
                other = dice.choice(seeds)
                data[at:] = other[min(at, len(other)) :]
            case 7:
                del data[at:]
            case 8:
                data[at:at] = dice.choice(
                    (b'"', b"\0", b"\n", b",", b"\xff", b"{", b"[" * 100, b"\r", b"1e999", b"nan")
                )
    return bytes(data)


@cache
def _seeds(name: str) -> list[bytes]:
    return reader_of(name).seeds()


def input_of(name: str, number: int, seed: int) -> bytes:
    """The damaged file ``number`` of a reader; the same on every machine with the same libraries."""
    return damaged(_seeds(name), random.Random(f"{seed}/{name}/{number}"))


# -- one chunk, in a process of its own --------------------------------------------------------------------------------


def work(names: list[str], start: int, stop: int, first: int, seed: int) -> None:
    """Read inputs ``start`` to ``stop`` of each reader from the ``first`` on; a line of JSON before and after each."""
    readers = {name: reader_of(name) for name in names}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        for name, reader in readers.items():  # warm, and good files must be taken
            for good in _seeds(name):
                path = Path(folder) / f"good{reader.suffix}"
                path.write_bytes(good)
                for read in reader.reads:
                    read(path)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for job, (name, number) in enumerate(_jobs(names, start, stop)):
            if job < first:
                continue
            path = Path(folder) / f"input{readers[name].suffix}"
            path.write_bytes(input_of(name, number, seed))
            print(json.dumps({"job": job}), flush=True)
            signal.alarm(LIMIT)
            told = _verdict(readers[name], path)
            signal.alarm(0)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(json.dumps({"job": job, "grown_kb": grown, **told}), flush=True)


def _jobs(names: list[str], start: int, stop: int) -> list[tuple[str, int]]:
    return [(name, number) for name in names for number in range(start, stop)]


def _verdict(reader: Reader, path: Path) -> dict[str, str]:
    taken = True
    for read in reader.reads:
        try:
            read(path)
        except reader.promised:
            taken = False
        except BaseException as error:
            return {"verdict": "failed", "why": f"{read.__name__}: {type(error).__name__}: {error}"[:300]}
    return {"verdict": "accepted" if taken else "refused"}


def chunks(names: list[str], start: int, stop: int, seed: int) -> dict[str, dict[str, Any]]:
    """Per reader what became of inputs ``start`` to ``stop``; a worker that dies is replaced behind what killed it."""
    counted: dict[str, dict[str, Any]] = {
        name: {"reader": name, "start": start, "stop": stop, "seed": seed}
        | {"counts": Counter(), "failures": [], "grown_kb": 0}
        for name in names
    }
    jobs = _jobs(names, start, stop)
    at = 0
    while at < len(jobs):
        command = [sys.executable, __file__, "--work", str(start), str(stop), str(at), *names, "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=_environment())
        said = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode and (not said or "verdict" in said[-1]):
            raise RuntimeError(f"the worker fails by itself: {done.stderr[-2000:]}")
        if done.returncode:
            died = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit {done.returncode}"
            said[-1] |= {"verdict": "failed", "why": f"the process died: {died} {done.stderr[-300:]}", "grown_kb": 0}
        for told in said:
            if "verdict" not in told:
                continue
            name, number = jobs[told["job"]]
            counted[name]["counts"][told["verdict"]] += 1
            counted[name]["grown_kb"] = max(counted[name]["grown_kb"], told["grown_kb"])
            if told["verdict"] == "failed":
                counted[name]["failures"].append({"input": number, "why": told["why"]})
            at = told["job"] + 1
    return counted


def _environment() -> dict[str, str]:
    """One thread, and an allocator that gives back what it does not use, so that the bound is on the inputs' memory."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}


# -- all of them -------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    state = Path("workspaces/fuzz.jsonl")
    parser.add_argument("--state", type=Path, default=state, help="what is done; go on from there")
    parser.add_argument("--inputs", type=int, default=sum(READERS.values()), help="how many in all")
    parser.add_argument("--readers", nargs="*", default=list(READERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    parser.add_argument("--show", nargs=2, metavar=("READER", "INPUT"), help="print one input, in base64")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.show:
        print(base64.b64encode(input_of(options.show[0], int(options.show[1]), options.seed)).decode())
        return
    if options.work:
        start, stop, first = map(int, options.work[:3])
        work(options.work[3:], start, stop, first, options.seed)
        return
    done = [json.loads(line) for line in options.state.read_text().splitlines()] if options.state.is_file() else []
    finished = {(c["reader"], c["start"], c["stop"], c["seed"]) for c in done}
    share = options.inputs / sum(READERS.values())
    began = time.monotonic()
    for name in options.readers:
        total = max(1, round(READERS[name] * share))
        for start in range(0, total, CHUNK):
            key = (name, start, min(start + CHUNK, total), options.seed)
            if key in finished:
                continue
            told = chunks([name], *key[1:])[name]
            options.state.parent.mkdir(parents=True, exist_ok=True)
            with options.state.open("a") as file:
                file.write(json.dumps(told) + "\n")
            done.append(told)
        mine = [c for c in done if c["reader"] == name and c["seed"] == options.seed]
        counts = sum((Counter(c["counts"]) for c in mine), Counter())
        print(f"{name:16s} {dict(counts)}  memory +{max(c['grown_kb'] for c in mine) / 1024:.0f} MB", flush=True)
        for failure in [f for c in mine for f in c["failures"]][:5]:
            print(f"    input {failure['input']}: {failure['why']}")
    print(f"{time.monotonic() - began:.0f} s")
    if options.record:
        record(done, options)


def record(done: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The counts of each reader, and of all, into ``docs/results/fuzz.json``."""
    from mmrec import results

    command = f"python benchmarks/fuzz.py --inputs {options.inputs} --seed {options.seed} --record docs/results"
    at, on = results.commit(), results.machine()
    records = []
    for name in [*options.readers, "all readers"]:
        mine = [c for c in done if name in (c["reader"], "all readers") and c["seed"] == options.seed]
        counts = sum((Counter(c["counts"]) for c in mine), Counter())
        numbers = {"inputs": counts.total(), **{v: counts[v] for v in ("accepted", "refused", "failed")}}
        numbers["memory, MB"] = max(c["grown_kb"] for c in mine) / 1024
        records += [
            results.Record(
                dataset="damaged files",
                split="read by a reader each",
                model=name,
                metric=metric,
                mean=value,
                seeds=(options.seed,),
                command=command,
                commit=at,
                machine=on,
            )
            for metric, value in numbers.items()
        ]
    print(results.write_records("fuzz", records, options.record))


if __name__ == "__main__":
    main()
