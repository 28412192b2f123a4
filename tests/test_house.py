"""The house rules, kept by machine: who imports whom, clean code, one list of dependencies, a quick start."""

import importlib.util
import json
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ROOMS = ("mmrec", "encoders", "retrieval", "diffusion", "apps")
HEAVY = ("torch", "torchvision", "transformers", "diffusers", "open_clip", "faiss", "librosa")
HEAVY += ("sklearn", "pandas", "plotly", "streamlit")
QUICK = 0.5  # seconds of processor time, which does not depend on what else the machine is doing

HELP = """
import sys
sys.argv = ["mmrec", "--help"]
from mmrec.cli import main
try:
    main()
except SystemExit:
    pass
"""

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def python(*arguments, timeout=280):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def by_name(lines):
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def environment_lines():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    return environment, next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))


def test_imports_run_one_way():
    done = python("-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def test_ruff_finds_nothing():
    for command in (["check"], ["format", "--check"]):
        done = python("-m", "ruff", *command, "--no-cache", ".")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_mypy_finds_nothing():
    done = python("-m", "mypy", timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_types_are_published(room):
    assert (ROOT / room / "py.typed").exists()


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_is_pickled(room):
    for path in (ROOT / room).rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) (pickle|cPickle|dill|cloudpickle|joblib|shelve)\b", code, re.M), path
        assert "allow_pickle=True" not in code, path
        for call in re.findall(r"torch\.load\(.*?\)", code, re.S):
            assert "weights_only=True" in call, f"{path}: {call}"


def test_faiss_comes_as_two_extras_never_both():
    assert not any("faiss" in line for line in PROJECT["dependencies"])
    where = {extra: {name for name in by_name(lines) if "faiss" in name} for extra, lines in EXTRAS.items()}
    assert {extra: names for extra, names in where.items() if names} == {"cpu": {"faiss-cpu"}, "gpu": {"faiss-gpu"}}
    assert EXTRAS["cpu"][0].replace("cpu", "gpu") == EXTRAS["gpu"][0]


def test_conda_environment_says_the_same_as_pyproject():
    environment, pip = environment_lines()
    assert "conda-forge" in environment["channels"]
    assert {"pip", "python=3.11"} <= {d for d in environment["dependencies"] if isinstance(d, str)}
    assert pip[0] == "-c constraints.txt"
    assert pip[-1] == "-e ."
    expected = by_name([*PROJECT["dependencies"], *EXTRAS["gpu"]])
    assert by_name(pip[1:-1]) == expected
    mission = {"torch", "diffusers", "open-clip-torch", "accelerate", "faiss-gpu", "librosa", "streamlit"}
    assert mission <= expected.keys()


def test_constraints_pin_what_pyproject_asks_for():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = by_name(line for line in text.splitlines() if not line.startswith("#"))
    direct = by_name([*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)])
    assert direct.keys() - pins.keys() == set(), "run python tools/pin.py"
    for name, pin in pins.items():
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        if name in direct:
            assert direct[name].specifier.contains(specifier.version), f"{pin} is not {direct[name]}"
    assert not [name for name in pins if name.startswith(("nvidia", "cuda", "triton"))]
    assert pins["faiss-cpu"].specifier == pins["faiss-gpu"].specifier


def test_torch_and_torchvision_are_pinned_as_a_pair():
    from importlib import metadata

    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^(torch|torchvision)==(.+)$", text, re.M))
    if metadata.version("torchvision").partition("+")[0] != pinned["torchvision"]:
        pytest.skip("another torchvision is installed, so what the pinned one needs is not known here")
    needed = next(r for r in map(Requirement, metadata.requires("torchvision")) if r.name == "torch")
    assert needed.specifier.contains(pinned["torch"], prereleases=True)


def test_pinning_again_keeps_torch_and_leaves_cuda_out(monkeypatch):
    spec = importlib.util.spec_from_file_location("pin", ROOT / "tools/pin.py")
    pin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pin)
    pin.check_torch_pair()
    pins = pin.closure(pin.direct())
    assert {"torch", "torchvision", "faiss-cpu", "faiss-gpu", "typing-extensions"} <= pins.keys()
    assert not [name for name in pins if name.startswith(("nvidia", "cuda", "triton", "mmrec"))]
    monkeypatch.setattr(pin.metadata, "version", lambda name: "0.0.1" if name == "torch" else "1")
    with pytest.raises(SystemExit, match="reinstall both"):
        pin.check_torch_pair()


def heavy_after(code):
    done = python("-c", f"{code}\nimport json, sys\nprint(json.dumps([m for m in {HEAVY} if m in sys.modules]))")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def quickest(command, runs=20):  # a shared machine is slow for seconds at a time
    """Least processor seconds of several runs."""
    best = float("inf")
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


def test_import_is_quick_and_light():
    assert heavy_after("import mmrec") == []
    assert heavy_after("import plotly") == ["plotly"]  # the check itself sees what it looks for
    assert quickest([sys.executable, "-c", "import mmrec"]) < QUICK


def test_help_is_quick_and_light():
    assert heavy_after(HELP) == []
    command = Path(sys.executable).with_name("mmrec")
    shown = subprocess.run([command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert "recommend" in shown.stdout
    assert quickest([command, "--help"]) < QUICK
