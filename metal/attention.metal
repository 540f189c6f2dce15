// Attention of queries to a range of keys each, and with OWN to a key of their own; see docs/kernels.md.
//
//   y_i = softmax(D^-0.5 [q_i . k_j for first_i <= j < end_i, q_i . own_key_i]) [v_j, own_value_i]
//
// queries [B, Q, H, D]   keys, values [B, L, G, D]   spans int [B, Q, 2]: first, end   own_* [B, Q, G, D]
// out [B, Q, H, D]       sums float [B, Q, H]: log2 of the softmax's denominator
// With ROPE, key j turns by its place and query i by that of key end_i - 1: rotary float [2, L, D / 2], see load_turns.
// With PLACES, these are places int [B, L]; without, the place of key j is j. SIDE is the table's, SIDE SIDE >= L.
// T type, D head size, REPEAT = H / G, SIMDGROUPS of a threadgroup, ROWS fragments of rows in a simdgroup, TILE keys at
// a time. A threadgroup takes BLOCK packed rows of one group of heads and goes over the keys that they see.
constexpr int THREADS = 32 * SIMDGROUPS;
constexpr int FRAGMENTS = D / 8;
constexpr int BLOCK = SIMDGROUPS * ROWS * 8;
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
threadgroup float2 high_turns[SIDE * D / 2];
threadgroup float2 low_turns[SIDE * D / 2];
threadgroup ushort key_places[SIDE * SIDE];
load_turns<SIDE, D>(high_turns, low_turns, rotary, rotary_shape[1], tid, THREADS);
for (int i = tid; i < num_keys; i += THREADS) {
#ifdef PLACES
  key_places[i] = ushort(places[batch * num_keys + i]);
#else
  key_places[i] = ushort(i);
#endif
}
#endif
for (int i = tid; i < BLOCK; i += THREADS) {
  const int query = (start + i) / REPEAT;
  const size_t span = (size_t(batch) * num_queries + query) * 2;
  row_first[i] = query < num_queries ? int(spans[span]) : num_keys;
  row_end[i] = query < num_queries ? int(spans[span + 1]) : 0;
}
threadgroup_barrier(mem_flags::mem_threadgroup);            // spans and turns are there

int first = num_keys, end = 0, simd_end = 0;                // of the keys that the block and the simdgroup see
for (int i = lane; i < BLOCK; i += 32) {
  if (row_first[i] < row_end[i]) {
    first = metal::min(first, row_first[i]);
    end = metal::max(end, row_end[i]);
  }
}
first = metal::simd_min(first);
end = metal::simd_max(end);

float2 q[ROWS][FRAGMENTS], y[ROWS][FRAGMENTS];
float highest[ROWS], total[ROWS];
UNROLL for (int a = 0; a < ROWS; ++a) {
  const int row = start + local + a;
  const bool valid = row < num_queries * REPEAT;
  const size_t place = packed<REPEAT>(batch, num_queries, heads, group, row) * D + column;
  simd_end = metal::max(simd_end, row_end[local + a]);
#ifdef ROPE
  const int turn = row_end[local + a] > 0 ? key_places[row_end[local + a] - 1] : 0;
#endif
  UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
    float2 x = valid ? load_pair(queries + place + f * 8) : float2(0.0f);
#ifdef ROPE
    x = rotate_pair(x, turn_of<SIDE, D>(high_turns, low_turns, turn, (f * 8 + column) / 2));
#endif
    q[a][f] = float2(float(T(x.x)), float(T(x.y)));
    y[a][f] = float2(0.0f, 0.0f);
  }
  highest[a] = LOWEST;                                      // its weight is nothing beside a key's, so a query that
  total[a] = 1.0f;                                          // sees nothing gives 0
}
simd_end = metal::simd_max(simd_end);

#ifdef OWN
float score[ROWS];
UNROLL for (int a = 0; a < ROWS; ++a) {
  score[a] = 0.0f;
}
UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
  float2 own_key = float2(0.0f), own_value = float2(0.0f);
  UNROLL for (int a = 0; a < ROWS; ++a) {
    const int row = start + local + a;
    const size_t place = packed<1>(batch, num_queries, groups, group, row / REPEAT) * D + column + f * 8;
    if (row < num_queries * REPEAT && (a == 0 || row % REPEAT == 0)) {    // the rows of one query share its key
      own_key = load_pair(own_keys + place);
      own_value = load_pair(own_values + place);
    }
    score[a] += dot2(own_key, q[a][f]);
    y[a][f] = own_value;
  }
}
UNROLL for (int a = 0; a < ROWS; ++a) {
  highest[a] = row_sum(score[a]) * scale;
}
#endif

for (int tile = first / TILE * TILE; tile < end; tile += TILE) {
  threadgroup_barrier(mem_flags::mem_threadgroup);          // everyone is done with the tile before
#ifdef ROPE
  load_turned_tile<1, D, TILE, PITCH, SIDE>(
      key_tile, keys, batch, num_keys, groups, group, tile, tid, THREADS, key_places + tile, high_turns, low_turns);
#else
  load_tile<1, D, TILE, PITCH>(key_tile, keys, batch, num_keys, groups, group, tile, tid, THREADS);
#endif
  load_tile<1, D, TILE, PITCH>(value_tile, values, batch, num_keys, groups, group, tile, tid, THREADS);
  threadgroup_barrier(mem_flags::mem_threadgroup);          // the tile is there
  if (tile >= simd_end) {
    continue;
  }
  float2 s[ROWS][TILE / 8];
  UNROLL for (int j = 0; j < TILE / 8; ++j) {
    UNROLL for (int a = 0; a < ROWS; ++a) {
      s[a][j] = float2(0.0f, 0.0f);
    }
    UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
      const float2 k = load_transposed(key_tile, PITCH, f * 8 + fragment_row(lane), j * 8 + column);
      UNROLL for (int a = 0; a < ROWS; ++a) {
        s[a][j] = multiply_add(q[a][f], k, s[a][j]);
      }
    }
  }
  UNROLL for (int a = 0; a < ROWS; ++a) {
    const int row_from = row_first[local + a] - tile - column, row_to = row_end[local + a] - tile - column;
    float most = highest[a], sum = 0.0f;
    UNROLL for (int j = 0; j < TILE / 8; ++j) {
      UNROLL for (int e = 0; e < 2; ++e) {
        const bool seen = row_from <= j * 8 + e && j * 8 + e < row_to;
        s[a][j][e] *= scale;
        most = seen ? metal::max(most, s[a][j][e]) : most;
      }
    }
    most = row_max(most);
    const float shrink = metal::precise::exp2(highest[a] - most);
    UNROLL for (int j = 0; j < TILE / 8; ++j) {
      UNROLL for (int e = 0; e < 2; ++e) {
        const bool seen = row_from <= j * 8 + e && j * 8 + e < row_to;
        const float weight = seen ? metal::precise::exp2(s[a][j][e] - most) : 0.0f;
        s[a][j][e] = weight;
        sum += weight;
      }
    }
    highest[a] = most;
    total[a] = total[a] * shrink + row_sum(sum);
    UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
      y[a][f] *= shrink;
    }
  }
  UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
    UNROLL for (int j = 0; j < TILE / 8; ++j) {
      const float2 v = load_fragment(value_tile, PITCH, j * 8 + fragment_row(lane), f * 8 + column);
      UNROLL for (int a = 0; a < ROWS; ++a) {
        y[a][f] = multiply_add(s[a][j], v, y[a][f]);
      }
    }
  }
}

UNROLL for (int a = 0; a < ROWS; ++a) {
  const int row = start + local + a;
  if (row < num_queries * REPEAT) {
    const size_t place = packed<REPEAT>(batch, num_queries, heads, group, row);
    UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
      store_pair(out + place * D + f * 8 + column, y[a][f] / total[a]);
    }
    if (column == 0) {
      sums[place] = highest[a] + metal::precise::log2(total[a]);
    }
  }
}
