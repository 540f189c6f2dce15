"""What clang accepts and Metal does not. Every rule gives messages ``kernel.metal:LINE: error: ...``."""

import re
from collections.abc import Iterable, Iterator, Sequence

from .source import PACKED, SCALARS, VECTORS
from .tokens import Token, closing, text_of, tokenize

SPACES = frozenset({"device", "constant", "threadgroup", "thread"})
_FORBIDDEN = {
    "std": "the C++ standard library",
    "dynamic_cast": "dynamic_cast",
    "typeid": "typeid",
    "try": "exceptions",
    "catch": "exceptions",
    "throw": "exceptions",
    "goto": "goto",
    "virtual": "virtual functions",
    "new": "dynamic allocation",
    "delete": "dynamic allocation",
    "malloc": "dynamic allocation",
    "double": "double",
    "thread_local": "thread_local",
    "register": "register",
    "asm": "assembly",
    "__asm__": "assembly",
    "volatile_cast": "volatile_cast",
}
_QUALIFIERS = frozenset({"const", "volatile", "static", "constexpr", "inline", "typename"})


def message(line: int, text: str) -> str:
    return f"kernel.metal:{line}: error: {text}"


def lint(source: str) -> list[str]:
    """Messages about a text, in the order of the lines."""
    tokens = tokenize(source)
    types = _types(tokens)
    bodies = _function_bodies(tokens)
    found = [*_words(tokens), *_pointers(tokens, types), *_threadgroup(tokens, bodies), *_statics(tokens, bodies)]
    found += [*_lambdas(tokens), *_bases(tokens), *_matrices(tokens)]
    return sorted(set(found), key=lambda text: int(text.split(":")[1]))


# --- words ------------------------------------------------------------------------------------------------------------


def _words(tokens: Sequence[Token]) -> Iterator[str]:
    for i, token in enumerate(tokens):
        member = i > 0 and tokens[i - 1].text in (".", "->")
        if token.kind == "name" and token.text in _FORBIDDEN and not member:
            yield message(token.line, f"Metal has no {_FORBIDDEN[token.text]} ({token.text})")
        if token.kind == "number" and re.fullmatch(r"[\d.]+(?:[eE][-+]?\d+)?[lL]", token.text) and "." in token.text:
            yield message(token.line, f"Metal has no long double ({token.text})")


def _lambdas(tokens: Sequence[Token]) -> Iterator[str]:
    for i, token in enumerate(tokens[:-1]):
        before = tokens[i - 1] if i else None
        starts = before is None or before.text in ("=", "(", ",", "return", "{", ";", "}")
        if token.text == "[" and starts and tokens[closing(tokens, i) + 1 :][:1] and before is not None:
            after = tokens[closing(tokens, i) + 1].text
            if after in ("(", "{") and before.text != "}":
                yield message(token.line, "older Metal compilers have no lambdas")


def _bases(tokens: Sequence[Token]) -> Iterator[str]:
    for i, token in enumerate(tokens[:-2]):
        if token.text in ("struct", "class") and tokens[i + 1].kind == "name" and tokens[i + 2].text == ":":
            yield message(token.line, "Metal has no derived classes")


def _matrices(tokens: Sequence[Token]) -> Iterator[str]:
    for token in tokens:
        if token.text.startswith("emu_"):
            yield message(token.line, f"{token.text} is the emulator's own: use thread_elements() and Metal's names")


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
        if start is None or _in_template_alias(tokens, start):
            continue
        words = {t.text for t in tokens[start:i]}
        if not words & SPACES and not (tokens[start - 1].text in SPACES if start else False):
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


def _in_template_alias(tokens: Sequence[Token], start: int) -> bool:
    return start > 0 and tokens[start - 1].text in ("sizeof", "decltype")


def _function_bodies(tokens: Sequence[Token]) -> list[tuple[int, int, bool]]:
    """First and last token of every function's body, and whether it is the kernel's."""
    bodies: list[tuple[int, int, bool]] = []
    i = 0
    while i < len(tokens):
        if tokens[i].text == "(" and i and tokens[i - 1].kind == "name":
            close = closing(tokens, i)
            k = close + 1
            while k < len(tokens) and tokens[k].text in ("const", "thread", "device", "noexcept"):
                k += 1
            if k < len(tokens) and tokens[k].text == "{":
                end = closing(tokens, k)
                bodies.append((k, end, _is_kernel(tokens, i)))
                i = end
        i += 1
    return bodies


def _is_kernel(tokens: Sequence[Token], bracket: int) -> bool:
    before = [t.text for t in tokens[max(0, bracket - 6) : bracket - 1]]
    return "kernel" in before


def _threadgroup(tokens: Sequence[Token], bodies: Iterable[tuple[int, int, bool]]) -> Iterator[str]:
    """Threadgroup variables belong into the kernel's body, and start without a value."""
    kernels = [(first, last) for first, last, kernel in bodies if kernel]
    for i, token in enumerate(tokens):
        if token.text != "threadgroup" or (i and tokens[i - 1].text not in (";", "{", "}", "static")):
            continue
        end = next((k for k in range(i, len(tokens)) if tokens[k].text in (";", "[", "=", "(")), len(tokens) - 1)
        inside = {t.text for t in tokens[i:end]}
        if "*" in inside or "&" in inside or tokens[end].text == "(":
            continue
        if not any(first < i < last for first, last in kernels):
            yield message(token.line, "a threadgroup variable must be declared inside the kernel")
        last = next((k for k in range(end, len(tokens)) if tokens[k].text == ";"), end)
        if "=" in {t.text for t in tokens[end:last]}:
            yield message(token.line, "a threadgroup variable cannot be initialised")


def _statics(tokens: Sequence[Token], bodies: Iterable[tuple[int, int, bool]]) -> Iterator[str]:
    for first, last, _ in bodies:
        for token, after in zip(tokens[first:last], tokens[first + 1 : last], strict=False):
            if token.text == "static" and after.text not in ("constexpr", "constant"):
                yield message(token.line, "Metal has no static variables in functions")


# --- what the compiler tells ------------------------------------------------------------------------------------------


def lint_warnings(warnings: str) -> list[str]:
    """bfloat takes no implicit conversion; half does. clang warns of both."""
    found = []
    for text in warnings.splitlines():
        match = re.match(r"(kernel\.metal:\d+):\d+: warning: (.*) \[-Wimplicit-(?:int-)?float-conversion\]", text)
        if match and re.search(r"to '[^']*(?:bfloat|__bf16)", match[2]):
            found.append(f"{match[1]}: error: {match[2]}; Metal wants bfloat(...) written out")
    return found


def lint_ir(ir: str) -> list[str]:
    """Recursion, found in the graph of calls."""
    calls: dict[str, set[str]] = {}
    current = ""
    for line in ir.splitlines():
        if line.startswith("define ") and (name := re.search(r"@([-\w.$\"]+)\(", line)):
            current = name[1]
            calls[current] = set()
        elif " call " in line and current and (name := re.search(r"@([-\w.$\"]+)\(", line)):
            calls[current].add(name[1])
    return [f"kernel.metal:0: error: Metal has no recursion ({name})" for name in calls if _reaches(name, name, calls)]


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
