"""A kernel's Metal text as CUDA: address spaces go, threadgroup variables are shared, positions are CUDA's.

The same text, line by line, is what makes the comparison worth something; `shim.h` supplies Metal's functions. What
this does not know raises `RenderError`, so that no text is rendered half.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

HERE = Path(__file__).parent

_POSITIONS = {
    "thread_position_in_grid": (
        "const metal::uint_triple thread_position_in_grid = {blockIdx.x * blockDim.x + threadIdx.x, "
        "blockIdx.y * blockDim.y + threadIdx.y, blockIdx.z * blockDim.z + threadIdx.z};"
    ),
    "threads_per_grid": "const metal::uint_triple threads_per_grid = {GRID_X, GRID_Y, GRID_Z};",
    "threadgroup_position_in_grid": (
        "const metal::uint_triple threadgroup_position_in_grid = {blockIdx.x, blockIdx.y, blockIdx.z};"
    ),
    "thread_index_in_threadgroup": "const uint thread_index_in_threadgroup = threadIdx.x;",
    "thread_index_in_simdgroup": "const uint thread_index_in_simdgroup = threadIdx.x % 32;",
    "simdgroup_index_in_threadgroup": "const uint simdgroup_index_in_threadgroup = threadIdx.x / 32;",
}
# Threads that CUDA's last blocks have too many; kernels with barriers have grids of whole blocks.
_GUARD = (
    "if (blockIdx.x * blockDim.x + threadIdx.x >= GRID_X || blockIdx.y * blockDim.y + threadIdx.y >= GRID_Y || "
    "blockIdx.z * blockDim.z + threadIdx.z >= GRID_Z) return;"
)
_SHARED = re.compile(r"^(\s*)threadgroup (\w+) (\w+)\[", re.MULTILINE)
_SPACES = re.compile(r"\b(?:threadgroup|device|constant|thread) (?!_)")
_LEFT = re.compile(
    r"\b(?:threadgroup|device|constant|thread|kernel|half|bfloat|float[348]|u?int[34]|simd_\w+|quad_\w+|atomic\w*|"
    r"threads_per_\w+|thread_\w+|simdgroup\w*_in_\w+)\b"
)
_KNOWN = {
    "simd_any",
    "simd_sum",
    "simd_max",
    "simd_min",
    "simd_shuffle_xor",
    "simd_end",
    "thread_elements",
    *_POSITIONS,
}


class RenderError(ValueError):
    """A text uses something of Metal that has no rendering yet."""


def render_header(header: str) -> str:
    """A kernel's header, flags included, behind the shim."""
    flags: list[str] = []
    rest: list[str] = []
    for line in header.split("\n"):
        (flags if re.fullmatch(r"#define \w+", line) else rest).append(line)
    text = _without_twins("\n".join(rest))
    return "\n".join([*flags, (HERE / "shim.h").read_text(encoding="utf-8"), _render(text)])


def render_body(body: str) -> str:
    """The body of a kernel function; template values and ``GRID_X``, ``GRID_Y``, ``GRID_Z`` must be constants in it."""
    used = [text for name, text in _POSITIONS.items() if re.search(rf"\b{name}\b", body)]
    guard = [] if "barrier(" in body else [_GUARD]
    return "\n".join([*used, *guard, _render(body)])


def _render(text: str) -> str:
    text = "\n".join(line.partition("//")[0].rstrip() for line in text.split("\n"))  # comments name what is gone
    text = _SHARED.sub(r"\1__shared__ __align__(16) \2 \3[", text)
    text = _SPACES.sub("", text)
    text = text.replace("thread_position_in_grid.xy;", "thread_position_in_grid.xy();")
    text = re.sub(r"\bfloat2\b", "metal::pair", text)
    text = re.sub(r"\buint2\b", "metal::uint_pair", text)
    text = re.sub(r"\buint3\b", "metal::uint_triple", text)
    text = re.sub(r"(?<![:\w.])(min|max)\(", r"metal::\1(", text)
    unknown = {word for word in _LEFT.findall(text) if word not in _KNOWN}
    if unknown:
        raise RenderError(f"no rendering of {', '.join(sorted(unknown))}")
    return text


def _without_twins(header: str) -> str:
    """Functions that differ in address spaces alone, each once."""
    kept, seen = [], set()
    for part in re.split(r"\n\n", header):
        name = re.search(r"^(?:template <[^\n]*>\n)?METAL_FUNC [^{]*", part, re.MULTILINE)
        if name:
            plain = _SPACES.sub("", name[0])
            if plain in seen:
                continue
            seen.add(plain)
        kept.append(part)
    return "\n\n".join(kept)


def translation_unit(
    name: str, header: str, body: str, inputs: Iterable[tuple[str, str]], outputs: Iterable[tuple[str, str]],
    template: Mapping[str, str | int | bool],
) -> str:  # fmt: skip
    """A whole file around rendered texts, as MLX's CUDA build makes one; for a compiler without MLX.

    Args:
        inputs, outputs: names and CUDA types of their elements.
        template: values of the text's template names, types as words.
    """
    parameters = [f"const {kind}* {name}" for name, kind in inputs]
    parameters += [f"const Shape {name}_shape" for name, _ in inputs if f"{name}_shape" in body]
    parameters += [f"{kind}* {name}" for name, kind in outputs]
    values = [
        f"  using {key} = {value};" if isinstance(value, str) else f"  constexpr auto {key} = {str(value).lower()};"
        for key, value in template.items()
    ]
    return "\n".join([
        "#include <cuda_bf16.h>", "#include <cuda_fp16.h>", "#include <cstdint>",
        "struct Shape { int sizes[8]; __device__ int operator[](int i) const { return sizes[i]; } };",
        header, f"__global__ void {name}({', '.join(parameters)}) {{", *values, body, "}", "",
    ])  # fmt: skip
