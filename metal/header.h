// Shared by all kernels: MLX puts this text, after its own, before each kernel's body.

#ifndef UNROLL                                      // loops over registers; the emulator leaves them rolled
#define UNROLL _Pragma("clang loop unroll(full)")
#endif

constexpr constant float LOWEST = -1e37f;           // below all scores; no infinities, which fast math may drop
constexpr constant float LOG2_E = 1.44269504f;

// ---- fragments: 8x8 float matrices over the lanes of a simdgroup; a lane holds two neighbours of one row ----

typedef metal::simdgroup_matrix<float, 8, 8> Fragment;

METAL_FUNC int fragment_row(uint lane) {
  return int(((lane / 4) & 4) + (lane / 2) % 4);
}

METAL_FUNC int fragment_column(uint lane) {
  return int(((lane / 4) & 2) * 2 + (lane % 2) * 2);
}

METAL_FUNC Fragment make_fragment(float left, float right) {
  Fragment f;
  f.thread_elements()[0] = left;
  f.thread_elements()[1] = right;
  return f;
}

METAL_FUNC float2 values_of(Fragment f) {
  return float2(f.thread_elements()[0], f.thread_elements()[1]);
}

// Element (r, c) of the fragment is tile[r][c].
template <typename T>
METAL_FUNC Fragment load_fragment(const threadgroup T* tile, int pitch, int row, int column) {
  const threadgroup T* p = tile + row * pitch + column;
  return make_fragment(float(p[0]), float(p[1]));
}

// Element (r, c) of the fragment is tile[c][r].
template <typename T>
METAL_FUNC Fragment load_transposed(const threadgroup T* tile, int pitch, int row, int column) {
  const threadgroup T* p = tile + column * pitch + row;
  return make_fragment(float(p[0]), float(p[pitch]));
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

// ---- pairs: two neighbouring numbers, which RoPE rotates together ----

template <typename T>
METAL_FUNC float2 load_pair(const device T* p) {
  return float2(float(p[0]), float(p[1]));
}

template <typename T>
METAL_FUNC void store_pair(device T* p, float2 x) {
  p[0] = T(x.x);
  p[1] = T(x.y);
}

template <typename T>
METAL_FUNC void store_pair(threadgroup T* p, float2 x) {
  p[0] = T(x.x);
  p[1] = T(x.y);
}

// Cosine and sine of a position's angle; a frequency counts 2^-32 of a turn, so that products wrap as angles do.
METAL_FUNC float2 turned(int position, uint frequency) {
  const float angle = float(as_type<int>(uint(position) * frequency)) * (M_PI_F / 2147483648.0f);
  return float2(metal::precise::cos(angle), metal::precise::sin(angle));
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

// How a pair of a row turns as it is loaded: not at all, by the row's number, or by what ends its span.
struct Still {
  METAL_FUNC float2 operator()(float2 x, int, int, int) const { return x; }
};

struct ByRow {
  const threadgroup uint* frequencies;
  METAL_FUNC float2 operator()(float2 x, int row, int, int pair) const {
    return rotate_pair(x, turned(row, frequencies[pair]));
  }
};

struct ByEnd {
  const threadgroup uint* frequencies;
  const threadgroup int* ends;
  METAL_FUNC float2 operator()(float2 x, int, int local, int pair) const {
    return rotate_pair(x, turned(ends[local] - 1, frequencies[pair]));
  }
};

// ---- rows of [B, count, heads, D], packed for a group of REPEAT heads: those of an element are neighbours ----

template <int REPEAT>
METAL_FUNC size_t packed(int batch, int count, int heads, int group, int row) {
  return (size_t(batch) * count + row / REPEAT) * heads + group * REPEAT + row % REPEAT;
}

// Packed rows start .. start + TILE as a tile; rows beyond the last are 0.
template <int REPEAT, int D, int TILE, int PITCH, typename T, typename Turn>
METAL_FUNC void load_tile(
    threadgroup T* tile, const device T* source, int batch, int count, int heads, int group, int start,
    int thread_index, int threads, Turn turn) {
  for (int i = thread_index; i < TILE * D / 2; i += threads) {
    const int local = i / (D / 2), pair = i % (D / 2), row = start + local;
    float2 x = float2(0.0f);
    if (row < count * REPEAT) {
      x = turn(load_pair(source + packed<REPEAT>(batch, count, heads, group, row) * D + pair * 2), row, local, pair);
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
