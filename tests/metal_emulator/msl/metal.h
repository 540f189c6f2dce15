// Metal's language and library as C++17 for clang. Address spaces are clang's own, so mixing them does not compile and
// every access shows in LLVM IR as addrspace(N), where instrument.py finds it.
#pragma once
#pragma clang system_header  // no warnings here, so that those of a kernel stand out
#include "../runtime/abi.h"
#include "types.h"
#include "vectors.h"
#include "math.h"
#include "integers.h"
#include "sync.h"
#include "simd.h"
#include "matrix.h"
#include "atomics.h"
#include "mlx.h"

using namespace metal;

// What Metal does not have. Last, because the headers above use some of it.
#define double emu_metal_has_no_double
#define goto emu_metal_has_no_goto
#define throw emu_metal_has_no_exceptions
#define virtual emu_metal_has_no_virtual
#define new emu_metal_has_no_new
#define delete emu_metal_has_no_delete
