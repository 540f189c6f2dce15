// Attention of queries to a range of keys each, and with OWN to a key of their own; see docs/kernels.md.
//
//   y_i = softmax(D^-0.5 [q_i . k_j for first_i <= j < end_i, q_i . own_key_i]) [v_j, own_value_i]
//
// queries [B, Q, H, D]   keys, values [B, L, G, D]   spans int [B, Q, 2]: first, end   own_* [B, Q, G, D]
// out [B, Q, H, D]       sums float [B, Q, H]: log2 of the softmax's denominator
// With ROPE, key j turns by j and query i by end_i - 1 (frequencies [D / 2]).
// T type, D head size, REPEAT = H / G, SIMDGROUPS of a threadgroup, ROWS fragments of rows in a simdgroup.
// A threadgroup takes BLOCK packed rows of one group of heads and goes over the keys that they see, tile by tile.
constexpr int THREADS = 32 * SIMDGROUPS;
constexpr int FRAGMENTS = D / 8;
constexpr int BLOCK = SIMDGROUPS * ROWS * 8;
constexpr int TILE = D * sizeof(T) <= 256 ? 32 : 16;        // keys at a time
constexpr int PITCH = D + 16 / sizeof(T);
threadgroup T key_tile[TILE * PITCH];
threadgroup T value_tile[TILE * PITCH];
threadgroup int row_first[BLOCK];
threadgroup int row_end[BLOCK];

const int tid = thread_index_in_threadgroup;
const int lane = thread_index_in_simdgroup;
const int group = threadgroup_position_in_grid.y;
const int batch = threadgroup_position_in_grid.z;
const int start = threadgroup_position_in_grid.x * BLOCK;
const int num_queries = queries_shape[1], heads = queries_shape[2];
const int num_keys = keys_shape[1], groups = keys_shape[2];
const int column = fragment_column(lane);
const int local = simdgroup_index_in_threadgroup * ROWS * 8 + fragment_row(lane) * ROWS;  // the lane's first row
const float scale = metal::precise::rsqrt(float(D)) * LOG2_E;

#ifdef ROPE
threadgroup uint turns[D / 2];
for (int i = tid; i < D / 2; i += THREADS) {
  turns[i] = frequencies[i];
}
#endif
for (int i = tid; i < BLOCK; i += THREADS) {
  const int query = (start + i) / REPEAT;
  const size_t span = (size_t(batch) * num_queries + query) * 2;
  row_first[i] = query < num_queries ? int(spans[span]) : num_keys;
  row_end[i] = query < num_queries ? int(spans[span + 1]) : 0;
}
threadgroup_barrier(mem_flags::mem_threadgroup);            // spans and frequencies are there

int first = num_keys, end = 0, simd_end = 0;                // of the keys that the block and the simdgroup see
for (int i = lane; i < BLOCK; i += 32) {
  if (row_first[i] < row_end[i]) {
    first = metal::min(first, row_first[i]);
    end = metal::max(end, row_end[i]);
  }
}
first = metal::simd_min(first);
end = metal::simd_max(end);

Fragment q[ROWS][FRAGMENTS], y[ROWS][FRAGMENTS];
float highest[ROWS], total[ROWS];
UNROLL for (int a = 0; a < ROWS; ++a) {
  const int row = start + local + a;
  const bool valid = row < num_queries * REPEAT;
  const size_t place = packed<REPEAT>(batch, num_queries, heads, group, row) * D + column;
  simd_end = metal::max(simd_end, row_end[local + a]);
  UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
    float2 x = valid ? load_pair(queries + place + f * 8) : float2(0.0f);
#ifdef ROPE
    x = rotate_pair(x, turned(row_end[local + a] - 1, turns[(f * 8 + column) / 2]));
#endif
    q[a][f] = make_fragment(float(T(x.x)), float(T(x.y)));
    y[a][f] = make_fragment(0.0f, 0.0f);
  }
  highest[a] = LOWEST;                                      // its weight is nothing beside a key's, so a query that
  total[a] = 1.0f;                                          // sees nothing gives 0
}
simd_end = metal::simd_max(simd_end);

#ifdef OWN
float2 own_key[FRAGMENTS], own_value[FRAGMENTS];
UNROLL for (int a = 0; a < ROWS; ++a) {
  const int row = start + local + a;
  const size_t place = packed<1>(batch, num_queries, groups, group, row / REPEAT) * D + column;
  float score = 0.0f;
  UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
    if (row >= num_queries * REPEAT) {
      own_key[f] = own_value[f] = float2(0.0f);
    } else if (a == 0 || row % REPEAT == 0) {               // the rows of one query share its key
      own_key[f] = load_pair(own_keys + place + f * 8);
      own_value[f] = load_pair(own_values + place + f * 8);
    }
    score += dot2(own_key[f], values_of(q[a][f]));
    y[a][f] = make_fragment(own_value[f].x, own_value[f].y);
  }
  highest[a] = row_sum(score) * scale;
}
#endif

for (int tile = first / TILE * TILE; tile < end; tile += TILE) {
  threadgroup_barrier(mem_flags::mem_threadgroup);          // everyone is done with the tile before
#ifdef ROPE
  const ByRow turn = {turns};
#else
  const Still turn = {};
#endif
  load_tile<1, D, TILE, PITCH>(key_tile, keys, batch, num_keys, groups, group, tile, tid, THREADS, turn);
  load_tile<1, D, TILE, PITCH>(value_tile, values, batch, num_keys, groups, group, tile, tid, THREADS, Still{});
  threadgroup_barrier(mem_flags::mem_threadgroup);          // the tile is there
  if (tile >= simd_end) {
    continue;
  }
  Fragment s[ROWS][TILE / 8];
  UNROLL for (int j = 0; j < TILE / 8; ++j) {
    UNROLL for (int a = 0; a < ROWS; ++a) {
      s[a][j] = make_fragment(0.0f, 0.0f);
    }
    UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
      const Fragment k = load_transposed(key_tile, PITCH, f * 8 + fragment_row(lane), j * 8 + column);
      UNROLL for (int a = 0; a < ROWS; ++a) {
        simdgroup_multiply_accumulate(s[a][j], q[a][f], k, s[a][j]);
      }
    }
  }
  UNROLL for (int a = 0; a < ROWS; ++a) {
    const int row_from = row_first[local + a] - tile - column, row_to = row_end[local + a] - tile - column;
    float most = highest[a], sum = 0.0f;
    UNROLL for (int j = 0; j < TILE / 8; ++j) {
      UNROLL for (int e = 0; e < 2; ++e) {
        const bool seen = row_from <= j * 8 + e && j * 8 + e < row_to;
        s[a][j].thread_elements()[e] *= scale;
        most = seen ? metal::max(most, s[a][j].thread_elements()[e]) : most;
      }
    }
    most = row_max(most);
    const float shrink = metal::precise::exp2(highest[a] - most);
    UNROLL for (int j = 0; j < TILE / 8; ++j) {
      UNROLL for (int e = 0; e < 2; ++e) {
        const bool seen = row_from <= j * 8 + e && j * 8 + e < row_to;
        const float weight = seen ? metal::precise::exp2(s[a][j].thread_elements()[e] - most) : 0.0f;
        s[a][j].thread_elements()[e] = weight;
        sum += weight;
      }
    }
    highest[a] = most;
    total[a] = total[a] * shrink + row_sum(sum);
    UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
      y[a][f].thread_elements()[0] *= shrink;
      y[a][f].thread_elements()[1] *= shrink;
    }
  }
  UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
    UNROLL for (int j = 0; j < TILE / 8; ++j) {
      const Fragment v = load_fragment(value_tile, PITCH, j * 8 + fragment_row(lane), f * 8 + column);
      UNROLL for (int a = 0; a < ROWS; ++a) {
        simdgroup_multiply_accumulate(y[a][f], s[a][j], v, y[a][f]);
      }
    }
  }
}

UNROLL for (int a = 0; a < ROWS; ++a) {
  const int row = start + local + a;
  if (row < num_queries * REPEAT) {
    const size_t place = packed<REPEAT>(batch, num_queries, heads, group, row);
    UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
      store_pair(out + place * D + f * 8 + column, values_of(y[a][f]) / total[a]);
    }
    if (column == 0) {
      sums[place] = highest[a] + metal::precise::log2(total[a]);
    }
  }
}
