"""What `docs/security.md` claims: each claim names the test that shows it, and those that had none are here."""

import ast
import json
import re
import socket
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from kills import Warm

from conftest import Small
from mmrec.catalog import Catalog
from mmrec.config import Recipe
from mmrec.errors import MmrecError

ROOT = Path(__file__).parents[2]
PACKAGES = ("mmrec", "encoders", "retrieval", "diffusion", "apps")
EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def sources() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


def test_every_claim_names_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) > 20
    for file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (file, test)


def test_no_code_comes_out_of_a_file() -> None:
    """No pickle, no eval, no shell; torch and numpy read arrays only; YAML makes no objects; nobody trusts a hub."""
    forbidden = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "torch.hub.load"}
    seen = {"torch.load": 0, "np.load": 0}
    for file in sources():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {"pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"} & imported, file
        for name, call in calls(tree):
            assert name not in forbidden, f"{file}:{call.lineno}"
            assert keyword(call, "shell") in (None, "False"), f"{file}:{call.lineno}"
            assert keyword(call, "trust_remote_code") in (None, "False"), f"{file}:{call.lineno}"
            assert keyword(call, "allow_pickle") in (None, "False"), f"{file}:{call.lineno}"
            if name == "torch.load":
                assert keyword(call, "weights_only") == "True", f"{file}:{call.lineno}"
            elif name in ("np.load", "numpy.load"):
                assert keyword(call, "allow_pickle") == "False", f"{file}:{call.lineno}"
            elif name.split(".")[0].startswith("Auto") and name.endswith(".from_pretrained"):
                assert keyword(call, "trust_remote_code") == "False", f"{file}:{call.lineno}"
            seen[name] = seen.get(name, 0) + 1
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"""["']trust_remote_code["']: *True""", text), file
    assert seen["torch.load"]
    assert seen["np.load"], "the search finds nothing because it looks for the wrong thing"


EVIL_MODEL = """
from pathlib import Path
Path({flag!r}).write_text("it ran")
from transformers import ClapConfig, ClapModel, RobertaTokenizer
class EvilConfig(ClapConfig): pass
class EvilModel(ClapModel): pass
class EvilTokenizer(RobertaTokenizer): pass
"""


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_a_model_that_brings_code_does_not_run_it(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder as from a hub, whose configuration asks for its own classes: they are not imported, never mind run."""
    from encoders.registry import load_encoder

    folder, flag = tmp_path / "evil", tmp_path / "flag"
    folder.mkdir()
    (folder / "modeling_evil.py").write_text(EVIL_MODEL.format(flag=str(flag)))
    code = {
        "AutoConfig": "modeling_evil.EvilConfig",
        "AutoModel": "modeling_evil.EvilModel",
        "AutoTokenizer": ["modeling_evil.EvilTokenizer", None],
        "AutoFeatureExtractor": "modeling_evil.EvilModel",
    }
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = {
        "model_type": "clap",
        "text_config": {"model_type": "clap_text_model", "vocab_size": 50, **small},
        "audio_config": {"model_type": "clap_audio_model", "patch_embeds_hidden_size": 8, "hidden_size": 64,
                         "depths": [1, 1], "num_attention_heads": [1, 1], "num_hidden_layers": 2, "spec_size": 64},
    }  # fmt: skip
    files = {"config.json": config, "tokenizer_config.json": {}, "preprocessor_config.json": {}}
    files[where]["auto_map"] = code
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # a person who would say yes is not even asked
    from transformers import AutoModel, ClapConfig, ClapModel

    ClapModel(ClapConfig(**{k: v for k, v in config.items() if k != "auto_map"})).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").rename(folder / "model.safetensors")
    with suppress(ValueError, OSError, TypeError, ImportError, KeyError, AttributeError):
        load_encoder(f"clap:{folder}")  # it may be refused, or loaded without its code
    assert not flag.exists(), "code of the model was run"
    if where == "config.json":
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        with suppress(Exception):
            AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert flag.exists(), "who trusts it runs it: otherwise this would be no attack"


def test_a_pipeline_that_brings_code_does_not_run_it(tmp_path: Path) -> None:
    """The same for a folder of diffusers whose index names a class in a file of its own."""
    from diffusion.decoders.kandinsky import KandinskyDecoder

    pipeline, flag = tmp_path / "pipeline", tmp_path / "flag"
    pipeline.mkdir()
    (pipeline / "pipeline.py").write_text(EVIL_MODEL.format(flag=str(flag)))
    (pipeline / "unet").mkdir()
    (pipeline / "unet" / "evil.py").write_text(EVIL_MODEL.format(flag=str(flag)))
    index = {"_class_name": ["pipeline", "EvilModel"], "_diffusers_version": "0.42.0", "unet": ["evil", "EvilModel"]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    decoder = KandinskyDecoder.from_pretrained(str(pipeline))
    with pytest.raises((ValueError, OSError, TypeError, ImportError, KeyError, AttributeError)):
        decoder.decode(np.zeros((1, decoder.dim), np.float32), seed=0)
    assert not flag.exists(), "code of the pipeline was run"


def test_arrays_that_hold_objects_are_not_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return Path.write_text, (tmp_path / "flag", "it ran")

    from retrieval.index import VectorIndex

    (tmp_path / "index").mkdir()
    VectorIndex.build(np.eye(4, dtype=np.float32)).save(tmp_path / "index")
    np.save(tmp_path / "index" / "spacing.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"(?i)pickle"):
        VectorIndex.load(tmp_path / "index")
    assert not (tmp_path / "flag").exists()


def test_a_recipe_makes_no_objects(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'flag'}]\n")
    with pytest.raises(MmrecError, match="cannot read the recipe"):
        Recipe.load(recipe)
    assert not (tmp_path / "flag").exists()


@pytest.fixture(scope="module")
def hostile(small: Small, tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Path:
    """A workspace whose every title is an attack on whoever shows it."""
    folder = tmp_path_factory.mktemp("hostile")
    titles = [EVIL, "[/bold] [red]", "=HYPERLINK(1)", "\x1b[31mred\x1b]0;title\x07", '" onload="x']
    titles += [f"plain {i}" for i in range(12)]
    rows = [{"id": f"item{i}", "title": t, "text": f"words {i}", "credit": EVIL} for i, t in enumerate(titles)]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    warm.finish(["ingest", str(folder / "items.jsonl"), "-w", str(folder / "workspace")])
    for command in (["embed"], ["tokenize"], ["index", "build"]):
        warm.finish([*command, "-w", str(folder / "workspace")])
    return folder / "workspace"


def test_titles_are_text_to_the_terminal(hostile: Path, warm: Warm) -> None:
    """Neither rich's markup nor the terminal's escape codes get through."""
    said = warm.finish(["search", "words", "-k", "20", "-w", str(hostile)]).said
    assert "\x1b" not in said
    assert "[/bold] [red]" in said
    assert "<script>" in said, "a terminal runs no scripts; the title is shown as it is"


def test_titles_are_text_to_the_browser(hostile: Path) -> None:
    """Cards, strips and the foot of the page escape what the catalog says."""
    from streamlit.testing.v1 import AppTest

    def page(root: str) -> None:
        from apps.cards import card, item_of, strip
        from apps.session import Person
        from mmrec import Recommender

        now = Recommender.load(root)
        for item_id in now.catalog.item_ids:
            card(item_of(now, item_id), Person("guest-calm-crane-000000", None, [], []), "test")
        strip(now, now.catalog.item_ids)

    shown = AppTest.from_function(page, args=(str(hostile),), default_timeout=60).run()
    assert not shown.exception
    html = "".join(block.proto.body for block in shown.get("html"))
    assert "&lt;script&gt;" in html
    assert "<script" not in html
    assert "onerror=alert(1)>" not in html
    assert '" onload="x' not in html


def test_the_report_escapes_what_it_is_told(small: Small) -> None:
    import pandas as pd

    from mmrec.evaluation.report import About, render_html

    frame = pd.read_parquet(small.root / "evaluation" / "metrics.parquet")
    frame["recommender"] = frame["recommender"].where(frame["recommender"] != "popularity", EVIL)
    page = render_html(frame, About(dataset=EVIL, split="leave_one_out", command=EVIL))
    assert EVIL not in page
    assert '<script>alert("x")' not in page


def test_ids_of_people_make_no_paths(small: Small, tmp_path: Path) -> None:
    from mmrec.generation import _folder_name

    names = [
        _folder_name(user) for user in ("../../etc/passwd", "/root", "..", ".", "", "a/b", "a\0b", "ok", "x" * 500)
    ]
    assert all(re.fullmatch(r"[\w-]+", name) and len(name) < 100 for name in names)
    assert len(set(names)) == len(names)


def test_the_app_listens_on_this_machine_only(hostile: Path) -> None:
    import importlib.util
    import sys
    import urllib.request

    spec = importlib.util.spec_from_file_location("benchmark_app_load", ROOT / "benchmarks" / "app_load.py")
    assert spec is not None
    assert spec.loader is not None
    load = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = load
    spec.loader.exec_module(load)
    with load.server(hostile) as (port, _):
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30).status == 200
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line]
        listening += [line.split()[1] for line in Path("/proc/net/tcp6").read_text().splitlines() if " 0A " in line]
        mine = [address for address in listening if int(address.rsplit(":", 1)[1], 16) == port]
    assert mine == [f"{socket.inet_aton('127.0.0.1')[::-1].hex().upper()}:{port:04X}"]


def test_titles_are_kept_as_they_are(hostile: Path) -> None:
    catalog = Catalog.load(hostile / "catalog")
    assert catalog.titles[2] == "=HYPERLINK(1)", "kept as it is: no CSV for spreadsheets is ever written"
