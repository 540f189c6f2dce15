// Gradient of attention.metal for the queries; its arguments and packed rows are described there.
//
//   weights p_ij as there,   product_i = out_grad_i . out_i
//   ds_ij = D^-0.5 p_ij (out_grad_i . v_j - product_i)        query_grad_i = sum_j ds_ij k_j
//
// out_grad, query_grad [B, Q, H, D]   products float [B, Q, H]
// With OWN, own_weights float [B, Q, H, 2]: p and ds of the own key, from which its gradients follow.
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
const float scale = metal::precise::rsqrt(float(D));

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

Fragment q[ROWS][FRAGMENTS], g[ROWS][FRAGMENTS], dq[ROWS][FRAGMENTS];
float sum[ROWS], product[ROWS];
UNROLL for (int a = 0; a < ROWS; ++a) {
  const int row = start + local + a;
  const bool valid = row < num_queries * REPEAT;
  const size_t place = packed<REPEAT>(batch, num_queries, heads, group, row);
  simd_end = metal::max(simd_end, row_end[local + a]);
  float dot = 0.0f;
  UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
    const size_t at = place * D + f * 8 + column;
    float2 x = valid ? load_pair(queries + at) : float2(0.0f);
#ifdef ROPE
    x = rotate_pair(x, turned(row_end[local + a] - 1, turns[(f * 8 + column) / 2]));
#endif
    const float2 up = valid ? load_pair(out_grad + at) : float2(0.0f);
    dot += valid ? dot2(up, load_pair(out + at)) : 0.0f;
    q[a][f] = make_fragment(float(T(x.x)), float(T(x.y)));
    g[a][f] = make_fragment(up.x, up.y);
    dq[a][f] = make_fragment(0.0f, 0.0f);
  }
  product[a] = row_sum(dot);
  sum[a] = valid ? float(sums[place]) : 0.0f;
  if (valid && column == 0) {
    products[place] = product[a];
  }
}
simd_end = metal::simd_max(simd_end);

#ifdef OWN
float2 own_key[FRAGMENTS], own_value[FRAGMENTS];
UNROLL for (int a = 0; a < ROWS; ++a) {
  const int row = start + local + a;
  const size_t place = packed<1>(batch, num_queries, groups, group, row / REPEAT) * D + column;
  float score = 0.0f, change = 0.0f;
  UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
    if (row >= num_queries * REPEAT) {
      own_key[f] = own_value[f] = float2(0.0f);
    } else if (a == 0 || row % REPEAT == 0) {               // the rows of one query share its key
      own_key[f] = load_pair(own_keys + place + f * 8);
      own_value[f] = load_pair(own_values + place + f * 8);
    }
    score += dot2(own_key[f], values_of(q[a][f]));
    change += dot2(own_value[f], values_of(g[a][f]));
  }
  const float weight = metal::precise::exp2(row_sum(score) * scale * LOG2_E - sum[a]);
  const float ds = weight * (row_sum(change) - product[a]) * scale;
  UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
    dq[a][f] = make_fragment(ds * own_key[f].x, ds * own_key[f].y);
  }
  if (column == 0 && row < num_queries * REPEAT) {
    const size_t at = packed<REPEAT>(batch, num_queries, heads, group, row) * 2;
    own_weights[at] = weight;
    own_weights[at + 1] = ds;
  }
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
  UNROLL for (int j = 0; j < TILE / 8; ++j) {
    Fragment s[ROWS], dp[ROWS];
    UNROLL for (int a = 0; a < ROWS; ++a) {
      s[a] = make_fragment(0.0f, 0.0f);
      dp[a] = make_fragment(0.0f, 0.0f);
    }
    UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
      const Fragment k = load_transposed(key_tile, PITCH, f * 8 + fragment_row(lane), j * 8 + column);
      const Fragment v = load_transposed(value_tile, PITCH, f * 8 + fragment_row(lane), j * 8 + column);
      UNROLL for (int a = 0; a < ROWS; ++a) {
        simdgroup_multiply_accumulate(s[a], q[a][f], k, s[a]);
        simdgroup_multiply_accumulate(dp[a], g[a][f], v, dp[a]);
      }
    }
    UNROLL for (int a = 0; a < ROWS; ++a) {
      UNROLL for (int e = 0; e < 2; ++e) {
        const int key = tile + j * 8 + column + e;
        const bool seen = row_first[local + a] <= key && key < row_end[local + a];
        const float score = s[a].thread_elements()[e] * scale * LOG2_E;
        const float weight = seen ? metal::precise::exp2(score - sum[a]) : 0.0f;
        s[a].thread_elements()[e] = weight * (dp[a].thread_elements()[e] - product[a]) * scale;
      }
    }
    UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
      const Fragment k = load_fragment(key_tile, PITCH, j * 8 + fragment_row(lane), f * 8 + column);
      UNROLL for (int a = 0; a < ROWS; ++a) {
        simdgroup_multiply_accumulate(dq[a][f], s[a], k, dq[a][f]);
      }
    }
  }
}

UNROLL for (int a = 0; a < ROWS; ++a) {
  const int row = start + local + a;
  if (row < num_queries * REPEAT) {
    const size_t place = packed<REPEAT>(batch, num_queries, heads, group, row) * D + column;
    UNROLL for (int f = 0; f < FRAGMENTS; ++f) {
      float2 x = values_of(dq[a][f]);
#ifdef ROPE
      x = unrotate_pair(x, turned(row_end[local + a] - 1, turns[(f * 8 + column) / 2]));
#endif
      store_pair(query_grad + place + f * 8, x);
    }
  }
}
