"""Write `constraints.txt`: the versions of this environment, for the direct dependencies and all they pull in.

Run `python tools/pin.py` in an environment in which the tests pass, then `make test` in a fresh one. The CUDA libraries
are left out, because torch itself says which of them its build needs.
"""

import importlib.metadata as metadata
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
NOT_PINNED = re.compile(r"^(nvidia-.*|cuda-.*|triton|pip|setuptools|wheel|mmrec)$")
TWINS = {"faiss-gpu": "faiss-cpu", "faiss-cpu": "faiss-gpu"}  # one release, two names, only one of them installed


def direct() -> list[Requirement]:
    """The requirements of `pyproject.toml`, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    return [Requirement(line) for line in lines]


def installed(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        if name not in TWINS:
            raise
        return metadata.distribution(TWINS[name])


def closure(requirements: list[Requirement]) -> dict[str, str]:
    """Name -> installed version of everything the requirements need on this platform."""
    pins: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(r, "") for r in requirements]
    while queue:
        requirement, wanted_by_extra = queue.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": wanted_by_extra}):
            continue
        if NOT_PINNED.match(name):
            continue
        pins[name] = Version(installed(name).version).public
        for extra in {"", *requirement.extras} - {e for n, e in seen if n == name}:
            seen.add((name, extra))
            needs = installed(name).requires or []
            queue += [(Requirement(line), extra) for line in needs]
    return pins


def check_torch_pair() -> None:
    """torchvision only works with the torch it was built for; refuse to pin a pair that does not match."""
    needed = next(r for r in map(Requirement, metadata.requires("torchvision") or []) if r.name == "torch")
    if not needed.specifier.contains(metadata.version("torch"), prereleases=True):
        raise SystemExit(
            f"torchvision needs {needed} but torch {metadata.version('torch')} is installed; reinstall both"
        )


if __name__ == "__main__":
    check_torch_pair()
    pins = closure(direct())
    lines = [f"{name}=={version}" for name, version in sorted(pins.items())]
    head = "# Written by `python tools/pin.py`: versions the tests passed with. Edit pyproject.toml, not this file."
    (ROOT / "constraints.txt").write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    print(f"constraints.txt: {len(lines)} versions")
