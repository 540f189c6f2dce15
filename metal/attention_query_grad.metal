// Gradient of attention.metal for the queries; its arguments and packed rows are described there.
//
//   weights p_ij as there,   product_i = out_grad_i . out_i
//   ds_ij = D^-0.5 p_ij (out_grad_i . v_j - product_i)        query_grad_i = sum_j ds_ij k_j
//
// out_grad, query_grad [B, Q, H, D]   products float [B, Q, H]
// With OWN, own_weights float [B, Q, H, 2]: p and ds of the own key, from which its gradients follow.
// A simdgroup takes 8 packed rows; of queries and out_grad it holds HELD fragments.
constexpr int THREADS = 32 * SIMDGROUPS;
constexpr int FRAGMENTS = D / 8;
constexpr int BLOCK = SIMDGROUPS * 8;
constexpr int PITCH = D + 16 / sizeof(T);
constexpr int PARKED = (FRAGMENTS - HELD) * THREADS * 2 + 1;  // none are parked in most builds
threadgroup T key_tile[TILE * PITCH];
threadgroup T value_tile[TILE * PITCH];
threadgroup T parked_q[PARKED];
threadgroup T parked_g[PARKED];
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
const int local = simdgroup_index_in_threadgroup * 8 + fragment_row(lane), row = start + local;
const float scale = metal::precise::rsqrt(float(D));

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

int first = num_keys, end = 0;                              // of the keys that the block sees
for (int i = lane; i < BLOCK; i += 32) {
  if (row_first[i] < row_end[i]) {
    first = metal::min(first, row_first[i]);
    end = metal::max(end, row_end[i]);
  }
}
first = metal::simd_min(first);
end = metal::simd_max(end);
const int simd_end = metal::simd_max(row_end[local]);

const bool valid = row < num_queries * REPEAT;
const size_t place = packed<REPEAT>(batch, num_queries, heads, group, row);
#ifdef ROPE
const int turn = row_end[local] > 0 ? key_places[row_end[local] - 1] : 0;
#endif
float2 q[HELD], g[HELD], dq[FRAGMENTS];
float product = 0.0f;
UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
  const size_t at = place * D + f * 8 + column;
  float2 x = valid ? load_pair(queries + at) : float2(0.0f);
#ifdef ROPE
  x = rotate_pair(x, turn_of<SIDE, D>(high_turns, low_turns, turn, (f * 8 + column) / 2));
#endif
  const float2 up = valid ? load_pair(out_grad + at) : float2(0.0f);
  product += valid ? dot2(up, load_pair(out + at)) : 0.0f;
  put_operand<HELD, THREADS>(q, parked_q, f, tid, float2(float(T(x.x)), float(T(x.y))));
  put_operand<HELD, THREADS>(g, parked_g, f, tid, up);
  dq[f] = float2(0.0f, 0.0f);
}
product = row_sum(product);
const float row_log = valid ? float(sums[place]) : 0.0f;
if (valid && column == 0) {
  products[place] = product;
}

#ifdef OWN
const size_t own_place = packed<1>(batch, num_queries, groups, group, row / REPEAT) * D + column;
float own_score = 0.0f, change = 0.0f;
UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
  const float2 own_key = valid ? load_pair(own_keys + own_place + f * 8) : float2(0.0f);
  const float2 own_value = valid ? load_pair(own_values + own_place + f * 8) : float2(0.0f);
  own_score += dot2(own_key, operand<HELD, THREADS>(q, parked_q, f, tid));
  change += dot2(own_value, operand<HELD, THREADS>(g, parked_g, f, tid));
  dq[f] = own_key;
}
const float own_weight = metal::precise::exp2(row_sum(own_score) * scale * LOG2_E - row_log);
const float own_ds = own_weight * (row_sum(change) - product) * scale;
UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
  dq[f] *= own_ds;
}
if (column == 0 && valid) {
  own_weights[place * 2] = own_weight;
  own_weights[place * 2 + 1] = own_ds;
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
  UNROLL for (int j = 0; j < TILE / 8; ++j) {
    float2 s = float2(0.0f, 0.0f), dp = float2(0.0f, 0.0f);
    UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
      const float2 k = load_transposed(key_tile, PITCH, f * 8 + fragment_row(lane), j * 8 + column);
      const float2 v = load_transposed(value_tile, PITCH, f * 8 + fragment_row(lane), j * 8 + column);
      s = multiply_add(operand<HELD, THREADS>(q, parked_q, f, tid), k, s);
      dp = multiply_add(operand<HELD, THREADS>(g, parked_g, f, tid), v, dp);
    }
    UNROLL for (int e = 0; e < 2; ++e) {
      const int key = tile + j * 8 + column + e;
      const bool seen = row_first[local] <= key && key < row_end[local];
      const float weight = seen ? metal::precise::exp2(s[e] * scale * LOG2_E - row_log) : 0.0f;
      s[e] = weight * (dp[e] - product) * scale;
    }
    UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
      const float2 k = load_fragment(key_tile, PITCH, j * 8 + fragment_row(lane), f * 8 + column);
      dq[f] = multiply_add(s, k, dq[f]);
    }
  }
}

if (valid) {
  UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
#ifdef ROPE
    dq[f] = unrotate_pair(dq[f], turn_of<SIDE, D>(high_turns, low_turns, turn, (f * 8 + column) / 2));
#endif
    store_pair(query_grad + place * D + f * 8 + column, dq[f]);
  }
}
