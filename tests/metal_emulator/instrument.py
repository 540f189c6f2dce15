"""LLVM IR text: a check before every load and store of device, constant and threadgroup memory.

The checks return the address to use, so that a bad access lands on a spare page and the launch goes on. Threadgroup
variables and constant tables get a red zone, and a table of them goes to the runtime.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .errors import MetalCompileError

KERNEL_FILE = "kernel.metal"  # what debug information calls the text
RED_ZONE = 4096
_SPACES = {"1": "device", "2": "constant", "3": "threadgroup"}
_SIZES = {"half": 2, "bfloat": 2, "float": 4, "double": 8, "ptr": 8}

_ACCESS = re.compile(r"^(\s+(?:%\S+ = (?P<load>load)|store) (?:volatile )?)(?P<operands>.*)$")
_LOCATION = re.compile(r"^(!\d+) = (?:distinct )?!DILocation\(line: (\d+),.*?scope: (!\d+)", re.MULTILINE)
_SCOPE = re.compile(r"^(!\d+) = (?:distinct )?!DI(?:Subprogram|LexicalBlock\w*)\(.*?file: (!\d+)", re.MULTILINE)
_FILE = re.compile(r"^(!\d+) = (?:distinct )?!DIFile\(filename: \"([^\"]*)\"", re.MULTILINE)
_GLOBAL = re.compile(r"^(@\S+) = (.*?)addrspace\(([23])\) (global|constant) (.*)$")
_DEBUG = re.compile(r",? !dbg !\d+")
_HANDLERS = {"out_of_bounds": "emu_bad_index", "divrem_overflow": "emu_bad_division"}

_DECLARATIONS = """
declare ptr addrspace(1) @emu_load_device(ptr addrspace(1), i32, i32, i32)
declare ptr addrspace(1) @emu_store_device(ptr addrspace(1), i32, i32, i32)
declare ptr addrspace(2) @emu_load_constant(ptr addrspace(2), i32, i32, i32)
declare ptr addrspace(3) @emu_load_threadgroup(ptr addrspace(3), i32, i32, i32)
declare ptr addrspace(3) @emu_store_threadgroup(ptr addrspace(3), i32, i32, i32)
declare void @emu_loop(i32)
declare void @emu_bad_index(i32)
declare void @emu_bad_division(i32)
"""


def size_of(type_: str) -> int:
    """Bytes of an IR type that a load or store may have."""
    type_ = type_.strip()
    if type_ in _SIZES or type_.startswith("ptr"):
        return _SIZES.get(type_, 8)
    if match := re.fullmatch(r"i(\d+)", type_):
        return max(1, int(match[1]) // 8)
    if match := re.fullmatch(r"[<\[](\d+) x (.+)[>\]]", type_):
        return int(match[1]) * size_of(match[2])
    raise MetalCompileError(f"the emulator cannot check accesses of the type {type_}")


def scalar_size(type_: str) -> int:
    """Bytes of one element of a vector or array."""
    while match := re.fullmatch(r"[<\[]\d+ x (.+)[>\]]", type_.strip()):
        type_ = match[1]
    return size_of(type_)


def split_operands(text: str) -> list[str]:
    """Operands of an instruction, at the commas outside brackets."""
    depth, parts = 0, [""]
    for character in text:
        depth += (character in "<[{(") - (character in ">]})")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def split_type(text: str) -> tuple[str, str]:
    """A leading IR type, and what follows it."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character in "<[{(") - (character in ">]})")
        if character == " " and depth == 0 and not text[i + 1 :].startswith("addrspace("):
            return text[:i], text[i + 1 :].lstrip()
    return text, ""


@dataclass
class _Module:
    """One module's text while it is rewritten."""

    lines: dict[str, int]  # debug location to line of the kernel
    checked: bool
    count: int = 0
    granule: int = 8  # of threadgroup memory: the smallest scalar that is loaded or stored there
    labels: set[str] = field(default_factory=set)  # of the function, so far

    def goes_back(self, instruction: str) -> bool:
        """Whether a branch leads to code before it, as the end of a loop does."""
        targets = re.findall(r"label %([-\w.]+)", instruction) if instruction.startswith("  br ") else ()
        return not self.labels.isdisjoint(targets)

    def note_label(self, text: str) -> None:
        if text.startswith("define "):
            self.labels.clear()
        elif label := re.match(r"([-\w.]+):", text):
            self.labels.add(label[1])

    def line_of(self, instruction: str) -> int:
        found = re.search(r"!dbg (!\d+)", instruction)
        return self.lines.get(found[1], 0) if found else 0

    def check(self, space: str, write: bool, pointer: str, size: int, align: int, line: int) -> tuple[str, str]:
        """The call before an access, and the pointer that the access then uses."""
        if write and space == "2":
            raise MetalCompileError(f"{KERNEL_FILE}:{line}: error: a store to constant memory")
        self.count += 1
        function = f"emu_{'store' if write else 'load'}_{_SPACES[space]}"
        type_, result = f"ptr addrspace({space})", f"%emu.{self.count}"
        call = f"  {result} = call {type_} @{function}({type_} {pointer}, i32 {size}, i32 {align}, i32 {line})"
        return call, result


def instrument(ir: str, checked: bool = True) -> str:
    """The module with checks, or with the table of variables alone."""
    module = _Module(line_map(ir), checked)
    rows: list[tuple[str, str, int]] = []
    out: list[str] = []
    for text in ir.split("\n"):
        if match := _GLOBAL.match(text):
            out.append(_pad(match, rows))
        else:
            out.extend(_instruction(text, module))
    body = _DEBUG.sub("", "\n".join(out))  # lines are in the checks now
    return "\n".join([body, _DECLARATIONS if checked else "", *_table(rows, module.granule)])


def line_map(ir: str) -> dict[str, int]:
    """Lines of the kernel's own text; those of the emulator's headers are left out."""
    files = dict(_FILE.findall(ir))
    scopes = {scope for scope, of in _SCOPE.findall(ir) if files.get(of, "").endswith(KERNEL_FILE)}
    return {name: int(line) for name, line, scope in _LOCATION.findall(ir) if scope in scopes}


def _instruction(text: str, module: _Module) -> Iterator[str]:
    if not module.checked:
        yield text
        return
    module.note_label(text)
    line = module.line_of(text) if "!dbg" in text else 0
    if "ptr addrspace(" in text:
        if match := _ACCESS.match(text):
            yield from _access(match, module, line)
            return
        if "@llvm.mem" in text:
            raise MetalCompileError(f"{KERNEL_FILE}:{line}: error: the emulator cannot check a block that is copied")
    if "@__ubsan_handle_" in text and " call " in text:
        handler = next(new for old, new in _HANDLERS.items() if old in text)
        text = f"  call void @{handler}(i32 {line})"
    elif line and module.goes_back(text):  # the headers' own loops, which have no line, end
        yield f"  call void @emu_loop(i32 {line})"
    yield text


def _access(match: re.Match[str], module: _Module, line: int) -> Iterator[str]:
    operands = split_operands(match["operands"])  # type and pointer, or value and pointer; then the alignment
    pointer = re.fullmatch(r"ptr addrspace\(([123])\) (.+)", operands[1])
    if pointer is None:  # of the thread's own memory; the value is a pointer
        yield match[0]
        return
    type_ = operands[0] if match["load"] else split_type(operands[0])[0]
    if pointer[1] == "3":
        module.granule = min(module.granule, scalar_size(type_))
    align = int(operands[2].removeprefix("align "))
    call, address = module.check(pointer[1], not match["load"], pointer[2], size_of(type_), align, line)
    yield call
    yield f"{match[1]}{operands[0]}, ptr addrspace({pointer[1]}) {address}, align {align}"


# --- variables --------------------------------------------------------------------------------------------------------


def _pad(match: re.Match[str], rows: list[tuple[str, str, int]]) -> str:
    """A threadgroup variable or constant table, followed by bytes that nobody may touch."""
    name, linkage, space, kind, rest = match.groups()
    type_, rest = split_type(rest)
    value, _, after = rest.partition(", align ")
    value, is_comdat, comdat = value.partition(", comdat")
    align = max(64, int(re.match(r"\d+", after)[0])) if after else 64  # type: ignore[index]
    rows.append((name, type_, int(space)))
    filler = f"[{RED_ZONE} x i8]"
    content = f"<{{ {type_} {value}, {filler} zeroinitializer }}>" if space == "2" else "undef"
    tail = f", comdat{comdat}" if is_comdat else ""
    return f"{name} = {linkage}addrspace({space}) {kind} <{{ {type_}, {filler} }}> {content}{tail}, align {align}"


def variable_name(symbol: str) -> str:
    """The name in the text: ``@_ZZ6kernelPfE4tile`` is ``tile``."""
    symbol = symbol.strip('@"')
    for match in re.finditer(r"(?=(?<![1-9])([1-9]\d*))", symbol):
        name, rest = symbol[match.end(1) :][: int(match[1])], symbol[match.end(1) + int(match[1]) :]
        if len(name) == int(match[1]) and re.fullmatch(r"(?:E?_?\d*_?)?|B\w+", rest) and re.fullmatch(r"\w+", name):
            return name.removesuffix("_emu")
    return symbol


def _table(rows: list[tuple[str, str, int]], granule: int) -> Iterator[str]:
    """`emu_variables` for the runtime; LLVM itself works the sizes out."""
    entries = []
    for i, (name, type_, space) in enumerate(rows):
        shown = variable_name(name)
        yield f'@emu_name.{i} = private constant [{len(shown) + 1} x i8] c"{shown}\\00"'
        entries.append(
            f"{{ i64, i64, i32, i32, ptr }} {{ i64 ptrtoint (ptr addrspace({space}) {name} to i64), i64 ptrtoint "
            f"(ptr getelementptr ({type_}, ptr null, i32 1) to i64), i32 {space}, i32 0, ptr @emu_name.{i} }}"
        )
    count = max(1, len(rows))
    value = f"[{', '.join(entries)}]" if rows else "zeroinitializer"
    yield f"@emu_variables = global [{count} x {{ i64, i64, i32, i32, ptr }}] {value}"
    yield f"@emu_variable_count = global i32 {len(rows)}"
    yield f"@emu_threadgroup_granule = global i32 {granule}"
