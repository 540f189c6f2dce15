// Shared by all kernels: MLX puts this text, after its own, before each kernel's body.

#ifndef UNROLL                                      // loops over registers; the emulator leaves them rolled
#define UNROLL _Pragma("clang loop unroll(full)")
#endif

constexpr constant float LOWEST = -1e37f;           // below all scores; no infinity, whose differences are NaN
constexpr constant float LOG2_E = 1.44269504f;

// ---- fragments: 8x8 float matrices over the lanes of a simdgroup; a lane holds two neighbours of one row ----

METAL_FUNC int fragment_row(uint lane) {
  return int(((lane / 4) & 4) + (lane / 2) % 4);
}

METAL_FUNC int fragment_column(uint lane) {
  return int(((lane / 4) & 2) * 2 + (lane % 2) * 2);
}

// a b + c. Fragments are matrices in here alone: arrays of pairs stay in registers, and those of matrices may not.
METAL_FUNC float2 multiply_add(float2 a, float2 b, float2 c) {
  metal::simdgroup_matrix<float, 8, 8> left, right, sum;
  left.thread_elements()[0] = a.x;
  left.thread_elements()[1] = a.y;
  right.thread_elements()[0] = b.x;
  right.thread_elements()[1] = b.y;
  sum.thread_elements()[0] = c.x;
  sum.thread_elements()[1] = c.y;
  simdgroup_multiply_accumulate(sum, left, right, sum);
  return float2(sum.thread_elements()[0], sum.thread_elements()[1]);
}

// Element (r, c) of the fragment is tile[r][c].
template <typename T>
METAL_FUNC float2 load_fragment(const threadgroup T* tile, int pitch, int row, int column) {
  const threadgroup T* p = tile + row * pitch + column;
  return float2(float(p[0]), float(p[1]));
}

// Element (r, c) of the fragment is tile[c][r].
template <typename T>
METAL_FUNC float2 load_transposed(const threadgroup T* tile, int pitch, int row, int column) {
  const threadgroup T* p = tile + column * pitch + row;
  return float2(float(p[0]), float(p[pitch]));
}

// Over the four lanes, and eight columns, that share a row of a fragment.
METAL_FUNC float row_sum(float x) {
  x += metal::simd_shuffle_xor(x, ushort(1));
  return x + metal::simd_shuffle_xor(x, ushort(8));
}

METAL_FUNC float row_max(float x) {
  x = metal::max(x, metal::simd_shuffle_xor(x, ushort(1)));
  return metal::max(x, metal::simd_shuffle_xor(x, ushort(8)));
}

// ---- operands: a lane holds its pairs of the first HELD fragments, and parks the others in threadgroup memory ----

template <int HELD, int THREADS, typename T>
METAL_FUNC void put_operand(thread float2* held, threadgroup T* parked, int fragment, int tid, float2 x) {
  if (fragment < HELD) {
    held[fragment] = x;
  } else {
    parked[((fragment - HELD) * THREADS + tid) * 2] = T(x.x);
    parked[((fragment - HELD) * THREADS + tid) * 2 + 1] = T(x.y);
  }
}

template <int HELD, int THREADS, typename T>
METAL_FUNC float2 operand(const thread float2* held, const threadgroup T* parked, int fragment, int tid) {
  if (fragment < HELD) {
    return held[fragment];
  }
  const threadgroup T* p = parked + ((fragment - HELD) * THREADS + tid) * 2;
  return float2(float(p[0]), float(p[1]));
}

// ---- pairs: two neighbouring numbers, which RoPE rotates together ----

template <typename T>
METAL_FUNC float2 load_pair(const device T* p) {
  const metal::vec<T, 2> x = *reinterpret_cast<const device metal::vec<T, 2>*>(p);
  return float2(float(x.x), float(x.y));
}

template <typename T>
METAL_FUNC void store_pair(device T* p, float2 x) {
  metal::vec<T, 2> y;
  y.x = T(x.x);
  y.y = T(x.y);
  *reinterpret_cast<device metal::vec<T, 2>*>(p) = y;
}

template <typename T>
METAL_FUNC void store_pair(threadgroup T* p, float2 x) {
  p[0] = T(x.x);
  p[1] = T(x.y);
}

METAL_FUNC float2 rotate_pair(float2 x, float2 angle) {
  return float2(x.x * angle.x - x.y * angle.y, x.x * angle.y + x.y * angle.x);
}

METAL_FUNC float2 unrotate_pair(float2 x, float2 angle) {
  return float2(x.x * angle.x + x.y * angle.y, x.y * angle.x - x.x * angle.y);
}

METAL_FUNC float dot2(float2 a, float2 b) {
  return a.x * b.x + a.y * b.y;
}

// ---- rotary table: place p turns by high[p / SIDE] and low[p % SIDE], one after the other ----

// From `rotary [2, places, D / 2]`, cosines and sines, where place a SIDE + b turns as places a SIDE and b together.
template <int SIDE, int D, typename Table>
METAL_FUNC void load_turns(
    threadgroup float2* high, threadgroup float2* low, Table rotary, int places, int tid, int threads) {
  const int sines = places * (D / 2);
  for (int i = tid; i < SIDE * D / 2; i += threads) {
    const int row = i / (D / 2), from = row * SIDE * (D / 2) + i % (D / 2);
    low[i] = float2(rotary[i], rotary[sines + i]);
    if (row * SIDE < places) {
      high[i] = float2(rotary[from], rotary[sines + from]);
    }
  }
}

template <int SIDE, int D>
METAL_FUNC float2 turn_of(const threadgroup float2* high, const threadgroup float2* low, int place, int pair) {
  return rotate_pair(high[place / SIDE * (D / 2) + pair], low[place % SIDE * (D / 2) + pair]);
}

// ---- rows of [B, count, heads, D], packed for a group of REPEAT heads: those of an element are neighbours ----

template <int REPEAT>
METAL_FUNC size_t packed(int batch, int count, int heads, int group, int row) {
  return (size_t(batch) * count + row / REPEAT) * heads + group * REPEAT + row % REPEAT;
}

// Packed rows start .. start + TILE as a tile; rows beyond the last are 0.
template <int REPEAT, int D, int TILE, int PITCH, typename T>
METAL_FUNC void load_tile(
    threadgroup T* tile, const device T* source, int batch, int count, int heads, int group, int start, int tid,
    int threads) {
  const device T* rows = source + packed<REPEAT>(batch, count, heads, group, 0) * D;
  for (int i = tid; i < TILE * D / 2; i += threads) {
    const int local = i / (D / 2), pair = i % (D / 2), row = start + local;
    float2 x = float2(0.0f);
    if (row < count * REPEAT) {
      x = load_pair(rows + (row / REPEAT * heads + row % REPEAT) * D + pair * 2);
    }
    store_pair(tile + local * PITCH + pair * 2, x);
  }
}

// The same, turned by the places of its rows.
template <int REPEAT, int D, int TILE, int PITCH, int SIDE, typename T>
METAL_FUNC void load_turned_tile(
    threadgroup T* tile, const device T* source, int batch, int count, int heads, int group, int start, int tid,
    int threads, const threadgroup ushort* places, const threadgroup float2* high, const threadgroup float2* low) {
  const device T* rows = source + packed<REPEAT>(batch, count, heads, group, 0) * D;
  for (int i = tid; i < TILE * D / 2; i += threads) {
    const int local = i / (D / 2), pair = i % (D / 2), row = start + local;
    float2 x = float2(0.0f);
    if (row < count * REPEAT) {
      x = load_pair(rows + (row / REPEAT * heads + row % REPEAT) * D + pair * 2);
      x = rotate_pair(x, turn_of<SIDE, D>(high, low, places[local], pair));
    }
    store_pair(tile + local * PITCH + pair * 2, x);
  }
}

// ---- a row times a matrix [IN, OUT]: where columns are fewer than threads, several threads share one ----

// Sums of the shared columns; nothing where every column has a thread of its own.
template <int IN, int OUT, int THREADS, typename T>
METAL_FUNC void multiply(threadgroup float* parts, const threadgroup float* x, const device T* matrix, int tid) {
  constexpr int SHARES = THREADS / OUT;
  if (SHARES > 1) {
    float sum = 0.0f;
    for (int i = tid / OUT; i < IN && tid < SHARES * OUT; i += SHARES) {
      sum += x[i] * float(matrix[i * OUT + tid % OUT]);
    }
    parts[tid] = sum;
  }
}

// The product's column, from `multiply`'s parts where it made any.
template <int IN, int OUT, int THREADS, typename T>
METAL_FUNC float product(
    const threadgroup float* parts, const threadgroup float* x, const device T* matrix, int column) {
  constexpr int SHARES = THREADS / OUT;
  float sum = 0.0f;
  if (SHARES > 1) {
    for (int i = 0; i < SHARES; ++i) {
      sum += parts[i * OUT + column];
    }
  } else {
    for (int i = 0; i < IN; ++i) {
      sum += x[i] * float(matrix[i * OUT + column]);
    }
  }
  return sum;
}

// Sums of squares, one a simdgroup.
template <int N, int THREADS>
METAL_FUNC void sum_squares(threadgroup float* squares, const threadgroup float* x, int tid) {
  float sum = 0.0f;
  for (int i = tid; i < N; i += THREADS) {
    sum += x[i] * x[i];
  }
  sum = metal::simd_sum(sum);
  if (tid % 32 == 0) {
    squares[tid / 32] = sum;
  }
}

// What RMSNorm multiplies with.
template <int N, int SIMDGROUPS>
METAL_FUNC float norm_factor(const threadgroup float* squares, float eps) {
  float sum = 0.0f;
  for (int i = 0; i < SIMDGROUPS; ++i) {
    sum += squares[i];
  }
  return metal::precise::rsqrt(sum / N + eps);
}
