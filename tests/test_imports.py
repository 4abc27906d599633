"""The direction of imports, and what must not be imported at all: read from the source, nothing is run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import chiasm

PACKAGE = Path(chiasm.__file__).parent

# The nouns know nothing of the rooms; kernels, blocks and measure serve every room.
NOUNS = ("errors", "items", "embeddings", "space", "catalog")
SHARED = ("kernels", "measure", "blocks")
# A room may import those before it.
WALK = ("encode", "learn", "adapt", "compress", "correct", "search", "perceive", "reason", "suites")
# These may import anything, and no other room may import them.
FREE = ("worlds", "doctor", "claims", "serve", "cli")
# Rooms without networks: arrays in, the same kind of arrays out, torch never named.
WITHOUT_TORCH = ("kernels", "measure", "correct", "search")
# The design puts these in such a room although they optimize through an encoder; each needs its reason here.
THROUGH_A_NETWORK = (("correct", "cross_the_gap"),)  # inverts a picture into tokens of the text encoder by gradient


def is_free(module: Path) -> bool:
    """Whether a file may import anything: the free rooms, claims and tests."""
    return module.parts[0] in FREE or module.name == "claim.py" or module.name.startswith("test_")


def room_of(dotted: str) -> str:
    """``chiasm.correct.dbnorm.dual`` -> ``correct``; names of the lazy package itself lead to where they live."""
    parts = dotted.split(".")
    if len(parts) == 1:
        return ""
    lazy = chiasm._LAZY.get(parts[1])
    return lazy.split(".")[1] if lazy else parts[1]


def imports(source: str, module: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, in whatever way it is written.

    Args:
        source: the file's text.
        module: its path below the package.
    """
    package = ("chiasm", *module.parts[:-1])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            # `from chiasm import search` names the room only in the alias.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def allowed(importer: str) -> set[str]:
    """The rooms that a room may import."""
    if importer in NOUNS:
        return set(NOUNS)
    if importer in SHARED:
        return {*NOUNS, *SHARED[: SHARED.index(importer) + 1]}
    if importer in WALK:
        return {*NOUNS, *SHARED, *WALK[: WALK.index(importer) + 1]}
    raise AssertionError(f"{importer} is no room of the design; give it its place in tests/test_imports.py")


def offenses(package: Path) -> list[str]:
    """Every import against the rules, as ``file:line: what``."""
    found = []
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package)
        if (
            module.name == "__main__.py" or module == Path("__init__.py") or is_free(module)
        ):  # the package itself only forwards names, lazily
            continue
        room = module.parts[0].removesuffix(".py")
        may = allowed(room)
        for line, name in imports(path.read_text(encoding="utf-8"), module):
            if name.split(".")[0] != "chiasm":
                if (
                    name.split(".")[0] == "torch"
                    and room in WITHOUT_TORCH
                    and module.parts[:2] not in THROUGH_A_NETWORK
                ):
                    found.append(f"{module}:{line}: {room} has no networks and must not import torch")
                continue
            target = room_of(name)
            if not target or target.startswith("__"):  # `import chiasm`, `from chiasm import __version__`
                continue
            if target not in may:
                found.append(f"{module}:{line}: {room} imports {name}, which is not above it")
            elif name.split(".")[-1].startswith("test_") or ".claim" in name:
                found.append(f"{module}:{line}: nothing imports a test or a claim ({name})")
    return found


def test_imports_go_one_way():
    assert offenses(PACKAGE) == []


def test_every_room_has_a_place():
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.rglob("*.py"))}
    assert rooms <= {*SHARED, *WALK, *FREE}
    nouns = {p.stem for p in PACKAGE.glob("[!_]*.py")}
    assert nouns == set(NOUNS)


@pytest.mark.parametrize(
    ("file", "text", "broken"),
    [
        ("encode/x.py", "from chiasm.search import Store", "encode imports chiasm.search.Store"),
        ("encode/x.py", "def f():\n    import chiasm.search.store\n", "x.py:2: encode imports chiasm.search.store"),
        ("encode/x.py", "from chiasm import search", "encode imports chiasm.search"),
        ("encode/x.py", "from chiasm import Store", "encode imports chiasm.Store"),
        ("encode/x.py", "from ..search.store import Store", "encode imports chiasm.search.store.Store"),
        ("encode/deep/x.py", "from ... import search", "encode imports chiasm.search"),
        (
            "encode/x.py",
            "from importlib import import_module\nimport_module('chiasm.search')",
            "encode imports chiasm.search",
        ),
        (
            "encode/x.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from chiasm.serve import run",
            "encode imports chiasm.serve.run",
        ),
        ("search/x.py", "from chiasm.reason import rag", "search imports chiasm.reason.rag"),
        ("search/x.py", "from chiasm.cli import main", "search imports chiasm.cli.main"),
        ("learn/x.py", "from chiasm.correct.bias import ItemBias", "learn imports chiasm.correct.bias.ItemBias"),
        ("kernels/x.py", "from chiasm.encode import read", "kernels imports chiasm.encode.read"),
        ("kernels/x.py", "from chiasm.blocks import heads", "kernels imports chiasm.blocks.heads"),
        ("items.py", "from chiasm.kernels.topk import topk_inner", "items imports chiasm.kernels.topk.topk_inner"),
        ("correct/a/x.py", "from chiasm.correct.a import claim", "nothing imports a test or a claim"),
        ("correct/x.py", "import torch", "must not import torch"),
        ("kernels/x.py", "def f():\n    from torch.nn import functional", "must not import torch"),
        ("correct/cross_the_gap/x.py", "import torch", None),
        ("correct/x.py", "from chiasm.correct.bias import ItemBias\nfrom chiasm.encode import load", None),
        (
            "search/x.py",
            "from chiasm import __version__\nfrom chiasm.measure import ranking\nfrom .store import Store",
            None,
        ),
        ("correct/a/claim.py", "from chiasm.claims import Claim\nimport torch", None),
        ("correct/a/test_a.py", "from chiasm.serve import run", None),
        ("serve/x.py", "from chiasm.search import Store", None),
    ],
)
def test_planted_imports_are_judged(tmp_path: Path, file: str, text: str, broken: str | None):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    found = offenses(tmp_path)
    if broken is None:
        assert found == []
    else:
        assert len(found) == 1
        assert broken in found[0]


def test_an_unknown_room_is_refused(tmp_path: Path):
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "x.py").write_text("")
    with pytest.raises(AssertionError, match="utils is no room"):
        offenses(tmp_path)


# ---- importing the package and asking for help must stay cheap

HEAVY = (
    "torch",
    "numpy",
    "lancedb",
    "pyarrow",
    "transformers",
    "sentence_transformers",
    "sklearn",
    "scipy",
    "PIL",
    "av",
    "fastapi",
)


def loaded_after(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has imported after running the code."""
    ask = f"import sys\n{code}\nprint('LOADED', *[n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "code",
    [
        "import chiasm",
        "import chiasm.catalog; chiasm.catalog.methods()",
        "from chiasm.cli import main; assert main(['--help']) == 0",
        "from chiasm.cli import main; assert main(['search', '-h']) == 0",
        "from chiasm.cli import main; assert main(['--version']) == 0",
        "from chiasm.cli import main; assert main(['methods', '--json']) == 0",
        "from chiasm.cli import main; assert main(['search', 'x', '--store', '/no/such/store']) == 2",
    ],
)
def test_light_commands_load_nothing_heavy(code: str):
    assert loaded_after(code) == set()


def test_the_check_for_heavy_packages_sees_one():
    assert "numpy" in loaded_after("import numpy")


def test_help_takes_little_cpu():
    resource = pytest.importorskip("resource")

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "chiasm", "--help"], capture_output=True, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    seconds()  # the first run may compile bytecode
    # CPU time of the best of five: other processes on the machine slow it down, nothing speeds it up.
    assert min(seconds() for _ in range(5)) <= 0.3
