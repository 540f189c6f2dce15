"""What clang accepts and Metal does not. Every rule gives messages ``kernel.metal:LINE: error: ...``."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .instrument import KERNEL_FILE, line_map
from .source import PACKED, SCALARS, VECTORS, apply_edits
from .tokens import Token, closing, text_of, tokenize

SPACES = frozenset({"device", "constant", "threadgroup", "thread"})
_FORBIDDEN = {
    "C++ standard library": ("std",),
    "run-time type information": ("dynamic_cast", "typeid"),
    "exceptions": ("try", "catch", "throw"),
    "goto": ("goto",),
    "virtual functions": ("virtual",),
    "dynamic allocation": ("new", "delete", "malloc"),
    "double": ("double",),
    "thread_local": ("thread_local",),
    "register": ("register",),
    "assembly": ("asm", "__asm__"),
}
_WORDS = {word: what for what, words in _FORBIDDEN.items() for word in words}
_STATEMENTS = frozenset({"if", "for", "while", "switch", "return", "catch", "sizeof", "decltype"})
_QUALIFIERS = frozenset({"const", "volatile", "static", "constexpr", "inline", "typename"})


def message(line: int, text: str) -> str:
    return f"{KERNEL_FILE}:{line}: error: {text}"


def lint(source: str) -> list[str]:
    """Messages about a text, in the order of the lines."""
    tokens = tokenize(source)
    types = _types(tokens)
    functions = list(_functions(tokens))
    found = [*_words(tokens), *_lambdas(tokens), *_bases(tokens), *_pointers(tokens, types)]
    found += [*_threadgroup(tokens, functions), *_statics(tokens, functions)]
    found += [*_program_scope(tokens, types), *_members(tokens), *_member_functions(tokens)]
    return sorted(set(found), key=lambda text: int(text.split(":")[1]))


# --- words ------------------------------------------------------------------------------------------------------------


def _words(tokens: Sequence[Token]) -> Iterator[str]:
    for i, token in enumerate(tokens):
        member = i > 0 and tokens[i - 1].text in (".", "->")
        if token.kind == "name" and token.text in _WORDS and not member:
            yield message(token.line, f"Metal has no {_WORDS[token.text]} ({token.text})")
        if token.kind == "number" and re.fullmatch(r"[\d.]+(?:[eE][-+]?\d+)?[lL]", token.text) and "." in token.text:
            yield message(token.line, f"Metal has no long double ({token.text})")
        if token.text.startswith("emu_"):
            yield message(token.line, f"{token.text} is the emulator's own: use thread_elements() and Metal's names")


def _lambdas(tokens: Sequence[Token]) -> Iterator[str]:
    for i, token in enumerate(tokens[:-1]):
        if token.text != "[" or i == 0 or tokens[i - 1].text not in ("=", "(", ",", "return", "{", ";"):
            continue
        after = closing(tokens, i) + 1
        if after < len(tokens) and tokens[after].text in ("(", "{"):
            yield message(token.line, "older Metal compilers have no lambdas")


def _bases(tokens: Sequence[Token]) -> Iterator[str]:
    for i, token in enumerate(tokens[:-2]):
        structure = token.text in ("struct", "class") and (i == 0 or tokens[i - 1].text != "enum")
        if structure and tokens[i + 1].kind == "name" and tokens[i + 2].text == ":":
            yield message(token.line, "Metal has no derived classes")


# --- address spaces ---------------------------------------------------------------------------------------------------


def _types(tokens: Sequence[Token]) -> frozenset[str]:
    """Names that are types in this text."""
    own = {"simdgroup_matrix", "simdgroup_float8x8", "simdgroup_half8x8", "simdgroup_bfloat8x8", "vec", "atomic"}
    own |= {"atomic_int", "atomic_uint", "atomic_float"}
    for i, token in enumerate(tokens[:-2]):
        if token.text in ("struct", "class", "typename", "enum", "using") and tokens[i + 1].kind == "name":
            own.add(tokens[i + 1].text)
        if token.text == "typedef":
            end = next((k for k in range(i, len(tokens)) if tokens[k].text == ";"), i + 1)
            own.add(tokens[end - 1].text)
    return (SCALARS | VECTORS | PACKED | own) - {"namespace", "metal"}


def _pointers(tokens: Sequence[Token], types: frozenset[str]) -> Iterator[str]:
    """A pointer or reference must name its address space, also one to a thread's own variable."""
    for i, token in enumerate(tokens):
        if token.text not in ("*", "&") or i == 0:
            continue
        start = _type_start(tokens, i, types)
        if start is None:
            continue
        if not {t.text for t in tokens[start:i]} & SPACES:
            yield message(token.line, f"'{text_of(tokens[start : i + 1])}' needs an address space: thread, device, ...")


def _type_start(tokens: Sequence[Token], star: int, types: frozenset[str]) -> int | None:
    """Where the type before a ``*`` begins, qualifiers included; None if no type stands there."""
    i = star - 1
    while i > 0 and tokens[i].text in SPACES | {"const", "volatile"}:
        i -= 1
    if tokens[i].text == ">":
        i = _opening_angle(tokens, i) - 1
    if i < 0 or tokens[i].text not in types or tokens[i].kind != "name":
        return None
    while i > 0 and (tokens[i - 1].text in _QUALIFIERS | SPACES | {"::", "metal", "unsigned"}):
        i -= 1
    return i


def _opening_angle(tokens: Sequence[Token], end: int) -> int:
    depth = 0
    for i in range(end, -1, -1):
        depth += (tokens[i].text == ">") - (tokens[i].text == "<")
        if depth == 0:
            return i
    return 0


# --- functions and variables ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Function:
    """Where a function's body begins and ends."""

    first: int
    last: int
    kernel: bool


def _functions(tokens: Sequence[Token]) -> Iterator[_Function]:
    i = 0
    while i < len(tokens):
        if tokens[i].text == "(" and i and tokens[i - 1].kind == "name":
            close = closing(tokens, i)
            first = close + 1
            while first < len(tokens) and tokens[first].text in SPACES | {"const"}:
                first += 1
            if first < len(tokens) and tokens[first].text == "{" and tokens[i - 1].text not in _STATEMENTS:
                last = closing(tokens, first)
                yield _Function(first, last, _is_kernel(tokens, i))
                i = last
        i += 1


def _is_kernel(tokens: Sequence[Token], bracket: int) -> bool:
    """Whether ``[[kernel]]`` or ``kernel`` stands before the name of a function."""
    for token in reversed(tokens[:bracket]):
        if token.text in (";", "{", "}"):
            return False
        if token.text == "kernel":
            return True
    return False


def _threadgroup(tokens: Sequence[Token], functions: Iterable[_Function]) -> Iterator[str]:
    """Threadgroup variables belong into the kernel's body, and start without a value."""
    kernels = [(f.first, f.last) for f in functions if f.kernel]
    for i, token in enumerate(tokens):
        if token.text != "threadgroup" or (i and tokens[i - 1].text not in (";", "{", "}", "static")):
            continue
        end = next((k for k in range(i, len(tokens)) if tokens[k].text in (";", "[", "=", "(")), len(tokens) - 1)
        words = {t.text for t in tokens[i:end]}
        if words & {"*", "&", "auto"} or tokens[end].text == "(":
            continue
        if not any(first < i < last for first, last in kernels):
            yield message(token.line, "a threadgroup variable must be declared inside the kernel")
        last = next((k for k in range(end, len(tokens)) if tokens[k].text == ";"), end)
        if "=" in {t.text for t in tokens[end:last]}:
            yield message(token.line, "a threadgroup variable cannot be initialised")


def _statics(tokens: Sequence[Token], functions: Iterable[_Function]) -> Iterator[str]:
    for function in functions:
        for token, after in pairwise(tokens[function.first : function.last]):
            if token.text == "static" and after.text not in ("constexpr", "constant"):
                yield message(token.line, "Metal has no static variables in functions")


def _program_scope(tokens: Sequence[Token], types: frozenset[str]) -> Iterator[str]:
    """A variable outside functions must be constant."""
    i, start = 0, 0
    while i < len(tokens):
        text = tokens[i].text
        if text == "{" and tokens[start].text == "namespace":
            start = i + 1
        elif text in ("{", "(", "["):
            i = closing(tokens, i)
        elif text in (";", "}"):
            yield from _variable(tokens[start:i], types)
            start = i + 1
        i += 1
        if i < len(tokens) and tokens[i - 1].text == "}" and tokens[i].text != ";":
            start = i


def _variable(words: Sequence[Token], types: frozenset[str]) -> Iterator[str]:
    names = [token.text for token in words]
    before = names[: names.index("=")] if "=" in names else names
    first = next((name for name in names if name not in ("const", "constexpr", "static", "inline")), "")
    if first in types and "constant" not in names and "(" not in before and not {"{", "threadgroup"} & set(before):
        yield message(words[0].line, "a variable in program scope must be in the constant address space")


def _members(tokens: Sequence[Token]) -> Iterator[str]:
    """So must a static member."""
    for i, token in enumerate(tokens[:-1]):
        if token.text in ("struct", "class") and "{" in (tokens[min(i + k, len(tokens) - 1)].text for k in (1, 2)):
            first = next(k for k in range(i, len(tokens)) if tokens[k].text == "{")
            for k in range(first, closing(tokens, first)):
                if tokens[k].text != "static":
                    continue
                end = next(j for j in range(k, len(tokens)) if tokens[j].text in ("=", ";", "(", "{"))
                words = {t.text for t in tokens[k - 1 : end]}
                if tokens[end].text in ("=", ";") and "constant" not in words:
                    yield message(tokens[k].line, "a static member must be in the constant address space")


def _member_functions(tokens: Sequence[Token]) -> Iterator[str]:
    """A member function says in which address space its object lies: as of Metal 4.1 it is else any, not ``thread``."""
    for i, token in enumerate(tokens[:-2]):
        if token.text not in ("struct", "class") or tokens[i + 1].kind != "name" or tokens[i + 2].text != "{":
            continue
        k, last, start = i + 3, closing(tokens, i + 2), i + 3  # start: of the declaration
        while k < last:
            text = tokens[k].text
            if text in (";", "}"):
                start = k + 1
            elif text in ("{", "["):
                k = closing(tokens, k)
                start = k + 1 if text == "{" else start
            elif text == "(":
                name, close = tokens[k - 1], closing(tokens, k)
                if name.text == "operator":
                    close = closing(tokens, close + 1)
                after = [t.text for t in tokens[close + 1 : close + 4]]
                words = after[: next((n for n, word in enumerate(after) if word in ("{", ";", ":", "=")), 3)]
                free = {"static", "friend", "="} & {t.text for t in tokens[start:k]} or name.text == tokens[i + 1].text
                if not free and not SPACES & set(words):
                    yield message(name.line, f"{name.text} needs `thread` behind its arguments, as Metal 4.1 has it")
                k = close
            k += 1


# --- what the compiler tells ------------------------------------------------------------------------------------------


def lint_warnings(warnings: str) -> list[str]:
    """bfloat takes no implicit conversion; half does. clang warns of both."""
    found = []
    for text in warnings.splitlines():
        match = re.match(r"(kernel\.metal:\d+):\d+: warning: (.*) \[-Wimplicit-(?:int-)?float-conversion\]", text)
        if match and re.search(r"to '[^']*(?:bfloat|__bf16)", match[2]):
            found.append(f"{match[1]}: error: {match[2]}; Metal wants bfloat(...) written out")
    return found


def with_inexact_literals(text: str) -> str:
    """The text with other numbers: clang does not warn of a literal that the narrower type happens to hold."""
    numbers = [
        t for t in tokenize(text) if t.kind == "number" and re.fullmatch(r"[\d.]+(?:[eE][-+]?\d+)?[fF]?", t.text)
    ]
    floats = [t for t in numbers if re.search(r"[.eEfF]", t.text)]
    return apply_edits(text, [(t.start, t.end, "1.1234567f") for t in floats])


_IR_MISTAKES = {
    "addrspacecast": "a pointer is cast from one address space to another",
    "atomicrmw": "a C++ atomic: use Metal's",
    "cmpxchg": "a C++ atomic: use Metal's",
    "load atomic": "a C++ atomic: use Metal's",
    "store atomic": "a C++ atomic: use Metal's",
}


def lint_ir(ir: str) -> list[str]:
    """Casts between address spaces, C++ atomics and recursion."""
    found = []
    for word, what in _IR_MISTAKES.items():
        if word in ir:
            lines = line_map(ir)
            for text in ir.split("\n"):
                place = re.search(r"!dbg (!\d+)", text) if word in text else None
                if place:
                    found.append(message(lines.get(place[1], 0), what))
    return found + _recursion(ir)


def _recursion(ir: str) -> list[str]:
    """Functions that reach themselves in the graph of calls."""
    calls: dict[str, set[str]] = {}
    places: dict[str, str] = {}
    current = ""
    for line in ir.split("\n"):
        name = re.search(r"@([-\w.$]+)\(", line) if line.startswith("define ") or " call " in line else None
        if name and line.startswith("define "):
            current = name[1]
            calls[current] = set()
            places[current] = line.rpartition("!dbg ")[2].split(" ")[0]
        elif name:
            calls[current].add(name[1])
    lines = dict(re.findall(r"^(!\d+) = distinct !DISubprogram\(.*?line: (\d+)", ir, re.MULTILINE))
    found = [name for name in calls if _reaches(name, name, calls)]
    return [message(int(lines.get(places[name], 0)), f"Metal has no recursion ({name})") for name in found]


def _reaches(start: str, goal: str, calls: dict[str, set[str]]) -> bool:
    seen: set[str] = set()
    stack = list(calls.get(start, ()))
    while stack:
        name = stack.pop()
        if name == goal:
            return True
        if name not in seen:
            seen.add(name)
            stack.extend(calls.get(name, ()))
    return False
