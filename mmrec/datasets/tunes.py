"""Public-domain music as scores: which works the music21 corpus holds for us, how one is read, how one is arranged.

Works: dance tunes of Ryan's Mammoth Collection (1883) and of O'Neill's collections (1903, 1907), Bach's chorales,
Monteverdi's third and fourth book of madrigals, songs and mass movements of the Italian Trecento, quartets by Haydn,
Mozart and Beethoven. Left out on purpose: encodings whose files reserve rights (Palestrina, Josquin, parts of the
Trecento).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.decoders.score import (
    BARS,
    BEATS,
    CHORD_SLOTS,
    DURATIONS,
    HARMONIC_BACKS,
    LONGEST_LEAD_REST,
    METRES,
    MODES,
    QUARTER,
    TEMPI,
    Line,
    Score,
    tonic_pitch,
)

if TYPE_CHECKING:
    from music21 import stream

# family -> (lead instruments, backings, slowest and fastest quarter note per minute)
STYLES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[int, int]]] = {
    "reel": (
        ("fiddle", "whistle", "accordion", "flute", "banjo", "bagpipes"),
        ("none", "guitar", "piano", "drum", "band"),
        (170, 230),
    ),
    "jig": (
        ("fiddle", "flute", "concertina", "whistle", "mandolin", "bagpipes"),
        ("none", "guitar", "drum", "band"),
        (150, 200),
    ),
    "slip jig": (("harp", "flute", "whistle", "fiddle"), ("none", "guitar", "harp", "drum"), (145, 180)),
    "hornpipe": (
        ("accordion", "concertina", "banjo", "clarinet", "piano", "fiddle"),
        ("none", "guitar", "piano", "band"),
        (130, 180),
    ),
    "strathspey": (("fiddle", "bagpipes", "cello", "accordion"), ("none", "piano", "drone", "drum"), (105, 140)),
    "waltz": (
        ("accordion", "music box", "piano", "mandolin", "marimba", "guitar"),
        ("none", "piano", "guitar", "strings"),
        (120, 170),
    ),
    "air": (
        ("harp", "oboe", "cello", "flute", "guitar", "clarinet"),
        ("none", "harp", "strings", "guitar", "drone"),
        (60, 90),
    ),
    "chorale": (("choir", "organ", "brass", "strings", "piano"), ("none",), (62, 90)),
    "madrigal": (("choir", "recorder", "harpsichord", "guitar"), ("none",), (80, 115)),
    "medieval": (("recorder", "harp", "mandolin", "oboe"), ("none",), (95, 145)),
    "quartet": (("strings", "piano", "clarinet", "marimba"), ("none",), (95, 150)),
}
TUNE_FAMILIES = frozenset({"reel", "jig", "slip jig", "hornpipe", "strathspey", "waltz", "air"})
# lead -> the MIDI pitches it plays well as a melody instrument
RANGES = {
    "fiddle": (55, 96),
    "flute": (60, 96),
    "whistle": (67, 98),
    "accordion": (53, 89),
    "concertina": (55, 91),
    "harp": (43, 91),
    "banjo": (50, 82),
    "guitar": (43, 79),
    "mandolin": (55, 88),
    "bagpipes": (55, 84),
    "piano": (48, 91),
    "clarinet": (50, 86),
    "oboe": (58, 88),
    "cello": (36, 72),
    "marimba": (48, 89),
    "music box": (65, 100),
}
MAX_QUARTET_BYTES = 31_000  # longer movements take music21 several seconds each
_CHORDS = {  # mode -> chord (semitones above the tonic, 3 minor or 4 major) -> how usual it is
    "major": {(0, 4): 0.25, (5, 4): 0.15, (7, 4): 0.2, (9, 3): 0.08, (2, 3): 0.08},
    "minor": {(0, 3): 0.25, (5, 3): 0.1, (7, 4): 0.12, (8, 4): 0.1, (10, 4): 0.15, (3, 4): 0.1},
    "dorian": {(0, 3): 0.25, (5, 4): 0.1, (10, 4): 0.2, (3, 4): 0.08, (7, 3): 0.05},
    "mixolydian": {(0, 4): 0.25, (10, 4): 0.2, (5, 4): 0.12, (7, 3): 0.05},
}


@dataclass(frozen=True)
class Work:
    """One piece of the corpus. `number` is the tune inside an ABC file of many, 0 for a whole file."""

    id: str
    title: str
    family: str
    source: str
    path: Path
    number: int = 0


@dataclass(frozen=True)
class Piece:
    """A work as read: per voice (onset, pitch, ticks), ticks counted from the first full bar."""

    metre: str
    tonic: int
    mode: str
    bars: int
    voices: tuple[tuple[tuple[int, int, int], ...], ...]


# ---------------------------------------------------------------------------------------------------- what there is


@lru_cache(maxsize=1)
def works() -> dict[str, tuple[Work, ...]]:
    """Return the works by family, in a fixed order."""
    package = find_spec("music21")
    if package is None or package.origin is None:
        raise FileNotFoundError("the package music21, which carries the scores, is missing: pip install music21")
    corpus = Path(package.origin).parent / "corpus"
    found: list[Work] = []
    for path in sorted((corpus / "ryansMammoth").glob("*.abc")):
        found += _abc_works(path, "Ryan's Mammoth Collection", "ryan")
    for path in sorted((corpus / "oneills1850").glob("*.abc")):
        found += _abc_works(path, "O'Neill's Music of Ireland", "oneill")
    for path in sorted((corpus / "bach").glob("bwv*.mxl")):
        bwv = path.stem.removeprefix("bwv")
        found.append(Work(f"bach-bwv-{bwv}", f"Bach, Chorale BWV {bwv}", "chorale", "Bach's chorales", path))
    for path in sorted((corpus / "monteverdi").glob("madrigal.[34].*.mxl")):
        book, number = path.stem.split(".")[1:3]
        title = f"Monteverdi, Madrigals book {book} no. {number}"
        if "_" not in number:
            found.append(Work(f"monteverdi-{book}-{number}", title, "madrigal", "Monteverdi's madrigals", path))
    for path in sorted((corpus / "trecento").glob("PMFC_*.xml")):
        title = re.sub(r"^PMFC[_\d]+[a-z]?-?", "", path.stem).replace("_", " ").strip()
        title = re.sub(r" PMFC ?|-(?=\w{3})", " ", re.sub(r"^([A-Z]\w+)[- ](\d+\w?)[- ]", r"\1 \2: ", title))
        if "bak" not in path.stem and b"Copyright" not in path.read_bytes()[:20000]:
            found.append(Work(f"trecento-{_slug(title)}", title, "medieval", "Music of the Trecento", path))
    for composer, label in (("haydn", "Haydn"), ("mozart", "Mozart"), ("beethoven", "Beethoven")):
        for path in sorted((corpus / composer).glob("*/movement?.mxl")):
            if path.stat().st_size > MAX_QUARTET_BYTES:
                continue
            opus, movement = path.parent.name, path.stem.removeprefix("movement")
            name = re.sub(r"opus(\d+)no(\d+)", r"op. \1 no. \2", re.sub(r"^k(\d+)", r"K. \1", opus))
            title = f"{label}, String Quartet {name}, movement {movement}"
            found.append(Work(f"{composer}-{opus}-{movement}", title, "quartet", f"{label}'s quartets", path))
    seen: set[str] = set()
    by_family: dict[str, list[Work]] = {family: [] for family in STYLES}
    for work in found:
        if work.id not in seen:
            seen.add(work.id)
            by_family[work.family].append(work)
    return {family: tuple(members) for family, members in by_family.items()}


def _abc_works(path: Path, source: str, prefix: str) -> list[Work]:
    result = []
    for block in re.split(r"(?m)^(?=X:)", path.read_text(encoding="utf-8", errors="replace")):
        fields = {key: value.strip(" \"'") for key, value in re.findall(r"(?m)^([XTRMQ]):[ \t]*(.*)$", block)[::-1]}
        if not {"X", "T", "M"} <= fields.keys():
            continue
        family = _abc_family(fields, block)
        if family is None:
            continue
        title = re.sub(r"\s*--\s*|\s+", " ", re.sub(r'\s*\(.*?\)|["“”]', "", fields["T"])).strip(" .")
        title = re.sub(r"'\w\b", lambda m: m[0].lower(), title.title()) if title.isupper() else title.replace(":", "")
        title = re.sub(r"^(.*), (The|A)$", r"\2 \1", title)
        number = int(re.sub(r"\D", "", fields["X"]) or 0)
        label = _slug(title) if prefix == "ryan" else f"{number:04d}-{_slug(title)}"
        result.append(Work(f"{prefix}-{label}", title, family, source, path, number))
    return result


def _abc_family(fields: dict[str, str], block: str) -> str | None:
    """Tell the family of a tune by its rhythm and metre fields; None for what we leave out."""
    rhythm, metre = fields.get("R", "").lower().replace("slipjig", "slip jig"), fields["M"].split("%")[0].strip()
    if metre == "9/8" and ("jig" in rhythm or not rhythm):
        return "slip jig"
    if metre == "6/8" and ("jig" in rhythm or not rhythm):
        return "jig"
    if metre in ("2/4", "C|", "C", "4/4"):
        return rhythm if rhythm in ("reel", "hornpipe", "strathspey") else None
    if metre == "3/4" and rhythm in ("", "air", "waltz"):
        return "air" if rhythm == "air" or re.search(r"(?i)slow|tender|plaintive|sad", block) else "waltz"
    return None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("'", "")).strip("-")[:48]


# ---------------------------------------------------------------------------------------------------------- reading


def read_work(work: Work) -> Piece | None:
    """Read a work with music21; None where it has no regular bars, or notes finer than our ticks."""
    from music21 import converter, stream

    try:
        if work.path.suffix == ".abc":
            blocks = re.split(r"(?m)^(?=X:)", work.path.read_text(encoding="utf-8", errors="replace"))
            text = next(b for b in blocks if re.match(rf"X:\s*0*{work.number}\b", b))
            score = converter.parse(text, format="abc", forceSource=True, storePickle=False)
        else:
            score = converter.parse(work.path, forceSource=True, storePickle=False)
    except Exception:  # music21 raises many kinds for the flaws of old encodings; another work takes the place
        return None
    if not isinstance(score, stream.Score):
        return None
    parts = list(score.parts)
    if work.family == "madrigal" and len(parts) == 5:
        parts = [parts[0], *parts[2:]]
    parts = parts[-4:]
    if not parts:
        return None
    measures = list(parts[0].getElementsByClass(stream.Measure))
    signature = next((m.timeSignature for m in measures if m.timeSignature is not None), None)
    if signature is None:
        return None
    metre, scale = _metre(signature.ratioString, work.family)
    if metre is None:
        return None
    bar = METRES[metre] / QUARTER / scale  # in the quarters of the file
    same_metre = [
        m for m in measures if m.timeSignature is None or m.timeSignature.ratioString == signature.ratioString
    ]
    if len(same_metre) < len(measures):  # keep what comes before the first change of metre
        measures = measures[: next(i for i, m in enumerate(measures) if m not in same_metre)]
    first = next((float(m.offset) for m in measures if abs(float(m.highestTime) - bar) < 1e-3), None)
    if first is None or not measures:
        return None
    end = float(measures[-1].offset) + float(measures[-1].highestTime)
    voices = []
    for part in parts:
        notes: list[list[int]] = []
        for element in part.flatten().notes:
            pitches = [pitch.midi for pitch in element.pitches]
            onset = round((float(element.offset) - first) * QUARTER * scale)
            stop = round((float(element.offset + element.quarterLength) - first) * QUARTER * scale)
            if stop <= onset or not pitches or element.offset >= end:
                continue
            pitch = max(pitches)
            tied = element.tie is not None and element.tie.type in ("stop", "continue")
            if tied and notes and notes[-1][1] == pitch and notes[-1][0] + notes[-1][2] == onset:
                notes[-1][2] += stop - onset
            elif notes and notes[-1][0] == onset:
                if pitch > notes[-1][1]:
                    notes[-1][1:] = [pitch, stop - onset]
            elif not notes or onset > notes[-1][0]:
                notes.append([onset, pitch, stop - onset])
        if notes:
            voices.append(tuple((onset, pitch, ticks) for onset, pitch, ticks in notes))
    if not voices:
        return None
    tonic, mode = _key(score, min(voices, key=lambda line: sum(p for _, p, _ in line) / len(line))[-1][1])
    bars = int((end - first) / bar + 0.5)  # the last bar may lend its end to a pickup
    return Piece(metre, tonic, mode, bars, tuple(voices))


def _metre(ratio: str, family: str) -> tuple[str | None, float]:
    """Return our metre and how much longer our notes are than those of the file."""
    if family in ("reel", "hornpipe", "strathspey"):
        return ("4/4", 2.0) if ratio == "2/4" else ("4/4", 1.0) if ratio in ("4/4", "2/2") else (None, 1.0)
    table = {"4/4": ("4/4", 1.0), "2/2": ("4/4", 1.0), "3/4": ("3/4", 1.0), "6/8": ("6/8", 1.0), "9/8": ("9/8", 1.0)}
    table |= {"2/4": ("2/4", 1.0), "4/2": ("4/4", 0.5), "3/2": ("3/4", 0.5), "6/4": ("6/8", 0.5), "3/8": ("3/4", 2.0)}
    return table.get(ratio, (None, 1.0))


def _key(score: stream.Score, last_pitch: int) -> tuple[int, str]:
    """Return (tonic, mode): the last bass note, in the mode that the signature gives it, or the declared key."""
    from music21 import key

    signature = next(iter(score.recurse().getElementsByClass(key.KeySignature)), None)
    major = signature.sharps * 7 % 12 if signature is not None else 0
    by_step = {0: "major", 9: "minor", 2: "dorian", 7: "mixolydian"}
    step = (last_pitch - major) % 12
    if step in by_step:
        return last_pitch % 12, by_step[step]
    if isinstance(signature, key.Key) and signature.mode in MODES:
        return signature.tonic.pitchClass, signature.mode
    return major, "major"


# -------------------------------------------------------------------------------------------------------- arranging


def arrange(
    piece: Piece, family: str, rng: random.Random, *, lead: str | None = None, seconds: float = 10.0, transpose: int = 0
) -> Score | None:
    """Cut a phrase of about `seconds` from `piece` and give it an instrument, a tempo and a backing that fit `family`.

    Returns None where the piece is too short or no cut of it can be spelled.
    """
    leads, backs, (slow, fast) = STYLES[family]
    lead = lead or rng.choice(leads)
    back = "drone" if lead == "bagpipes" and rng.random() < 0.7 else rng.choice(backs)
    tempo = rng.choice([t for t in TEMPI if slow <= t <= fast] or [min(TEMPI, key=lambda t: abs(t - slow))])
    is_tune = family in TUNE_FAMILIES
    bar = METRES[piece.metre]
    wanted = seconds * tempo * QUARTER / 60 / bar
    lengths = [b for b in BARS if b <= piece.bars and (not is_tune or b in (2, 4, 8, 16))]
    if not lengths:
        return None
    bars = min(lengths, key=lambda b: abs(b - wanted))
    if not 0.6 < bars / wanted < 1.4:
        return None
    starts = list(range(0, piece.bars - bars + 1, bars if is_tune else 1))
    rng.shuffle(starts)
    if not is_tune:  # beginnings and endings make the best excerpts
        starts = [0, piece.bars - bars, *starts]
    tonic = (piece.tonic + transpose) % 12
    shift = tonic_pitch(tonic) - tonic_pitch(piece.tonic)
    for start in starts[:6]:
        lines = [_cut(voice, start * bar, bars * bar, shift) for voice in piece.voices]
        lines = [line for line in lines if any(pitch is not None for pitch, _ in line)]
        if is_tune:
            lines = [_sing(_fit(lines[0], lead))] if lines else []
        if not lines or len(lines) < min(len(piece.voices), 2):
            continue
        if max((ticks for pitch, ticks in lines[0] if pitch is None), default=0) > LONGEST_LEAD_REST:
            continue
        notes = [pitch for line in lines for pitch, _ in line if pitch is not None]
        if min(notes) < tonic_pitch(tonic) - 30 or max(notes) > tonic_pitch(tonic) + 36 or len(notes) < bars:
            continue
        voices = tuple(tuple(_spell(line)) for line in lines)
        if is_tune and any(a[0] is None and b[0] is None for a, b in zip(voices[0], voices[0][1:], strict=False)):
            continue
        chords = harmonise(lines[0], piece.metre, tonic, piece.mode, bars) if back in HARMONIC_BACKS else ()
        return Score(family, lead, back, piece.metre, tempo, bars, tonic, piece.mode, voices, chords)
    return None


def harmonise(line: Line, metre: str, tonic: int, mode: str, bars: int) -> tuple[tuple[int, int], ...]:
    """Choose one chord per slot for a melody: the path (Viterbi) that fits its notes, moves little and ends at home."""
    slot, beat = CHORD_SLOTS[metre], BEATS[metre]
    slots = bars * METRES[metre] // slot
    weights = [[0.0] * 12 for _ in range(slots)]
    time = 0
    for pitch, ticks in line:
        if pitch is not None:
            weights[min(time // slot, slots - 1)][(pitch - tonic) % 12] += min(ticks, slot) * (
                2 if time % beat == 0 else 1
            )
        time += ticks
    usual = _CHORDS[mode]
    home = (0, 4 if 4 in MODES[mode] else 3)

    def fit(index: int, chord: tuple[int, int]) -> float:
        total = sum(weights[index]) or 1.0
        inside = sum(weights[index][(chord[0] + step) % 12] for step in (0, chord[1], 7))
        return inside / total + usual[chord] + (0.3 if index == 0 and chord == home else 0.0)

    best: dict[tuple[int, int], tuple[float, list[tuple[int, int]]]] = {c: (fit(0, c), [c]) for c in usual}
    for index in range(1, slots):
        step = {}
        for chord in usual:
            score, path = max((s + (0.08 if p[-1] == chord else 0.0), p) for s, p in best.values())
            step[chord] = (score + fit(index, chord), [*path, chord])
        best = step
    return tuple(best[home][1])


def _cut(voice: Sequence[tuple[int, int, int]], start: int, length: int, shift: int) -> Line:
    """Cut `length` ticks out of a voice as an unbroken line; a note sounding into the cut counts as beginning there."""
    line: list[tuple[int | None, int]] = []
    time = 0
    inside = [(o - start, p, t) for o, p, t in voice if o + t > start and o < start + length]
    for index, (onset, pitch, ticks) in enumerate(inside):
        onset, stop = max(onset, 0), min(onset + ticks, length)
        if index + 1 < len(inside):
            stop = min(stop, inside[index + 1][0])
        if onset > time:
            line.append((None, onset - time))
        if stop > onset:
            line.append((pitch + shift, stop - onset))
            time = stop
    if time < length:
        line.append((None, length - time))
    return tuple(line)


def _sing(line: Line) -> Line:
    """Let notes sound over the rests that follow them; a last short pickup joins the note before it."""
    sung: list[tuple[int | None, int]] = []
    for pitch, ticks in line:
        if pitch is None and sung:
            sung[-1] = (sung[-1][0], sung[-1][1] + ticks)
        else:
            sung.append((pitch, ticks))
    while len(sung) > 2 and sung[-1][1] <= 6 and sung[-2][1] >= 12:
        last = sung.pop()
        sung[-1] = (sung[-1][0], sung[-1][1] + last[1])
    return tuple(sung)


def _fit(line: Line, lead: str) -> Line:
    """Move a line by octaves to where its instrument sounds well."""
    low, high = RANGES.get(lead, (40, 90))
    pitches = [pitch for pitch, _ in line if pitch is not None]
    middle = (low + high) / 2
    shift = min((-24, -12, 0, 12, 24), key=lambda s: abs((min(pitches) + max(pitches)) / 2 + s - middle) + abs(s) / 3)
    return tuple((None if pitch is None else pitch + shift, ticks) for pitch, ticks in line)


def _spell(line: Line) -> list[tuple[int | None, int]]:
    """Break durations the vocabulary lacks: a note keeps its longest part and rests for the remainder."""
    spelled: list[tuple[int | None, int]] = []
    for pitch, ticks in line:
        while ticks:
            part = max(d for d in DURATIONS if d <= ticks)
            spelled.append((pitch, part))
            pitch, ticks = None, ticks - part
    return spelled
