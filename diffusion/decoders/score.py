"""Scores the music decoder can spell: tokens <-> `Score` <-> MIDI <-> sound.

A `Score` is a header (family of music, lead instrument, backing, metre, tempo, length, key, mode) and up to four
voices, each an unbroken line of notes and rests, with one chord per slot of the bar where the backing needs chords.
Time is counted in ticks of a twelfth of a quarter note, so sixteenths and triplets are exact.

The spelling needs no time stamps: the next event always belongs to the line that has sounded least so far, so the
`Grammar` knows at every step whose turn it is and what may follow, and every sequence it lets through is a playable
score. Pitches are spelled relative to the tonic, as is common since "Music Transformer" style models found that a tune
transposed should be the same tune (Huang et al. 2019, section 4 on relative attention; here it is done in the data).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from diffusion.decoders.base import Clip

QUARTER = 12  # ticks
RATE = 24_000
TAIL_SECONDS = 0.9
CLIP_SECONDS = (6.0, 13.5)  # what the grammar lets a score last, before the tail

FAMILIES = (
    "reel",
    "jig",
    "slip jig",
    "hornpipe",
    "strathspey",
    "waltz",
    "air",
    "chorale",
    "madrigal",
    "medieval",
    "quartet",
)
# name -> General MIDI program
LEADS = {
    "fiddle": 40,
    "flute": 73,
    "whistle": 78,
    "recorder": 74,
    "accordion": 21,
    "concertina": 23,
    "harp": 46,
    "banjo": 105,
    "guitar": 24,
    "mandolin": 25,
    "bagpipes": 109,
    "harpsichord": 6,
    "piano": 0,
    "clarinet": 71,
    "oboe": 68,
    "cello": 42,
    "marimba": 12,
    "music box": 10,
    "choir": 52,
    "organ": 19,
    "strings": 48,
    "brass": 61,
}
BACKS = ("none", "drone", "drum", "guitar", "piano", "harp", "strings", "band")
HARMONIC_BACKS = frozenset({"guitar", "piano", "harp", "strings", "band"})
METRES = {"4/4": 48, "3/4": 36, "6/8": 36, "9/8": 54, "2/4": 24}  # ticks per bar
BEATS = {"4/4": 12, "3/4": 12, "6/8": 18, "9/8": 18, "2/4": 12}
CHORD_SLOTS = {"4/4": 24, "3/4": 36, "6/8": 18, "9/8": 54, "2/4": 24}
TEMPI = tuple(round(50 * 1.12**k) for k in range(16))  # quarter notes per minute, 50 to 274
BARS = tuple(range(2, 17))
MODES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
}
DURATIONS = (1, 2, 3, 4, 6, 8, 9, 12, 15, 16, 18, 21, 24, 27, 30, 33, 36, 42, 48, 54, 60, 72, 96)
MAX_VOICES = 4
LOW, HIGH = -30, 36  # pitches, in semitones from the tonic near middle C
LONGEST_LEAD_REST = 24

HEADER = ("family", "lead", "back", "metre", "tempo", "bars", "voices", "tonic", "mode")
_CHOICES: dict[str, tuple] = {
    "family": FAMILIES,
    "lead": tuple(LEADS),
    "back": BACKS,
    "metre": tuple(METRES),
    "tempo": TEMPI,
    "bars": BARS,
    "voices": tuple(range(1, MAX_VOICES + 1)),
    "tonic": tuple(range(12)),
    "mode": tuple(MODES),
}
VOCABULARY: tuple[tuple[str, object], ...] = (
    ("start", None),
    *((field, value) for field in HEADER for value in _CHOICES[field]),
    ("rest", None),
    *(("pitch", step) for step in range(LOW, HIGH + 1)),
    *(("duration", ticks) for ticks in DURATIONS),
    *(("chord", (root, third)) for root in range(12) for third in (3, 4)),
)
TOKEN = {symbol: index for index, symbol in enumerate(VOCABULARY)}
START, REST = TOKEN["start", None], TOKEN["rest", None]
_FIRST_PITCH, _FIRST_DURATION = TOKEN["pitch", LOW], TOKEN["duration", DURATIONS[0]]
_FIRST_CHORD = TOKEN["chord", (0, 3)]
_FIELD_RANGE = {
    field: slice(TOKEN[field, values[0]], TOKEN[field, values[-1]] + 1) for field, values in _CHOICES.items()
}

Line = tuple[tuple[int | None, int], ...]  # (MIDI pitch or None for a rest, ticks)


@dataclass(frozen=True)
class Score:
    """A short piece; `tonic` is a pitch class (0 is C), a chord (semitones above the tonic, 3 minor or 4 major)."""

    family: str
    lead: str
    back: str
    metre: str
    tempo: int
    bars: int
    tonic: int
    mode: str
    voices: tuple[Line, ...]
    chords: tuple[tuple[int, int], ...] = ()

    @property
    def ticks(self) -> int:
        """Length of the score in ticks."""
        return self.bars * METRES[self.metre]

    @property
    def seconds(self) -> float:
        """Length of the score as it is played, without the tail of the last sound."""
        return self.ticks * 60 / self.tempo / QUARTER


def tonic_pitch(tonic: int) -> int:
    """Return the MIDI pitch of the tonic nearest middle C, 55 to 66."""
    return 60 + tonic if tonic <= 6 else 48 + tonic


def bar_choices(metre: str, tempo: int) -> tuple[int, ...]:
    """Return the numbers of bars that make a clip of proper length, never empty."""
    seconds_per_bar = METRES[metre] * 60 / tempo / QUARTER
    fitting = tuple(n for n in BARS if CLIP_SECONDS[0] <= n * seconds_per_bar <= CLIP_SECONDS[1])
    return fitting or (BARS[-1] if seconds_per_bar * BARS[-1] < CLIP_SECONDS[0] else BARS[0],)


class Grammar:
    """Knows at every step of a spelling whose turn it is and which tokens may follow.

    `slot` is what the next token is about: 0 to 8 a field of the header, 9 a chord, 10 to 13 a voice.
    """

    CHORD_SLOT, FIRST_VOICE_SLOT, SLOTS = len(HEADER), len(HEADER) + 1, len(HEADER) + 1 + MAX_VOICES
    FEATURES = (SLOTS, max(METRES.values()) + 1, BARS[-1] + 1, len(DURATIONS) + 1)  # sizes of `features`

    def __init__(self) -> None:
        self.header: dict[str, object] = {}
        self.lines: list[list[tuple[int | None, int]]] = []
        self.chords: list[tuple[int, int]] = []
        self.total = 0
        self._times: list[int] = []
        self._durations: list[int] = []  # index into DURATIONS, per voice
        self._duration_chosen = False
        self._chord_slot = 0

    @property
    def done(self) -> bool:
        """True once every line, and the chords where there are any, fill the whole score."""
        chords_end = len(self.chords) * self._chord_slot if self._chord_slot else self.total
        return self.total > 0 and min(self._now(), chords_end) >= self.total

    @property
    def slot(self) -> int:
        """What the next token is about."""
        if len(self.header) < len(HEADER):
            return len(self.header)
        if self._chord_slot and len(self.chords) * self._chord_slot <= min(self._times):
            return self.CHORD_SLOT
        return self.FIRST_VOICE_SLOT + int(np.argmin(self._times))

    def features(self) -> tuple[int, int, int, int]:
        """Return (slot, position in the bar + 1, bars left, duration + 1) of the next token; zeros in the header."""
        slot = self.slot
        if not self.total:
            return slot, 0, 0, 0
        bar = self.total // self._bars
        position, bars_left = self._now() % bar, self._bars - self._now() // bar
        duration = self._durations[slot - self.FIRST_VOICE_SLOT] + 1 if slot >= self.FIRST_VOICE_SLOT else 0
        return slot, position + 1, bars_left, duration

    def allowed(self, cadence: bool = False) -> np.ndarray:
        """Return a bool mask `[vocabulary]`; `cadence` also wants the last note and chord of the score to close it."""
        mask = np.zeros(len(VOCABULARY), bool)
        slot = self.slot
        if slot < len(HEADER):
            field = HEADER[slot]
            if field == "bars":
                for bars in bar_choices(str(self.header["metre"]), self._tempo):
                    mask[TOKEN["bars", bars]] = True
            elif field == "voices" and self.header["back"] != "none":
                mask[TOKEN["voices", 1]] = True
            else:
                mask[_FIELD_RANGE[field]] = True
            return mask
        third = 4 if 4 in MODES[str(self.header["mode"])] else 3
        if slot == self.CHORD_SLOT:
            if cadence and (len(self.chords) + 1) * self._chord_slot >= self.total:
                mask[TOKEN["chord", (0, third)]] = True
            else:
                mask[_FIRST_CHORD:] = True
            return mask
        voice = slot - self.FIRST_VOICE_SLOT
        left = self.total - self._times[voice]
        ticks = DURATIONS[self._durations[voice]]
        if not self._duration_chosen:
            for index, choice in enumerate(DURATIONS):
                mask[_FIRST_DURATION + index] = choice <= left
        if ticks <= left:
            mask[_FIRST_PITCH:_FIRST_DURATION] = True
            after_rest = bool(self.lines[voice]) and self.lines[voice][-1][0] is None
            mask[REST] = voice > 0 or (not after_rest and ticks <= LONGEST_LEAD_REST)
            if cadence and ticks == left:
                mask[REST] = False
                closing = {0, third, 7} if voice == 0 else {0} if voice == len(self.lines) - 1 else {0, third, 7}
                for step in range(LOW, HIGH + 1):
                    mask[_FIRST_PITCH + step - LOW] = step % 12 in closing
        return mask

    def push(self, token: int) -> None:
        """Append `token`. Raises `ValueError` where the grammar has no place for it."""
        kind, value = VOCABULARY[token]
        slot = self.slot
        wanted = HEADER[slot] if slot < len(HEADER) else "chord" if slot == self.CHORD_SLOT else "note"
        if self.done or (kind != wanted and not (wanted == "note" and kind in ("rest", "pitch", "duration"))):
            raise ValueError(f"token {token} ({kind}) cannot stand here: {'the end' if self.done else wanted} is due")
        if slot < len(HEADER):
            self.header[kind] = value
            if len(self.header) == len(HEADER):
                self._begin()
        elif kind == "chord":
            self.chords.append(value)  # type: ignore[arg-type]
        elif kind == "duration":
            self._durations[slot - self.FIRST_VOICE_SLOT] = token - _FIRST_DURATION
            self._duration_chosen = True
        else:
            voice = slot - self.FIRST_VOICE_SLOT
            ticks = DURATIONS[self._durations[voice]]
            if self._times[voice] + ticks > self.total:
                raise ValueError(
                    f"token {token} ({kind}) cannot stand here: {ticks} ticks run past the end of the score"
                )
            pitch = None if kind == "rest" else tonic_pitch(self._tonic) + int(value)  # type: ignore[call-overload]
            self.lines[voice].append((pitch, ticks))
            self._times[voice] += ticks
            self._duration_chosen = False

    def score(self) -> Score:
        """Return the finished score. Raises `ValueError` before `done`."""
        if not self.done:
            raise ValueError("the score is not finished: push tokens until done")
        header = {field: value for field, value in self.header.items() if field != "voices"}
        return Score(**header, voices=tuple(map(tuple, self.lines)), chords=tuple(self.chords))  # type: ignore[arg-type]

    def _begin(self) -> None:
        voices = int(self.header["voices"])  # type: ignore[call-overload]
        metre = str(self.header["metre"])
        self.total = self._bars * METRES[metre]
        self.lines = [[] for _ in range(voices)]
        self._times = [0] * voices
        self._durations = [DURATIONS.index(6)] * voices
        self._chord_slot = CHORD_SLOTS[metre] if self.header["back"] in HARMONIC_BACKS else 0

    def _now(self) -> int:
        return min(self._times, default=0)

    @property
    def _bars(self) -> int:
        return int(self.header["bars"])  # type: ignore[call-overload]

    @property
    def _tempo(self) -> int:
        return int(self.header["tempo"])  # type: ignore[call-overload]

    @property
    def _tonic(self) -> int:
        return int(self.header["tonic"])  # type: ignore[call-overload]


def encode_score(score: Score) -> np.ndarray:
    """Spell `score` as tokens int64 `[T]`, without the start token. Raises `ValueError` for what cannot be spelled."""
    values = {field: getattr(score, field) for field in HEADER if field != "voices"} | {"voices": len(score.voices)}
    tokens: list[int] = []
    grammar = Grammar()

    def put(kind: str, value: object) -> None:
        if (kind, value) not in TOKEN:
            raise ValueError(f"a score cannot be spelled with {kind} {value!r}")
        tokens.append(TOKEN[kind, value])
        grammar.push(tokens[-1])

    for field in HEADER:
        put(field, values[field])
    while not grammar.done:
        slot = grammar.slot
        if slot == Grammar.CHORD_SLOT:
            put("chord", score.chords[len(grammar.chords)])
            continue
        voice = slot - Grammar.FIRST_VOICE_SLOT
        pitch, ticks = score.voices[voice][len(grammar.lines[voice])]
        if DURATIONS[grammar.features()[3] - 1] != ticks:
            put("duration", ticks)
        put(*(("rest", None) if pitch is None else ("pitch", pitch - tonic_pitch(score.tonic))))
    return np.array(tokens, np.int64)


def decode_score(tokens: Sequence[int] | np.ndarray) -> Score:
    """Read tokens back into a score. Raises `ValueError` where they break the grammar or stop too early."""
    grammar = Grammar()
    for token in tokens:
        grammar.push(int(token))
    return grammar.score()


def step_features(tokens: np.ndarray) -> np.ndarray:
    """Return int64 `[T, 4]`: what the grammar knows before each of the `tokens`, in the order of `Grammar.features`."""
    grammar, rows = Grammar(), []
    for token in tokens:
        rows.append(grammar.features())
        grammar.push(int(token))
    return np.array(rows, np.int64)


# ----------------------------------------------------------------------------------------------------------------- MIDI


def to_midi(score: Score) -> bytes:
    """Write `score` with its backing as a standard MIDI file."""
    import pretty_midi

    midi = pretty_midi.PrettyMIDI(initial_tempo=score.tempo)
    second = 60 / score.tempo / QUARTER
    bar, beat = METRES[score.metre], BEATS[score.metre]

    def part(program: int, notes: list[tuple[int, int, int, int]], is_drum: bool = False) -> None:
        """Add (pitch, start, end, velocity) notes, times in ticks."""
        instrument = pretty_midi.Instrument(program, is_drum=is_drum)
        for pitch, start, end, velocity in notes:
            stop = max(end * second - 0.02, start * second + 0.03)
            instrument.notes.append(pretty_midi.Note(velocity, pitch, start * second, stop))
        midi.instruments.append(instrument)

    for line in score.voices:
        notes, time = [], 0
        for pitch, ticks in line:
            if pitch is not None:
                accent = 12 if time % bar == 0 else 6 if time % beat == 0 else 0
                notes.append((pitch, time, time + ticks, 82 + accent))
            time += ticks
        part(LEADS[score.lead], notes)
    for program, notes, is_drum in _backing(score):
        part(program, notes, is_drum)
    if midi.instruments:  # a silent event after the end, so that renderers let the last sound ring
        silence = pretty_midi.ControlChange(64, 0, score.seconds + TAIL_SECONDS)
        midi.instruments[0].control_changes.append(silence)
    buffer = io.BytesIO()
    midi.write(buffer)
    return buffer.getvalue()


def _backing(score: Score) -> list[tuple[int, list[tuple[int, int, int, int]], bool]]:
    """Return the parts of the backing as (program, notes, is_drum), in the manner of dance bands and parlours."""
    bar, beat, end = METRES[score.metre], BEATS[score.metre], score.ticks
    root = tonic_pitch(score.tonic) - 12
    beats = range(0, end, beat)
    if score.back == "drone":
        program = 109 if score.lead == "bagpipes" else 20  # bagpipes or reed organ
        return [(program, [(root - 12, 0, end, 58), (root - 5, 0, end, 52)], False)]
    drum = [(45 if t % bar == 0 else 50, t, t + 3, 74 if t % bar == 0 else 54) for t in beats]  # toms, bodhrán-like
    drum += [(42, t + beat // 2, t + beat // 2 + 2, 38) for t in beats]
    if score.back == "drum":
        return [(0, drum, True)]
    slot = CHORD_SLOTS[score.metre]
    bass, chords = [], []
    for index, (step, third) in enumerate(score.chords):
        start, stop = index * slot, min((index + 1) * slot, end)
        low = root + step - (12 if step > 6 else 0)  # the root between E2 and E3 or so
        triad = [low + 12, low + 12 + third, low + 19]
        bass.append((low, start, min(start + beat, stop), 72))
        if score.back == "harp":
            figure = [low, low + 7, *triad, low + 7]
            chords += [(figure[k % 6], t, stop, 58) for k, t in enumerate(range(start, stop, 6))]
        elif score.back == "strings":
            chords += [(pitch, start, stop, 46) for pitch in [low, *triad]]
        else:
            offbeats = range(start + beat, stop, beat) if stop - start > beat else (start + beat - 6,)
            chords += [(pitch, t, min(t + 8, stop), 56) for t in offbeats for pitch in triad]
    if score.back == "harp":
        return [(46, chords, False)]
    if score.back == "strings":
        return [(48, chords, False)]
    if score.back == "band":
        return [(32, bass, False), (24, chords, False), (0, drum, True)]
    return [(24 if score.back == "guitar" else 0, bass + chords, False)]


# ---------------------------------------------------------------------------------------------------------------- sound


def render(midi: bytes) -> Clip:
    """Play a MIDI file with the TimGM6mb soundfont: 24 kHz mono, peak 0.9, the end faded out."""
    import midirenderer
    import soundfile
    import soxr

    stereo, rate = soundfile.read(io.BytesIO(midirenderer.render_wave_from(_soundfont(), midi)), dtype="float32")
    samples = soxr.resample(stereo.mean(axis=1), rate, RATE)
    fade = min(int(TAIL_SECONDS * RATE), len(samples))
    samples[len(samples) - fade :] *= np.cos(np.linspace(0, np.pi / 2, fade, dtype=np.float32)) ** 2
    peak = float(np.abs(samples).max(initial=0.0))
    return Clip((samples * (0.9 / peak if peak > 0 else 0.0)).astype(np.float32), RATE, midi)


@lru_cache(maxsize=1)
def _soundfont() -> bytes:
    package = find_spec("pretty_midi")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "the package pretty_midi, which carries the soundfont, is missing: pip install pretty_midi"
        )
    return (Path(package.origin).parent / "TimGM6mb.sf2").read_bytes()
