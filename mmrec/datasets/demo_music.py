"""The music of the demo catalog: clips of about ten seconds, played from public-domain scores.

Eleven families of music (reels, jigs, airs, chorales, madrigals, quartets, ...), each on several instruments that suit
it, so that a listener and an audio encoder hear the difference. The scores come from music21's corpus (`tunes.py` says
which), the sound from pretty_midi's soundfont; nothing is downloaded.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from diffusion.decoders.score import RATE, Score, render, to_midi
from mmrec.datasets.tunes import STYLES, Work, arrange, read_work, works

CREDIT = (
    "Music: public-domain works from the corpus of music21 (Ryan's Mammoth Collection, O'Neill's Music of Ireland, "
    "Bach, Monteverdi, the Trecento, Haydn, Mozart, Beethoven), played with the TimGM6mb soundfont of pretty_midi"
)
LICENCE = "public domain"
SEED = 7
SECONDS_RANGE = (4.0, 20.0)

KEYS = ("C", "D-flat", "D", "E-flat", "E", "F", "F-sharp", "G", "A-flat", "A", "B-flat", "B")
KIND_WORDS = {
    "reel": "Irish reel, a dance tune",
    "jig": "Irish jig, a dance tune",
    "slip jig": "slip jig, a dance tune in nine-eight",
    "hornpipe": "hornpipe, a sailors' dance tune",
    "strathspey": "Scottish strathspey, a dotted dance tune",
    "waltz": "song tune in waltz time",
    "air": "slow air, a song without words",
    "chorale": "Baroque chorale in four parts",
    "madrigal": "Renaissance madrigal in several voices",
    "medieval": "medieval polyphony of the fourteenth century",
    "quartet": "classical string quartet movement",
}
BACK_WORDS = {
    "none": "",
    "drone": " over a drone",
    "drum": " with drum",
    "guitar": " with guitar chords",
    "piano": " with piano chords",
    "harp": " with harp arpeggios",
    "strings": " with soft strings",
    "band": " with bass, guitar and drum",
}


def demo_music(
    destination: Path,
    limit: int = 240,
    seconds: float = 10.0,
    progress: Callable[[int, int], None] | None = None,
    processes: int | None = None,
) -> list[dict]:
    """Write up to `limit` clips (mono 24 kHz Ogg) under `destination`/audio and return their rows.

    A row is `{item_id, title, text, audio, metadata}`, `audio` relative to `destination`. The choice is the same on
    every call; clips that are already there are kept. `processes` defaults to the number of cores, at most 8; 1 works
    in this process. Raises `ValueError` for a limit below 1 or `seconds` outside 4 to 20.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; ask for at least one clip")
    if not SECONDS_RANGE[0] <= seconds <= SECONDS_RANGE[1]:
        raise ValueError(f"seconds is {seconds}; a clip lasts {SECONDS_RANGE[0]:g} to {SECONDS_RANGE[1]:g} seconds")
    (destination / "audio").mkdir(parents=True, exist_ok=True)
    jobs = [(destination, lead, candidates, seconds) for lead, candidates in _plan(limit)]
    processes = min(processes or os.cpu_count() or 1, 8, len(jobs))
    rows: list[dict] = []

    def collect(results: Iterable[dict | None]) -> None:
        for done, row in enumerate(results, start=1):
            if row is not None:
                rows.append(row)
            if progress:
                progress(done, len(jobs))

    if processes == 1:
        collect(map(_make_clip, jobs))
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            collect(pool.map(_make_clip, jobs, chunksize=4))
    return rows


def describe(score: Score, title: str) -> str:
    """Say in words what a score sounds like.

    >>> score = Score("reel", "whistle", "drum", "4/4", 220, 8, 2, "major", (((74, 384),),))
    >>> describe(score, "The Merry Reel")
    'The Merry Reel. Irish reel, a dance tune, lively, in D major, for whistle with drum.'
    """
    slow, fast = STYLES[score.family][2]
    place = (score.tempo - slow) / (fast - slow)
    pace = "unhurried" if place < 1 / 3 else "at an easy pace" if place < 2 / 3 else "lively"
    kind, key = KIND_WORDS[score.family], f"{KEYS[score.tonic]} {score.mode}"
    stop = "" if title.endswith(("?", "!", ".")) else "."
    return f"{title}{stop} {kind[0].upper()}{kind[1:]}, {pace}, in {key}, for {score.lead}{BACK_WORDS[score.back]}."


def _plan(limit: int) -> list[tuple[str, Sequence[Work]]]:
    """Return (lead, works to try in turn) per clip: families and leads in equal parts, no work tried by two clips."""
    plan: list[tuple[str, Sequence[Work]]] = []
    for family_index, family in enumerate(STYLES):
        count = limit // len(STYLES) + (family_index < limit % len(STYLES))
        members = list(works()[family])
        random.Random(f"{SEED}/{family}").shuffle(members)
        leads = STYLES[family][0]
        plan += [(leads[j % len(leads)], members[j::count][:6]) for j in range(min(count, len(members)))]
    return plan


def _make_clip(job: tuple[Path, str, Sequence[Work], float]) -> dict | None:
    """Arrange, play and write the first work of the job that can be used; None where none can."""
    import soundfile

    destination, lead, candidates, seconds = job
    for work in candidates:
        piece = read_work(work)
        score = piece and arrange(piece, work.family, random.Random(f"{SEED}/{work.id}"), lead=lead, seconds=seconds)
        if not score:
            continue
        audio = Path("audio", f"{work.id}.ogg")
        midi = to_midi(score)
        mark = f"mmrec score {zlib.crc32(midi):08x}"
        if _mark(destination / audio) != mark:
            clip = render(midi)
            temporary = destination / f"{audio}.{os.getpid()}.part"
            with soundfile.SoundFile(temporary, "w", RATE, 1, format="OGG", subtype="VORBIS") as file:
                file.comment = mark
                file.write(clip.samples)
            os.replace(temporary, destination / audio)
        metadata = {
            "kind": "music",
            "family": score.family,
            "instrument": score.lead,
            "backing": score.back,
            "tempo": score.tempo,
            "key": f"{KEYS[score.tonic]} {score.mode}",
            "metre": score.metre,
            "voices": len(score.voices),
            "source": work.source,
            "credit": CREDIT,
            "licence": LICENCE,
        }
        return {
            "item_id": work.id,
            "title": work.title,
            "text": describe(score, work.title),
            "audio": audio.as_posix(),
            "metadata": metadata,
        }
    return None


def _mark(path: Path) -> str | None:
    """Return the comment inside an audio file, None where there is no readable file."""
    import soundfile

    if not path.is_file():
        return None
    try:
        with soundfile.SoundFile(path) as file:
            return str(file.comment)
    except soundfile.LibsndfileError:
        return None
