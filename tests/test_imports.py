"""Imports: modules know only what lies below them, none waits for another, and the package itself is light."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mlx_pixword as pw
from mlx_pixword.__main__ import COMMANDS  # may import every folder

PACKAGE = Path(pw.__file__).parent
ROOT = "__init__"  # the package itself, a window on all folders
ORDER = (  # downwards: a folder imports from those before it; folders of one line know nothing of each other
    "common", "pixels", "ops", "model", "config", "inputs", "data | weights | inference", "evaluation", "planning",
    "training", "apps",
)  # fmt: skip
HEAVY = ("mlx", "mlx.core", "mlx_lm", "transformers", "matplotlib", "numpy", "PIL", "tokenizers", "sentencepiece")

Sources = Mapping[str, str]  # a module's name inside the package, and its text


def read_sources() -> dict[str, str]:
    return {name_of(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def name_of(path: Path) -> str:
    """``data/loader.py`` is ``data.loader``, ``data/__init__.py`` is ``data.__init__``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def level(module: str) -> int:
    """Place of a module's folder in the order; commands come last, and -1 is no place at all."""
    folder, inside, _ = module.partition(".")
    if not inside:
        return len(ORDER) if folder in COMMANDS or folder in (ROOT, "__main__") else -1
    return next((place for place, line in enumerate(ORDER) if folder in line.split(" | ")), -1)


def folder_of(module: str) -> str:
    """``ops.dispatch`` for ``ops.dispatch.load`` and for the folder's own ``__init__``; "" for commands."""
    return module.rpartition(".")[0]


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
    calls = [node for node in nodes(sources[module]) if isinstance(node, ast.Call) and module not in (ROOT, "__main__")]
    named = [call for call in calls if ast.unparse(call.func).split(".")[-1] in ("import_module", "__import__")]
    texts = [ast.unparse(call.args[0]) for call in named]
    return [text for text in texts if text[0] not in "'\"" or text[1] == "." or text[1:].startswith(pw.__name__)]


def is_upward(module: str, other: str) -> bool:
    """Whether an import goes to a later folder, to one beside it, or to a command; commands may import the package."""
    here, there = level(module), level(other)
    if there == len(ORDER):
        return here < there if other == ROOT else module != "__main__"
    beside = here == there and module.split(".")[0] != other.split(".")[0]
    return there > here or beside


def circles(graph: Mapping[str, Iterable[str]], what: str) -> list[str]:
    """The first circle of a graph, as a line."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [f"circle of {what}: " + " -> ".join(reversed(error.args[1]))]
    return []


def violations(sources: Sources) -> list[str]:
    """Upward imports, modules without a place, and the first circles of files and of folders, a line each."""
    graph = {module: sorted({*imports(module, sources)} - {module}) for module in sources}
    found = [f"{module} has no place in ORDER" for module in sources if level(module) < 0]
    found += [f"{module} imports {text} by name" for module in sources for text in hidden(module, sources)]
    found += [f"{module} imports {other}" for module in graph for other in graph[module] if is_upward(module, other)]
    folders: dict[str, set[str]] = {}
    for module, imported in graph.items():
        here = folder_of(module)
        folders.setdefault(here, set()).update(folder_of(other) for other in imported if folder_of(other) != here)
    return found + circles(graph, "files") + circles(folders, "folders")


SOURCES = read_sources()


# --- the order --------------------------------------------------------------------------------------------------------


def test_imports_go_down_and_never_in_circles() -> None:
    assert violations(SOURCES) == []


def test_the_checker_sees_the_imports_there_are() -> None:
    assert {"model.args", "model.batch", "pixels.colors", "ops.rotary"} <= set(imports("model.network", SOURCES))
    assert {"config.run", "training.setup", "training.step"} <= set(imports("training.trainer", SOURCES))
    assert {"data.loader", "inputs.tokenizer"} <= set(imports("training.setup", SOURCES))
    assert "training.trainer" in set(imports("pretrain", SOURCES))  # inside a function
    assert set(imports("common.blas", SOURCES)) == {"common.openblas"}  # inside a function
    assert set(imports("common.openblas", SOURCES)) == set() == set(imports("common.errors", SOURCES))


def test_folders_say_what_lives_there_and_define_nothing() -> None:
    folders = [module for module in SOURCES if module.endswith(f".{ROOT}")]
    assert {name.split(".")[0] for name in folders} == {name.split(".")[0] for name in SOURCES if "." in name}
    for name in folders:
        (only,) = ast.parse(SOURCES[name]).body
        said = ast.get_docstring(ast.parse(SOURCES[name]))
        assert isinstance(only, ast.Expr) and said and "Start with" in said and said.count("\n") <= 3, name


PLANTED = [
    ("pixels.colors", "from ..model.network import Layer", "pixels.colors imports model.network"),
    ("pixels.colors", "from ..model import network", "pixels.colors imports model.network"),
    ("pixels.colors", "import mlx_pixword.model.network", "pixels.colors imports model.network"),
    ("pixels.colors", "import mlx_pixword.data.loader as x", "pixels.colors imports data.loader"),
    ("pixels.colors", "from mlx_pixword import model", "pixels.colors imports model.__init__"),
    ("pixels.colors", "from mlx_pixword.model.network import *", "pixels.colors imports model.network"),
    ("pixels.colors", "from mlx_pixword.data import loader", "pixels.colors imports data.loader"),
    ("pixels.colors", "from .. import __version__", "pixels.colors imports __init__"),
    ("common.errors", "def f():\n    from ..pixels.windows import fit_size", "common.errors imports pixels.windows"),
    (
        "pixels.colors",
        "class A:\n    def f(self):\n        if 1:\n            from ..data import loader",
        "pixels.colors imports data.loader",
    ),
    (
        "pixels.colors",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..model.batch import Batch",
        "pixels.colors imports model.batch",
    ),
    ("data.base", "from ..weights.directory import load", "data.base imports weights.directory"),  # beside it
    ("inference.words", "from ..data import loader", "inference.words imports data.loader"),
    ("config.train", "from ..training.trainer import pretrain", "config.train imports training.trainer"),
    ("weights.directory", "from ..doctor import main", "weights.directory imports doctor"),
    ("generate", "from .evaluate import main", "generate imports evaluate"),
    ("__init__", "from .doctor import main", "__init__ imports doctor"),
]


@pytest.mark.parametrize(("module", "text", "found"), PLANTED)
def test_a_planted_upward_import_is_found(module: str, text: str, found: str) -> None:
    assert found in violations(SOURCES | {module: f"{SOURCES[module]}\n{text}\n"})


def test_a_planted_circle_of_files_is_found() -> None:
    circle = violations(SOURCES | {"data.base": SOURCES["data.base"] + "\ndef f():\n    from .loader import Loader\n"})
    assert len(circle) == 1 and circle[0].startswith("circle of files: ")
    assert "data.base" in circle[0] and "data.loader" in circle[0]


def test_a_planted_circle_of_folders_is_found() -> None:
    """Two folders may know each other without a circle of files: `ops.dispatch` looks back at `ops`."""
    circle = violations(
        SOURCES | {"ops.dispatch.load": SOURCES["ops.dispatch.load"] + "\nfrom ..rotary import rotate\n"}
    )
    assert len(circle) == 1 and circle[0].startswith("circle of folders: ")
    assert "ops" in circle[0] and "ops.dispatch" in circle[0]


def test_a_new_module_needs_a_place() -> None:
    assert violations(SOURCES | {"extra": ""}) == ["extra has no place in ORDER"]
    assert violations(SOURCES | {"extra.inner": ""}) == ["extra.inner has no place in ORDER"]
    assert violations(SOURCES | {"data.extra": "from .loader import Loader"}) == []


@pytest.mark.parametrize(
    "call", ["importlib.import_module('.model')", "__import__('mlx_pixword.model.network')", "__import__(x)"]
)
def test_an_import_by_name_is_found(call: str) -> None:
    (found,) = violations(SOURCES | {"pixels.colors": call})
    assert found.startswith("pixels.colors imports ") and found.endswith(" by name")
    assert violations(SOURCES | {"pixels.colors": "importlib.import_module('torch')"}) == []


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


@pytest.mark.parametrize("name", pw._MOVED)
def test_modules_are_found_by_their_old_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"mlx_pixword.{name}", raising=False)
    with pytest.warns(DeprecationWarning, match=rf"mlx_pixword\.{name} is mlx_pixword\.{pw._MOVED[name]} now"):
        old = importlib.import_module(f"mlx_pixword.{name}")
    assert old is importlib.import_module(f"mlx_pixword.{pw._MOVED[name]}")


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
    assert own - {"mlx_pixword.common.openblas"} == {"mlx_pixword.common", "mlx_pixword.common.blas"}


def test_the_package_imports_in_a_fifth_of_a_second() -> None:
    """Of processor time, which other work on the machine does not take; the least of ten."""
    code = "import time; start = time.process_time(); import mlx_pixword; print(time.process_time() - start)"
    assert any(float(python(code)) < 0.2 for _ in range(10))
