"""The Metal emulator refuses what Metal refuses, accepts what Metal accepts, and compiles for every machine."""

import re
from pathlib import Path

import metal_emulator as emu
import pytest
from metal_emulator import compiler, source
from metal_emulator.build import build, compile_object, compile_runtime

HELPER = """template <typename T> inline float row_sum(const device T* p, int n) {
  float s = 0;
  for (int i = 0; i < n; ++i) s += float(p[i]);
  return s;
}
"""
KERNEL = """[[kernel]] void k(
  const device float* x [[buffer(0)]],
  const constant float* w [[buffer(1)]],
  device float* y [[buffer(2)]],
  device half* h [[buffer(3)]],
  device bfloat* b [[buffer(4)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
BODY
}
"""


def text(body: str) -> str:
    """A kernel around a body; what stands before ``---`` goes into program scope."""
    header, _, inside = body.rpartition("---")
    return HELPER + header.strip() + "\n" + KERNEL.replace("BODY", inside.strip())


BAD = {
    "device to threadgroup": "threadgroup float* p = y; p[0] = 1;",
    "pointer without a space": "const float* p = x; y[0] = p[0];",
    "constant to device": "const device float* p = w; y[0] = p[0];",
    "threadgroup to a device parameter": "threadgroup float t[4]; y[0] = row_sum(t, 4);",
    "store to constant": "auto p = w; p[0] = 1.0f;",
    "store to const": "x[0] = 1.0f;",
    "reference without a space": "float& r = y[0]; r = 1;",
    "pointer to a local": "float a = 1; float* p = &a; y[0] = *p;",
    "reference to a local": "float a = 1; float& p = a; y[0] = p;",
    "cast to another space": "threadgroup float* p = (threadgroup float*)y; p[0] = 1;",
    "cast to no space": "float* p = (float*)y; p[0] = 1;",
    "cast to thread": "thread float* p = (thread float*)y; p[0] = 1;",
    "reinterpret_cast to thread": "thread float* p = reinterpret_cast<thread float*>(y); p[0] = 1;",
    "parameter without a space": "inline float f(const float* p) { return *p; } --- float a[2] = {1, 2}; y[0] = f(a);",
    "reference parameter": "inline void f(float& p) { p = 1; } --- float a; f(a); y[0] = a;",
    "template parameter": "template <typename T> inline void f(T& p) { p = 1; } --- float a; f(a); y[0] = a;",
    "structure parameter": "struct S { int a; }; inline void f(S* p) { p->a = 1; } --- S a; f(&a); y[0] = a.a;",
    "returned pointer": "inline float* f(device float* p) { return p; } --- y[0] = f(y)[0];",
    "sincos into device memory": "y[0] = sincos(x[0], y[1]);",
    "threadgroup array with values": "threadgroup float t[2] = {1, 2}; y[0] = t[0];",
    "threadgroup variable with a value": "threadgroup float t = 1; y[0] = t;",
    "threadgroup variable in a function": "inline float f() { threadgroup float t[2]; return t[0]; } --- y[0] = f();",
    "threadgroup variable in program scope": "threadgroup float t[4]; --- y[0] = t[0];",
    "variable in program scope": "float g = 1; --- y[0] = g;",
    "constexpr in program scope": "constexpr int N = 4; --- y[0] = N;",
    "static member": "struct S { static constexpr int n = 4; }; --- y[0] = S::n;",
    "member function of no space": "struct S { int a; int f() { return a; } }; --- S s = {1}; y[0] = s.f();",
    "constant member of no space": "struct S { int a; int f() const { return a; } }; --- S s = {1}; y[0] = s.f();",
    "call operator of no space": (
        "struct S { float operator()(float b) const { return b; } }; --- S s; y[0] = s(1.0f);"
    ),
    "static variable": "static int n = 0; n++; y[0] = n;",
    "static variable in a function": "inline int f() { static int n = 0; return n++; } --- y[0] = f();",
    "thread_local": "thread_local int i = 0; y[0] = i;",
    "double": "double a = 1; y[0] = a;",
    "long double": "y[0] = float(1.0L);",
    "std": "y[0] = std::exp(1.0f);",
    "standard header": "#include <vector>\n --- y[0] = 1;",
    "printf": 'y[0] = printf("a");',
    "goto": "int i = 0; again: i++; if (i < 3) goto again; y[0] = i;",
    "try": "try { y[0] = 1; } catch (...) {}",
    "throw": "throw 1;",
    "new": "thread float* p = new float[3]; y[0] = p[0];",
    "virtual": "struct A { virtual int f() { return 1; } }; --- A a; y[0] = a.f();",
    "derived class": "struct A { int a; }; struct B : A { int b; }; --- B b; b.a = 1; y[0] = b.a;",
    "typeid": "y[0] = typeid(int) == typeid(float);",
    "lambda": "auto f = [](float a) { return a; }; y[0] = f(1);",
    "recursion": "inline float f(int n) { return n ? f(n - 1) + 1 : 0; } --- y[0] = f(int(x[0]));",
    "recursion by way of another": (
        "float g(int n); inline float f(int n) { return n ? g(n - 1) + 1 : 0; } float g(int n) { return f(n); } "
        "--- y[0] = f(int(x[0]));"
    ),
    "array of variable length": "int n = int(x[0]); float a[n]; a[0] = 1; y[0] = a[0];",
    "variable without a value": "float s; y[0] = s;",
    "half and float": "y[0] = max(h[0], x[0]);",
    "uint and int": "uint u = 3; int i = 4; y[0] = max(u, i);",
    "integer and float": "y[0] = max(0, x[0]);",
    "position and integer": "y[0] = min(thread_position_in_grid.x, 3);",
    "clamp of mixed types": "y[0] = clamp(x[0], 0, 1);",
    "exp of an integer": "int i = 1; y[0] = exp(i);",
    "float to bfloat": "b[0] = x[0];",
    "literal to bfloat": "bfloat v = 1.0f; b[0] = v;",
    "sum to bfloat": "b[0] += x[0];",
    "product to bfloat": "auto v = b[0] * x[0]; b[1] = v;",
    "int to bfloat": "int i = 3; b[0] = i;",
    "half to bfloat": "b[0] = h[0];",
    "bfloat to half": "h[0] = b[0];",
    "float4 to half4": "float4 a = float4(1); half4 q = a; y[0] = q.x;",
    "vector to scalar": "float4 a = float4(1); y[0] = a.xy;",
    "too few elements": "float4 a = float4(1, 2, 3); y[0] = a.x;",
    "element of a matrix": "simdgroup_float8x8 m(1.0f); y[0] = m[0];",
    "the emulator's own name": "simdgroup_float8x8 m(1.0f); y[0] = m.emu_elements[0];",
    "product of matrices": "simdgroup_float8x8 m(1.0f); m = m * m;",
    "float atomic in threadgroup memory": (
        "threadgroup atomic<float> t; atomic_fetch_add_explicit(&t, 1.0f, memory_order_relaxed); y[0] = 1;"
    ),
    "float atomic maximum": "atomic_fetch_max_explicit((device atomic<float>*)y, 1.0f, memory_order_relaxed);",
    "other memory order": "atomic_fetch_add_explicit((device atomic<int>*)y, 1, memory_order_seq_cst);",
    "name that does not exist": "y[0] = foo(x[0]);",
}

GOOD = {
    "address spaces": (
        "threadgroup float t[4]; threadgroup float* p = t; p[0] = w[0]; y[0] = row_sum(x, 4) + t[0]; "
        "auto* q = x + 1; auto r = w + 1; y[1] = *q + r[0]; device auto& d = y[2]; d = 1;"
    ),
    "thread pointers": (
        "float a[4] = {1, 2, 3, 4}; thread float* p = a; thread float& r = a[1]; r += *p; y[0] = r; "
        "const thread float* q = &a[2]; thread auto& z = a[2]; y[1] = *q + z;"
    ),
    "products and masks": (
        "float a = 1, c = 2; y[0] = a * c; uint n = 3; const uint m = n & 1; y[1] = (a)*c + float(n)*c + float(m & n); "
        "y[2] = *x * *x; y[3] = x[0]**x; bool f = a && m; y[4] = f;"
    ),
    "literals": "y[0] = 1.0 * x[0] + 0.5h + 2; h[0] = 0.5h; h[1] = x[0]; b[0] = 1.5bf; y[1] = -INFINITY + INT_MAX;",
    "bfloat": (
        "b[0] = bfloat(x[0]); b[1] = b[0] * b[2]; y[0] = b[0] * x[0]; b[2] = static_cast<bfloat>(x[0]); "
        "b[3] = exp(b[0]); b[4] = -b[1]; b[5] += b[2]; b[6] = max(b[0], b[1]);"
    ),
    "vectors": (
        "float4 a = float4(1, 2, 3, 4), c; float2 d(1.0f, 2.0f); float3 e = float3(d, 1.0f); a.xy += d; c = a * 2.0f; "
        "half4 q = half4(a); y[0] = dot(a, c) + e.z + float(q.w); vec<float, 4> z = vec<float, 4>(1.0f); "
        "y[1] = z.w + metal::float4(2.0f).x + float4(w[0])[1]; float4 arr[2]; arr[0] = a; y[2] = arr[0][1];"
    ),
    "pointers to vectors": (
        "auto p = (const device float4*)x; float4 v = p[1]; ((device float4*)y)[0] = v; "
        "((device float2*)y)[3].x = v.y; device float4& r = ((device float4*)y)[1]; r = v; "
        "*((device half4*)h) = half4(v);"
    ),
    "packed vectors": (
        "device packed_float3* p = (device packed_float3*)y; p[0].x = 1; float3 v = float3(p[0].x, p[0].y, p[0].z); "
        "p[1].y = v.x; auto c = (const device packed_uchar3*)x; uchar3 u = uchar3(c[1].x, c[1].y, c[1].z); y[9] = u.x;"
    ),
    "qualified names": (
        "using namespace metal; using F4 = vec<float, 4>; typedef float2 F2; --- y[0] = metal::exp(x[0]) + "
        "metal::fast::exp2(x[1]) + precise::sin(x[0]) + fast::exp(x[2]) + F4(1, 2, 3, 4).x + F2(1).y; float c; "
        "y[1] = sincos(x[0], c) + c;"
    ),
    "structures": (
        "struct P { float a; int b; }; --- const device P* p = (const device P*)x; P q = p[1]; y[0] = q.a + q.b; P z; "
        "z.a = 1; z = p[2]; threadgroup P t[2]; t[0].a = z.a; P u = t[0]; y[1] = u.a;"
    ),
    "structures with braces": (
        "struct A { float v; int k; }; inline A make(float v) { return {v, 1}; } --- A a = {1, 2}; A d{1, 2}; "
        "y[0] = make(a.v).v + d.k;"
    ),
    "methods and static members": (
        "template <int D> struct Tile { static constant constexpr int n = D * 2; float v[D]; "
        "thread float& at(int i) thread { return v[i]; } float first() const thread { return v[0]; } }; "
        "--- Tile<4> t; t.at(0) = 2; y[0] = t.first() + Tile<4>::n;"
    ),
    "constructors, operators and static functions": (
        "struct S { int a[2]; S(int b) { a[0] = b; } static int f(int b) { return b + 1; } int n = f(2); "
        "float operator()(float b) const thread { return b * a[0]; } }; --- S s(2); y[0] = s(1.0f) + S::f(3) + s.n;"
    ),
    "constants": (
        "constexpr constant float table[4] = {1, 2, 3, 4}; constant int more[3] = {1, 2, 3}; "
        "static constant float S = 2; "
        "--- constexpr int N = 4; float a[N]; a[0] = N; y[0] = a[0] + table[int(x[0])] + more[1] + S; y[1] = M_LOG2E_F;"
    ),
    "templates over address spaces": (
        "template <typename P> inline float f(P p) { return p[0] * p[1]; } --- y[0] = f(x) + f(w); "
        "threadgroup float t[2]; t[0] = t[1] = 1; y[1] = f(t); float l[2] = {1, 2}; y[2] = f(&l[0]);"
    ),
    "array parameters": "inline float f(float p[2]) { return p[0]; } --- float a[2] = {1, 2}; y[0] = f(a);",
    "helpers": (
        "#define SQUARE(a) ((a) * (a))\nMETAL_FUNC float f(float a) { return a; } "
        "template <typename T, int N> METAL_FUNC void g(thread T* p, const device T* q, threadgroup T& r, "
        "constant T& c) { for (int i = 0; i < N; ++i) "
        "p[i] = q[i] + r + c; } --- float a[2]; threadgroup float t; t = 1; g<float, 2>(a, x, t, w[0]); "
        "y[0] = SQUARE(f(a[1]));"
    ),
    "headers of Metal": "#include <metal_stdlib>\n#include <metal_simdgroup_matrix>\n --- y[0] = 1;",
    "simd operations": (
        "float s = simd_sum(x[0]); s += simd_max(s) + simd_shuffle_down(s, 1) + simd_shuffle_xor(s, ushort(1)); "
        "y[0] = s + simd_broadcast(s, 0) + simd_broadcast_first(s) + simd_shuffle(s, 3); "
        "y[1] = simd_all(s > 1) ? 1 : 2; h[1] = simd_sum(h[0]); b[1] = simd_max(b[0]); "
        "y[2] = simd_sum(float4(s)).x + simd_prefix_exclusive_sum(1u);"
    ),
    "matrices": (
        "simdgroup_matrix<float, 8, 8> m = make_filled_simdgroup_matrix<float, 8, 8>(0.0f), n; "
        "simdgroup_load(n, x, 8); simdgroup_multiply_accumulate(m, n, n, m); "
        "m.thread_elements() *= 2.0f; m.thread_elements()[0] = 1; "
        "simdgroup_store(m, y, 8); simdgroup_half8x8 q(1.0h); simdgroup_multiply_accumulate(m, q, n, m); "
        "simdgroup_bfloat8x8 r; simdgroup_load(r, b, 8, ulong2(0, 0), true); simdgroup_multiply(m, r, r);"
    ),
    "atomics": (
        "threadgroup atomic<uint> c; threadgroup atomic_int d[3]; atomic_store_explicit(&c, 0u, memory_order_relaxed); "
        "atomic_store_explicit(&d[1], 0, memory_order_relaxed); y[3] = atomic_load_explicit(&c, memory_order_relaxed); "
        "atomic_fetch_add_explicit((device atomic_float*)y + 1, 1.0f, memory_order_relaxed);"
    ),
    "threadgroup variables": (
        "threadgroup float a[4][8], c[4]; a[1][2] = c[0] = 1; threadgroup float* q = a[1]; "
        "threadgroup float (*p)[8] = a; y[0] = q[2] + p[1][2]; threadgroup float4 v[2]; "
        "v[0] = float4(1); y[1] = v[0].x;"
    ),
    "pragmas and types": (
        "float s = 0;\n#pragma unroll\nfor (int i = 0; i < 4; ++i) s += x[i];\nMLX_MTL_PRAGMA_UNROLL\n"
        "for (ushort i = 0; i < 4; ++i) s += x[i]; enum class F : ushort { C = 1 }; size_t n = size_t(x[0]) * 3; "
        "int64_t k = n; if constexpr (sizeof(float) == 4) y[0] = k + int(F::C) + s;"
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses(case: str) -> None:
    found = emu.mistakes(text(BAD[case]))
    assert found
    assert re.match(r"kernel\.metal:\d+(:\d+)?: (fatal )?error: ", found[0]), found


@pytest.mark.parametrize("case", GOOD)
def test_accepts(case: str) -> None:
    build(text(GOOD[case]))


def test_messages_name_the_line() -> None:
    line = text("MARK").split("\n").index("MARK") + 1
    lint, clang = emu.mistakes(text("float a = 1;\nfloat* p = nothing;\ny[0] = a;"))
    assert lint == f"kernel.metal:{line + 1}: error: 'float *' needs an address space: thread, device, ..."
    assert clang == f"kernel.metal:{line + 1}:12: error: use of undeclared identifier 'nothing'"
    (library,) = emu.mistakes(text("int i;\n\ny[0] = float2(1, 2, 3).x;"))
    assert library.startswith(f"kernel.metal:{line + 2}:8: error: static assertion failed")


def test_comments_and_strings_are_not_linted() -> None:
    assert emu.mistakes(text("// double std::x new goto float* p\n/* throw\nvirtual */ y[0] = 1;")) == []


@pytest.mark.parametrize("attribute", ["thread_position_in_nowhere", "stage_in"])
def test_unknown_attribute(attribute: str) -> None:
    kernel = f"[[kernel]] void k(device float* y [[buffer(0)]], uint i [[{attribute}]]) {{ y[i] = 1; }}"
    assert emu.mistakes(kernel) == [f"the emulator does not know the attribute [[{attribute}]]"]


def test_one_kernel_a_text() -> None:
    assert "found 0" in emu.mistakes("inline float f(float a) { return a; }")[0]


# --- compilers and machines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["aarch64-unknown-linux-gnu", "arm64-apple-macos13", "x86_64-apple-macos13", "x86_64-unknown-linux-gnu"]
)
def test_other_machines(target: str, tmp_path: Path) -> None:
    """The runtime, its switch between fibers included, and a kernel compile; what they do there is not seen here."""
    tools = compiler.toolchain().compiling_for(target)
    compile_runtime(tools, tmp_path / "runtime.o")
    kernel = text(GOOD["matrices"])
    compile_object(source.prepare(kernel), kernel, True, tools, tmp_path / "kernel.o")
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing compiler is an error with the way out, never a skipped test."""
    monkeypatch.delenv("METAL_EMULATOR_CXX", raising=False)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(emu.CompilerMissing, match="found neither: pip install ziglang"):
        compiler.toolchain.__wrapped__()


@pytest.mark.parametrize(("version", "taken"), [("Debian clang version 16.0.6", False), ("clang version 17.0.1", True)])
def test_system_clang(
    version: str, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A system clang is preferred if it is new enough."""
    fake = tmp_path / "clang++"
    fake.write_text(f"#!/bin/sh\necho '{version}'\n")
    fake.chmod(0o755)
    monkeypatch.delenv("METAL_EMULATOR_CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    tools = compiler.toolchain.__wrapped__()
    assert (tools.driver == (str(fake),)) is taken
    assert taken or Path(tools.driver[0]).name == "zig"
    monkeypatch.setenv("METAL_EMULATOR_CXX", "clang++")
    if not taken:
        with pytest.raises(emu.CompilerMissing, match=r"METAL_EMULATOR_CXX=clang\+\+"):
            compiler.toolchain.__wrapped__()


def test_old_files_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAL_EMULATOR_CACHE", str(tmp_path))
    old, new = tmp_path / "old.so", tmp_path / "new.so"
    for path, days in ((old, compiler.KEEP_DAYS + 1), (new, compiler.KEEP_DAYS - 1)):
        path.touch()
        compiler.os.utime(path, (0, compiler.time.time() - 86400 * days))
    assert compiler.folder.__wrapped__() == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["new.so"]
