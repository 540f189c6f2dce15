// Gradient of attention.metal for keys and values; names as there and in attention_query_grad.metal.
//
//   value_grad_j = sum_i p_ij out_grad_i        key_grad_j = sum_i ds_ij q_i
//
// key_grad, value_grad [B, L, G, D]; with OWN too these are those of `keys` and `values` alone.
// A simdgroup takes 8 keys, holds HELD fragments of them and of their values, and goes over the packed rows that see
// any key of its threadgroup, TILE rows at a time.
constexpr int THREADS = 32 * SIMDGROUPS;
constexpr int FRAGMENTS = D / 8;
constexpr int PITCH = D + 16 / sizeof(T);
constexpr int PARKED = (FRAGMENTS - HELD) * THREADS * 2 + 1;  // none are parked in most builds
threadgroup T query_tile[TILE * PITCH];
threadgroup T grad_tile[TILE * PITCH];
threadgroup T parked_k[PARKED];
threadgroup T parked_v[PARKED];
threadgroup int row_first[TILE];
threadgroup int row_end[TILE];
threadgroup float row_log[TILE];
threadgroup float row_product[TILE];

const int tid = thread_index_in_threadgroup;
const int lane = thread_index_in_simdgroup;
const int group = threadgroup_position_in_grid.y;
const int batch = threadgroup_position_in_grid.z;
const int num_queries = queries_shape[1], heads = queries_shape[2];
const int num_keys = keys_shape[1], groups = keys_shape[2];
const int column = fragment_column(lane);
const int block = threadgroup_position_in_grid.x * SIMDGROUPS * 8;
const int own_block = block + simdgroup_index_in_threadgroup * 8;
const int key = own_block + fragment_row(lane);
const size_t key_place = packed<1>(batch, num_keys, groups, group, key) * D + column;
const float scale = metal::precise::rsqrt(float(D));

#ifdef ROPE
threadgroup float2 high_turns[SIDE * D / 2];
threadgroup float2 low_turns[SIDE * D / 2];
threadgroup ushort key_places[SIDE * SIDE];
threadgroup ushort row_places[TILE];
load_turns<SIDE, D>(high_turns, low_turns, rotary, rotary_shape[1], tid, THREADS);
for (int i = tid; i < num_keys; i += THREADS) {
#ifdef PLACES
  key_places[i] = ushort(places[batch * num_keys + i]);
#else
  key_places[i] = ushort(i);
#endif
}
threadgroup_barrier(mem_flags::mem_threadgroup);            // turns are there
const int turn = key < num_keys ? key_places[key] : 0;
#endif

float2 k[HELD], v[HELD], dk[FRAGMENTS], dv[FRAGMENTS];
UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
  float2 x = key < num_keys ? load_pair(keys + key_place + f * 8) : float2(0.0f);
  const float2 y = key < num_keys ? load_pair(values + key_place + f * 8) : float2(0.0f);
#ifdef ROPE
  x = rotate_pair(x, turn_of<SIDE, D>(high_turns, low_turns, turn, (f * 8 + column) / 2));
#endif
  put_operand<HELD, THREADS>(k, parked_k, f, tid, float2(float(T(x.x)), float(T(x.y))));
  put_operand<HELD, THREADS>(v, parked_v, f, tid, y);
  dk[f] = float2(0.0f, 0.0f);
  dv[f] = float2(0.0f, 0.0f);
}

for (int tile = 0; tile < num_queries * REPEAT; tile += TILE) {
  threadgroup_barrier(mem_flags::mem_threadgroup);          // everyone is done with the tile before
  for (int i = tid; i < TILE; i += THREADS) {
    const int query = (tile + i) / REPEAT;
    const size_t span = (size_t(batch) * num_queries + query) * 2;
    row_first[i] = query < num_queries ? int(spans[span]) : num_keys;
    row_end[i] = query < num_queries ? int(spans[span + 1]) : 0;
#ifdef ROPE
    row_places[i] = row_end[i] > 0 ? key_places[row_end[i] - 1] : ushort(0);
#endif
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);          // spans are there
  bool seen_by_block = false, seen_by_own = false;
  for (int i = lane; i < TILE; i += 32) {
    const int first = row_first[i], end = row_end[i];
    seen_by_block = first < block + SIMDGROUPS * 8 && block < end;
    seen_by_own = first < own_block + 8 && own_block < end;
  }
  if (!metal::simd_any(seen_by_block)) {
    continue;
  }
#ifdef ROPE
  load_turned_tile<REPEAT, D, TILE, PITCH, SIDE>(
      query_tile, queries, batch, num_queries, heads, group, tile, tid, THREADS, row_places, high_turns, low_turns);
#else
  load_tile<REPEAT, D, TILE, PITCH>(query_tile, queries, batch, num_queries, heads, group, tile, tid, THREADS);
#endif
  load_tile<REPEAT, D, TILE, PITCH>(grad_tile, out_grad, batch, num_queries, heads, group, tile, tid, THREADS);
  for (int i = tid; i < TILE; i += THREADS) {
    const bool valid = tile + i < num_queries * REPEAT;
    const size_t place = packed<REPEAT>(batch, num_queries, heads, group, tile + i);
    row_log[i] = valid ? float(sums[place]) : 0.0f;
    row_product[i] = valid ? float(products[place]) : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);          // the tile is there
  if (!metal::simd_any(seen_by_own)) {
    continue;
  }
  UNROLL for (int j = 0; j < TILE / 8; ++j) {
    float2 s = float2(0.0f, 0.0f), dp = float2(0.0f, 0.0f);   // keys down, rows across
    UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
      const float2 q = load_transposed(query_tile, PITCH, f * 8 + fragment_row(lane), j * 8 + column);
      const float2 g = load_transposed(grad_tile, PITCH, f * 8 + fragment_row(lane), j * 8 + column);
      s = multiply_add(operand<HELD, THREADS>(k, parked_k, f, tid), q, s);
      dp = multiply_add(operand<HELD, THREADS>(v, parked_v, f, tid), g, dp);
    }
    UNROLL for (int e = 0; e < 2; ++e) {
      const int i = j * 8 + column + e;
      const bool seen = row_first[i] <= key && key < row_end[i];
      const float weight = seen ? metal::precise::exp2(s[e] * scale * LOG2_E - row_log[i]) : 0.0f;
      s[e] = weight;
      dp[e] = weight * (dp[e] - row_product[i]) * scale;
    }
    UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
      const float2 g = load_fragment(grad_tile, PITCH, j * 8 + fragment_row(lane), f * 8 + column);
      const float2 q = load_fragment(query_tile, PITCH, j * 8 + fragment_row(lane), f * 8 + column);
      dv[f] = multiply_add(s, g, dv[f]);
      dk[f] = multiply_add(dp, q, dk[f]);
    }
  }
}

if (key < num_keys) {
  UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
#ifdef ROPE
    dk[f] = unrotate_pair(dk[f], turn_of<SIDE, D>(high_turns, low_turns, turn, (f * 8 + column) / 2));
#endif
    store_pair(key_grad + key_place + f * 8, dk[f]);
    store_pair(value_grad + key_place + f * 8, dv[f]);
  }
}
