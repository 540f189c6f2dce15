// Gradient of attention.metal for keys and values; names as there and in attention_query_grad.metal.
//
//   value_grad_j = sum_i p_ij out_grad_i        key_grad_j = sum_i ds_ij q_i
//
// key_grad, value_grad [B, L, G, D]; with OWN too these are those of `keys` and `values` alone.
// A simdgroup holds 8 keys and goes over the packed rows that see any key of its threadgroup, tile by tile.
constexpr int THREADS = 32 * SIMDGROUPS;
constexpr int FRAGMENTS = D / 8;
constexpr int TILE = D * sizeof(T) <= 256 ? 32 : 16;        // rows at a time
constexpr int PITCH = D + 16 / sizeof(T);
threadgroup T query_tile[TILE * PITCH];
threadgroup T grad_tile[TILE * PITCH];
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
threadgroup uint turns[D / 2];
for (int i = tid; i < D / 2; i += THREADS) {
  turns[i] = frequencies[i];
}
threadgroup_barrier(mem_flags::mem_threadgroup);            // frequencies are there
#endif

Fragment k[FRAGMENTS], v[FRAGMENTS], dk[FRAGMENTS], dv[FRAGMENTS];
UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
  float2 x = key < num_keys ? load_pair(keys + key_place + f * 8) : float2(0.0f);
  const float2 y = key < num_keys ? load_pair(values + key_place + f * 8) : float2(0.0f);
#ifdef ROPE
  x = rotate_pair(x, turned(key, turns[(f * 8 + column) / 2]));
#endif
  k[f] = make_fragment(float(T(x.x)), float(T(x.y)));
  v[f] = make_fragment(y.x, y.y);
  dk[f] = make_fragment(0.0f, 0.0f);
  dv[f] = make_fragment(0.0f, 0.0f);
}

for (int tile = 0; tile < num_queries * REPEAT; tile += TILE) {
  threadgroup_barrier(mem_flags::mem_threadgroup);          // everyone is done with the tile before
  for (int i = tid; i < TILE; i += THREADS) {
    const int query = (tile + i) / REPEAT;
    const size_t span = (size_t(batch) * num_queries + query) * 2;
    row_first[i] = query < num_queries ? int(spans[span]) : num_keys;
    row_end[i] = query < num_queries ? int(spans[span + 1]) : 0;
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
  const ByEnd turn = {turns, row_end};
#else
  const Still turn = {};
#endif
  load_tile<REPEAT, D, TILE, PITCH>(query_tile, queries, batch, num_queries, heads, group, tile, tid, THREADS, turn);
  load_tile<REPEAT, D, TILE, PITCH>(grad_tile, out_grad, batch, num_queries, heads, group, tile, tid, THREADS, Still{});
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
    Fragment s = make_fragment(0.0f, 0.0f), dp = make_fragment(0.0f, 0.0f);   // keys down, rows across
    UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
      const Fragment q = load_transposed(query_tile, PITCH, f * 8 + fragment_row(lane), j * 8 + column);
      const Fragment g = load_transposed(grad_tile, PITCH, f * 8 + fragment_row(lane), j * 8 + column);
      simdgroup_multiply_accumulate(s, k[f], q, s);
      simdgroup_multiply_accumulate(dp, v[f], g, dp);
    }
    UNROLL for (int e = 0; e < 2; ++e) {
      const int i = j * 8 + column + e;
      const bool seen = row_first[i] <= key && key < row_end[i];
      const float score = s.thread_elements()[e] * scale * LOG2_E;
      const float weight = seen ? metal::precise::exp2(score - row_log[i]) : 0.0f;
      s.thread_elements()[e] = weight;
      dp.thread_elements()[e] = weight * (dp.thread_elements()[e] - row_product[i]) * scale;
    }
    UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
      const Fragment g = load_fragment(grad_tile, PITCH, j * 8 + fragment_row(lane), f * 8 + column);
      const Fragment q = load_fragment(query_tile, PITCH, j * 8 + fragment_row(lane), f * 8 + column);
      simdgroup_multiply_accumulate(dv[f], s, g, dv[f]);
      simdgroup_multiply_accumulate(dk[f], dp, q, dk[f]);
    }
  }
}

if (key < num_keys) {
  UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
    float2 x = values_of(dk[f]);
#ifdef ROPE
    x = unrotate_pair(x, turned(key, turns[(f * 8 + column) / 2]));
#endif
    store_pair(key_grad + key_place + f * 8, x);
    store_pair(value_grad + key_place + f * 8, values_of(dv[f]));
  }
}
