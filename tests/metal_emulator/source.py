"""A Metal kernel's text made ready for clang: a few rewrites that keep every line where it was, and its signature."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .errors import MetalCompileError
from .tokens import Token, closing, closing_angle, tokenize

_ELEMENTS = ("char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "float", "half", "bfloat")
_SIZED = tuple(f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64))
SCALARS = frozenset((
    *_ELEMENTS, *_SIZED, "bool", "void", "size_t", "ptrdiff_t", "float16_t", "bfloat16_t", "unsigned", "signed"
))  # fmt: skip
VECTORS = frozenset(f"{element}{size}" for element in _ELEMENTS for size in (2, 3, 4))
PACKED = frozenset(f"packed_{name}" for name in VECTORS)

_POSITIONS = {  # attributes of three values, and where emu_position has them
    "thread_position_in_grid": "in_grid",
    "thread_position_in_threadgroup": "in_threadgroup",
    "threadgroup_position_in_grid": "group",
    "threads_per_threadgroup": "threads_per_threadgroup",
    "dispatch_threads_per_threadgroup": "dispatched_threads",
    "threadgroups_per_grid": "threadgroups",
    "threads_per_grid": "grid",
    "grid_size": "grid",
}
_INDICES = {
    "thread_index_in_threadgroup": "index_in_threadgroup",
    "thread_index_in_simdgroup": "lane",
    "simdgroup_index_in_threadgroup": "simdgroup",
    "simdgroups_per_threadgroup": "simdgroups",
    "dispatch_simdgroups_per_threadgroup": "dispatched_simdgroups",
}
_CONSTANTS = {"thread_execution_width": "32u", "threads_per_simdgroup": "32u", "grid_origin": "uint3(0)"}


@dataclass(frozen=True)
class Buffer:
    """An argument that names memory. `type` is as in the text, ``const device float*``."""

    name: str
    type: str

    @property
    def constant(self) -> bool:
        return re.search(r"\bconstant\b", self.type) is not None

    @property
    def read_only(self) -> bool:
        return re.search(r"\b(?:const|constant)\b", self.type) is not None


@dataclass(frozen=True)
class Prepared:
    """What clang compiles: `text`, line by line as given, and `entry`, which calls the kernel. And its buffers."""

    text: str
    entry: str
    buffers: tuple[Buffer, ...]
    kernel: str


Edit = tuple[int, int, str]  # replace text[start:end]


@lru_cache(maxsize=1024)
def prepare(source: str) -> Prepared:
    """Rewrite a text with one kernel, as MLX generates it. Raises `MetalCompileError` for what is not emulated."""
    text, arguments = _take_instantiation(source)
    tokens = tokenize(text)
    start = _kernel_start(tokens)
    name = tokens[start].text
    close = closing(tokens, start + 1)
    entry, buffers = _entry(name, arguments, list(_parameters(tokens[start + 2 : close])))
    edits = [*_literal_edits(tokens), *_vector_edits(tokens), *_storage_edits(tokens), *_structure_edits(text, tokens)]
    return Prepared(_drop_includes(apply_edits(text, edits)), entry, buffers, name)


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


# --- signature --------------------------------------------------------------------------------------------------------


def _take_instantiation(source: str) -> tuple[str, str]:
    """Cut MLX's ``template [[host_name(...)]] [[kernel]] decltype(f<...>) f<...>;`` and keep the ``<...>``."""
    found = re.search(r"^template\s*\[\[host_name\(.*?;\s*?$", source, re.MULTILINE | re.DOTALL)
    if not found:
        return source, ""
    arguments = re.search(r"decltype\(\w+(<.*?>)\)", found[0], re.DOTALL)
    blank = "\n" * found[0].count("\n")
    return source[: found.start()] + blank + source[found.end() :], arguments[1] if arguments else ""


def _kernel_start(tokens: Sequence[Token]) -> int:
    """Index of the kernel's name."""
    voids = [i for i in range(1, len(tokens) - 2) if tokens[i].text == "void" and tokens[i + 2].text == "("]
    starts = [i + 1 for i in voids if tokens[i - 1].text in ("]]", "kernel")]
    if len(starts) != 1:
        raise MetalCompileError(f"the text must have one kernel, [[kernel]] void name(...); found {len(starts)}")
    return starts[0]


def _parameters(tokens: Sequence[Token]) -> Iterable[tuple[str, str, str]]:
    """Type, name and attribute of every parameter."""
    depth, first = 0, 0
    for i in range(len(tokens) + 1):
        text = tokens[i].text if i < len(tokens) else ","
        depth += (text in ("(", "<", "[[")) - (text in (")", ">", "]]"))
        if text == "," and depth == 0:
            yield _parameter(tokens[first:i])
            first = i + 1


def _parameter(tokens: Sequence[Token]) -> tuple[str, str, str]:
    texts = [token.text for token in tokens]
    if "[[" not in texts:
        raise MetalCompileError(f"line {tokens[0].line if tokens else 0}: parameter without [[attribute]]: {texts}")
    at = texts.index("[[")
    return " ".join(texts[: at - 1]), texts[at - 1], texts[at + 1]


def _entry(name: str, arguments: str, parameters: list[tuple[str, str, str]]) -> tuple[str, tuple[Buffer, ...]]:
    """A C function that calls the kernel with the launch's buffers and the thread's position."""
    buffers: list[Buffer] = []
    values = []
    for type_, parameter, attribute in parameters:
        if attribute == "buffer":
            pointer = f"({type_.rstrip('&* ')}*)(ulong)arguments[{len(buffers)}]"
            values.append(f"*{pointer}" if type_.endswith("&") else pointer)
            buffers.append(Buffer(parameter, type_))
        else:
            values.append(_position(type_, attribute))
    call = f"{name}{arguments}({', '.join(values)});"
    return f'extern "C" void emu_entry(void** arguments) {{ {call} }}', tuple(buffers)


def _position(type_: str, attribute: str) -> str:
    if attribute in _INDICES:
        return f"emu_current->{_INDICES[attribute]}"
    if attribute in _CONSTANTS:
        return _CONSTANTS[attribute].replace("uint3(0)", "uint3{}")
    if attribute not in _POSITIONS:
        raise MetalCompileError(f"the emulator does not know the attribute [[{attribute}]]")
    size = int(type_[-1]) if type_[-1].isdigit() else 1
    values = [f"emu_current->{_POSITIONS[attribute]}[{i}]" for i in range(size)]
    return f"{type_}{{{', '.join(f'{type_[:-1]}({value})' for value in values)}}}" if size > 1 else values[0]


# --- rewrites ---------------------------------------------------------------------------------------------------------


def _drop_includes(text: str) -> str:
    """The headers of Metal are there already."""
    return re.sub(r"^[ \t]*#[ \t]*include[ \t]*<metal_\w+>[^\n]*$", "", text, flags=re.MULTILINE)


def _literal_edits(tokens: Sequence[Token]) -> Iterable[Edit]:
    """``1.0h`` is a half and ``1.0bf`` a bfloat."""
    for token in tokens:
        if token.kind == "number" and (match := re.fullmatch(r"([\d.]+(?:[eE][-+]?\d+)?)(h|bf)", token.text, re.I)):
            yield token.start, token.end, f"{'half' if match[2] in 'hH' else 'bfloat'}({match[1]}f)"


def vector_names(tokens: Sequence[Token]) -> frozenset[str]:
    """Vector types by name, also those that the text itself names."""
    own = set()
    for i, token in enumerate(tokens[:-3]):
        if token.text == "using" and tokens[i + 2].text == "=" and tokens[i + 3].text in (*VECTORS, "vec"):
            own.add(tokens[i + 1].text)
        if token.text == "typedef" and tokens[i + 1].text in VECTORS:
            own.add(tokens[i + 2].text)
    return VECTORS | own


def _vector_edits(tokens: Sequence[Token]) -> Iterable[Edit]:
    """``float4(...)`` and ``vec<T, 4>(...)`` become ``emu_make<float4>(...)``; also where a variable is declared."""
    names = vector_names(tokens)
    for i, token in enumerate(tokens[:-2]):
        end = i
        if token.text == "vec" and tokens[i + 1].text == "<":
            end = closing_angle(tokens, i + 1)
        elif token.text not in names:
            continue
        if end < 0 or end + 2 >= len(tokens):
            continue
        written = "".join(t.text if t.text != "," else ", " for t in tokens[i : end + 1])
        if tokens[end + 1].text == "(":
            yield token.start, tokens[end].end, f"emu_make<{written}>"
        elif tokens[end + 1].kind == "name" and tokens[end + 2].text == "(" and _declares(tokens, end + 2):
            yield tokens[end + 2].start, tokens[end + 2].start, f" = emu_make<{written}>"


def _declares(tokens: Sequence[Token], bracket: int) -> bool:
    """Whether ``type name(...)`` is a variable: followed by ``;``, and no types inside."""
    close = closing(tokens, bracket)
    inside = tokens[bracket + 1].text
    return close + 1 < len(tokens) and tokens[close + 1].text == ";" and inside not in (SCALARS | VECTORS | {"const"})


def _storage_edits(tokens: Sequence[Token]) -> Iterable[Edit]:
    """Threadgroup variables become static: one for all threads of the threadgroup, as only one runs at a time.

    Structures have no constructors for such memory in clang, so theirs is bytes and a reference.
    """
    for i, token in enumerate(tokens):
        if token.text != "threadgroup" or i == 0 or tokens[i - 1].text not in (";", "{", "}"):
            continue
        end = next(k for k in range(i, len(tokens)) if tokens[k].text == ";")
        inside = [t.text for t in tokens[i + 1 : end]]
        before_sizes = inside[: inside.index("[")] if "[" in inside else inside
        if any(text in ("*", "&", "=", "(") for text in before_sizes):
            continue
        plain = inside[0] in SCALARS | VECTORS | {"vec", "metal"} or _template_type(tokens, inside[0])
        if plain or "," in inside:
            yield token.start, token.start, "static "
        else:
            yield token.start, tokens[end].end, _raw_storage(inside)


def _template_type(tokens: Sequence[Token], name: str) -> bool:
    """Whether ``typename name`` or ``using name =`` occurs: a number type, as MLX passes them."""
    return any(
        tokens[i].text in ("typename", "class", "using") and tokens[i + 1].text == name for i in range(len(tokens) - 1)
    )


def _raw_storage(declaration: list[str]) -> str:
    at = declaration.index("[") if "[" in declaration else len(declaration)
    type_, name, sizes = " ".join(declaration[: at - 1]), declaration[at - 1], "".join(declaration[at:])
    return (
        f"alignas({type_}) static threadgroup uchar {name}_emu[sizeof({type_}{sizes})]; "
        f"threadgroup {type_} (&{name}){sizes} = *(threadgroup {type_} (*){sizes}){name}_emu;"
    )


_COPY = (
    " {0}({2} {0}& from) {{{{ emu_copy<{1}>(this, &from); }}}}"
    " {0}& operator=({2} {0}& from) {{{{ emu_copy<{1}>(this, &from); return *this; }}}}"
)
_SPACES = ((1, "const device"), (2, "constant"), (3, "const threadgroup"))
_COPIES = " {0}() = default; {0}(const {0}&) = default; {0}& operator=(const {0}&) = default;" + "".join(
    _COPY.format("{0}", number, space) for number, space in _SPACES
)


def _structure_edits(text: str, tokens: Sequence[Token]) -> Iterable[Edit]:
    """Give plain structures the constructors that copy them out of device memory, which Metal has and clang has not."""
    for i, token in enumerate(tokens[:-2]):
        if token.text != "struct" or tokens[i + 2].text != "{" or tokens[i + 1].kind != "name":
            continue
        name, end = tokens[i + 1].text, closing(tokens, i + 2)
        braces = rf"\b{name}\s*(?:\w+\s*(?:\[\w*\]\s*)*=?\s*)?\{{"  # a constructor would forbid these
        methods = any(t.text == "(" for t in tokens[i + 2 : end])
        if not methods and len(re.findall(braces, text)) == 1:
            yield tokens[end].start, tokens[end].start, _COPIES.format(name)
