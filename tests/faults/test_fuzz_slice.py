"""A slice of `benchmarks/fuzz.py`: some five hundred damaged files, and proof that it would notice a failure."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FUZZ = script("fuzz")


@pytest.mark.parametrize("family", ["picture", "sound", "catalog", "log"])
def test_damaged_files_are_taken_or_refused(family: str) -> None:
    readers = [name for name in FUZZ.READERS if name.startswith(family)]
    told = FUZZ.chunks(readers, 1_000_000, 1_000_000 + 130 // len(readers), seed=1)
    for name, result in told.items():
        assert not result["failures"], name
        assert result["counts"]["refused"] > 0, f"{name}: the damage is too light to say anything"
        assert result["counts"]["accepted"] + result["counts"]["refused"] == result["stop"] - result["start"]
        assert result["grown_kb"] < FUZZ.MEMORY // 1024


@pytest.mark.parametrize("name", ["picture/png", "log/jsonl"])
def test_the_same_seed_makes_the_same_files(name: str) -> None:
    assert FUZZ.input_of(name, 7, 0) == FUZZ.input_of(name, 7, 0)
    assert len({FUZZ.input_of(name, number, 0) for number in range(40)}) > 35
    assert FUZZ.input_of(name, 7, 0) != FUZZ.input_of(name, 7, 1)


BROKEN = """
import sys, types
sys.path.insert(0, {benchmarks!r})
import fuzz, os, signal, time
from pathlib import Path
def read(path):
    number = int(path.read_bytes())
    if number == 1: raise RuntimeError("not promised")
    if number == 2: os.kill(os.getpid(), signal.SIGSEGV)
    if number == 3: time.sleep(60)
    if number == 4: bytearray(4 << 30)
    if number == 5: raise ValueError("promised")
fuzz.LIMIT = 1
fuzz.reader_of = lambda name: fuzz.Reader(lambda: [b"0"], ".x", (read,), ValueError)
fuzz.input_of = lambda name, number, seed: str(number).encode()
fuzz.main()
"""


def test_failures_of_every_kind_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another exception, a crash, a hang, too much memory: each counted with its input, and the rest goes on."""
    broken = tmp_path / "broken.py"
    broken.write_text(BROKEN.format(benchmarks=str(BENCHMARKS)))
    monkeypatch.setattr(FUZZ, "__file__", str(broken))
    told = FUZZ.chunks(["picture/png"], 0, 8, seed=0)["picture/png"]
    assert told["counts"] == {"accepted": 3, "refused": 1, "failed": 4}
    why = {failure["input"]: failure["why"] for failure in told["failures"]}
    assert list(why) == [1, 2, 3, 4]
    for number, word in ((1, "RuntimeError"), (2, "SIGSEGV"), (3, "SIGALRM"), (4, "MemoryError")):
        assert word in why[number]
