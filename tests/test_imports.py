"""Imports: modules know only what lies below them, none waits for another, and the package itself is light."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mlx_pixword as pw

PACKAGE = Path(pw.__file__).parent
ROOT = "__init__"  # the package itself, a window on modules of all levels but the command lines
ORDER = (  # from the ground up; a module may import those before it, and those of its own starred group
    "errors", "files", "settings", "cli", "_blas", "chips", "plan_table",
    "colors", "windows", "images", "batch", "rotary", "elementary", "tensors", "args", "costs", "footprint",
    "kernels.*", "model", "losses",
    "tokenizer", "processor",
    "data.*",
    "sampling", "cache", "likelihood", "generation", "rows", "numpy_rows", "stack", "decoding", "drawing",
    "hub",
    "training.settings", "config", "training.*",
    ROOT,
    "draw_command", "pretrain", "generate", "evaluate", "convert", "doctor", "plan",
)  # fmt: skip
HEAVY = ("mlx", "mlx.core", "mlx_lm", "transformers", "matplotlib", "numpy", "PIL", "tokenizers", "sentencepiece")

Sources = Mapping[str, str]  # a module's name inside the package, and its text


def read_sources() -> dict[str, str]:
    return {name_of(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def name_of(path: Path) -> str:
    """``data/loader.py`` is ``data.loader``, ``data/__init__.py`` is ``data.__init__``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def level(module: str) -> int:
    """Place in the order; a name counts before the starred group that holds it. -1 if there is none."""
    group = module.split(".")[0] + ".*"
    return next((ORDER.index(name) for name in (module, group) if name in ORDER), -1)


def find(dotted: str, sources: Sources) -> str | None:
    """The module of a dotted name inside the package; a name inside a module is that module."""
    if dotted in sources:
        return dotted
    package = f"{dotted}.{ROOT}".lstrip(".")
    return package if package in sources else None


@cache
def nodes(text: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(text)))


def imports(module: str, sources: Sources) -> Iterator[str]:
    """Modules of the package that a module imports, wherever in its text, for types alone too."""
    for node in nodes(sources[module]):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names if alias.name.split(".")[0] == pw.__name__]
            yield from filter(None, (find(name.partition(".")[2], sources) for name in dotted))
        elif isinstance(node, ast.ImportFrom):
            base = [pw.__name__, *module.split(".")][: -node.level] if node.level else []
            parts = [*base, *(node.module or "").split(".")] if node.module else base
            if parts[0] == pw.__name__:
                inside = ".".join(parts[1:])
                names = [f"{inside}.{alias.name}".lstrip(".") for alias in node.names]
                yield from filter(None, (find(name, sources) or find(inside, sources) for name in names))


def hidden(module: str, sources: Sources) -> list[str]:
    """Imports by name that may reach into the package, where the checker cannot follow; the package's own are known."""
    calls = [node for node in nodes(sources[module]) if isinstance(node, ast.Call) and module != ROOT]
    named = [call for call in calls if ast.unparse(call.func).split(".")[-1] in ("import_module", "__import__")]
    texts = [ast.unparse(call.args[0]) for call in named]
    return [text for text in texts if text[0] not in "'\"" or text[1] == "." or text[1:].startswith(pw.__name__)]


def violations(sources: Sources) -> list[str]:
    """Upward imports, modules without a place, and the first circle, a line each."""
    graph = {module: sorted({*imports(module, sources)} - {module}) for module in sources}
    found = [f"{module} has no place in ORDER" for module in sources if level(module) < 0]
    found += [f"{module} imports {text} by name" for module in sources for text in hidden(module, sources)]
    for module, imported in graph.items():
        here = level(module)
        shared = ORDER[here].endswith(".*")
        wrong = [other for other in imported if level(other) > here or (level(other) == here and not shared)]
        found += [f"{module} imports {other}" for other in wrong]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("circle: " + " -> ".join(reversed(error.args[1])))
    return found


SOURCES = read_sources()


# --- the order --------------------------------------------------------------------------------------------------------


def test_imports_go_down_and_never_in_circles() -> None:
    assert violations(SOURCES) == []


def test_the_checker_sees_the_imports_there_are() -> None:
    assert {"args", "batch", "colors", "rotary"} <= set(imports("model", SOURCES))
    assert {"config", "training.run", "training.step"} <= set(imports("training.trainer", SOURCES))
    assert {"data.loader", "tokenizer"} <= set(imports("training.run", SOURCES))
    assert "training.trainer" in set(imports("pretrain", SOURCES))  # inside a function
    assert set(imports("_blas", SOURCES)) == set() == set(imports("errors", SOURCES))


PLANTED = [
    ("colors", "from .model import ModelArgs", "colors imports model"),
    ("colors", "from . import model", "colors imports model"),
    ("colors", "import mlx_pixword.model", "colors imports model"),
    ("colors", "import mlx_pixword.data.loader as x", "colors imports data.loader"),
    ("colors", "from mlx_pixword import model", "colors imports model"),
    ("colors", "from mlx_pixword.model import *", "colors imports model"),
    ("colors", "from mlx_pixword.data import loader", "colors imports data.loader"),
    ("colors", "from . import __version__", "colors imports __init__"),
    ("colors", "def f():\n    from .windows import fit_size", "colors imports windows"),
    (
        "colors",
        "class A:\n    def f(self):\n        if 1:\n            from .data import loader",
        "colors imports data.loader",
    ),
    (
        "colors",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .batch import Batch",
        "colors imports batch",
    ),
    ("data.base", "from ..hub import load", "data.base imports hub"),
    ("data.base", "from .. import hub", "data.base imports hub"),
    ("training.settings", "from ..config import RunConfig", "training.settings imports config"),
    ("training.settings", "from .trainer import pretrain", "training.settings imports training.trainer"),
    ("hub", "from .doctor import main", "hub imports doctor"),
    ("generate", "from .evaluate import main", "generate imports evaluate"),
    ("__init__", "from .doctor import main", "__init__ imports doctor"),
]


@pytest.mark.parametrize(("module", "text", "found"), PLANTED)
def test_a_planted_upward_import_is_found(module: str, text: str, found: str) -> None:
    assert found in violations(SOURCES | {module: f"{SOURCES[module]}\n{text}\n"})


def test_a_planted_circle_is_found() -> None:
    circle = violations(SOURCES | {"data.base": SOURCES["data.base"] + "\ndef f():\n    from .loader import Loader\n"})
    assert len(circle) == 1 and circle[0].startswith("circle: ")
    assert "data.base" in circle[0] and "data.loader" in circle[0]


def test_a_new_module_needs_a_place() -> None:
    assert violations(SOURCES | {"extra": ""}) == ["extra has no place in ORDER"]
    assert violations(SOURCES | {"data.extra": "from .loader import Loader"}) == []


@pytest.mark.parametrize(
    "call", ["importlib.import_module('.model')", "__import__('mlx_pixword.model')", "__import__(x)"]
)
def test_an_import_by_name_is_found(call: str) -> None:
    (found,) = violations(SOURCES | {"colors": call})
    assert found.startswith("colors imports ") and found.endswith(" by name")
    assert violations(SOURCES | {"colors": "importlib.import_module('torch')"}) == []


# --- the package itself -----------------------------------------------------------------------------------------------


def test_names_lie_where_the_package_says() -> None:
    for node in nodes(SOURCES[ROOT]):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            typed = {
                a.name: child.module for child in node.body if isinstance(child, ast.ImportFrom) for a in child.names
            }
            assert typed == pw._HOME
            break
    else:
        raise AssertionError("no names for type checkers")
    assert set(pw.__all__) == set(pw._HOME) <= set(dir(pw))
    for name in pw.__all__:
        assert getattr(pw, name).__name__ == name


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="'mlx_pixword' has no attribute 'nothing'"):
        pw.nothing  # noqa: B018


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=PACKAGE.parent, check=True, capture_output=True, text=True).stdout


def test_the_package_imports_nothing_heavy() -> None:
    loaded = python("import sys, mlx_pixword; print(*sys.modules)").split()
    assert "mlx_pixword" in loaded and not {*HEAVY} & set(loaded)
    own = {name for name in loaded if name.startswith("mlx_pixword.")}
    assert own == {"mlx_pixword._blas"}


def test_the_package_imports_in_a_fifth_of_a_second() -> None:
    code = "import time; start = time.perf_counter(); import mlx_pixword; print(time.perf_counter() - start)"
    assert any(float(python(code)) < 0.2 for _ in range(10))  # one quiet moment of a busy machine is enough
