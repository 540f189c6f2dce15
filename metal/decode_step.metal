// One row of each sequence through all layers of a block, in one launch; see docs/kernels.md.
//
// state [B, D]   qkv [A, D, E]   out [A, H S, D]   gate_up [A, D, 2 F]   down [A, F, D]: matrices, norms folded in
// keys, values [A, B, G, J, S], of which the first count[0] places are seen   bias float [B, J], with BIAS: of scores
// recent_keys, recent_values [A, B, G, recents, S]: of the places from count[0] on; the first count[1] are seen
// angles float [B, S / 2, 2]: cosine and sine of the row's place   eps float [1]
// next [B, D]    new_keys, new_values [A, B, G, recents, S]: the recent ones, and behind them the row's own, seen too
// A layers, B rows, D hidden size, H query heads, G key heads, S head size, E = (H + 2 G) S, F feed-forward width, T type
// A threadgroup takes one row. It keeps the state and all that follows from it in threadgroup memory, in float32.
constexpr int THREADS = 32 * SIMDGROUPS;
constexpr int E = (H + 2 * G) * S;
constexpr int WIDE = E > 2 * F ? E : 2 * F;
threadgroup float x[D];
threadgroup float y[WIDE];
threadgroup float parts[THREADS];
threadgroup float squares[SIMDGROUPS];

const int tid = thread_index_in_threadgroup;
const int lane = thread_index_in_simdgroup;
const int simdgroup = simdgroup_index_in_threadgroup;
const int n = threadgroup_position_in_grid.x;
const int layers = keys_shape[0], rows = keys_shape[1], places = keys_shape[3];
const int recents = recent_keys_shape[3], seen = count[0], fresh = count[1];
const float scale = metal::precise::rsqrt(float(S));

for (int i = tid; i < D; i += THREADS) {
  x[i] = float(state[n * D + i]);
}
threadgroup_barrier(mem_flags::mem_threadgroup);            // the state is there

for (int a = 0; a < layers; ++a) {
  // Projections, of the state before its norm: the norm is one factor.
  sum_squares<D, THREADS>(squares, x, tid);
  multiply<D, E, THREADS>(parts, x, qkv + size_t(a) * D * E, tid);
  threadgroup_barrier(mem_flags::mem_threadgroup);          // squares and parts are there
  float factor = norm_factor<D, SIMDGROUPS>(squares, eps[0]);
  for (int i = tid; i < E; i += THREADS) {
    y[i] = factor * product<D, E, THREADS>(parts, x, qkv + size_t(a) * D * E, i);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);          // queries, keys and values are there

  // The other recent places, as they are or, behind the row's own, 0.
  const size_t window = (size_t(a) * rows + n) * G * recents * S;
  for (int i = tid; i < G * recents * S / 2; i += THREADS) {
    const size_t at = window + 2 * i;
    const int other = 2 * i / S % recents;
    if (other < fresh) {
      store_pair(new_keys + at, load_pair(recent_keys + at));
      store_pair(new_values + at, load_pair(recent_values + at));
    } else if (other > fresh) {
      store_pair(new_keys + at, float2(0.0f));
      store_pair(new_values + at, float2(0.0f));
    }
  }

  // A simdgroup norms and turns a head.
  for (int h = simdgroup; h < H + 2 * G; h += SIMDGROUPS) {
    const bool turns = h < H + G;
    threadgroup float* head = y + h * S;
    float sum = 0.0f;
    for (int p = lane; p < S / 2; p += 32) {
      sum += head[2 * p] * head[2 * p] + head[2 * p + 1] * head[2 * p + 1];
    }
    sum = metal::simd_sum(sum);
    const float norm = QK_NORM && turns ? metal::precise::rsqrt(sum / S + eps[0]) : 1.0f;
    const size_t place = ((size_t(a) * rows + n) * G + (h < H + G ? h - H : h - H - G)) * recents * S;
    for (int p = lane; p < S / 2; p += 32) {
      float2 pair = float2(head[2 * p], head[2 * p + 1]) * norm;
      if (turns) {
        pair = rotate_pair(pair, float2(angles[(n * S / 2 + p) * 2], angles[(n * S / 2 + p) * 2 + 1]));
      }
      if (h < H) {
        pair *= scale;
      } else if (h < H + G) {
        store_pair(new_keys + place + fresh * S + 2 * p, pair);
      } else {
        store_pair(new_values + place + fresh * S + 2 * p, pair);
      }
      head[2 * p] = float(T(pair.x));
      head[2 * p + 1] = float(T(pair.y));
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);          // heads are turned

  // A simdgroup attends for a query head; its lanes share the keys, and the first one has the row's own as well.
  for (int h = simdgroup; h < H; h += SIMDGROUPS) {
    const int g = h / (H / G);
    threadgroup float* q = y + h * S;
    const threadgroup float* own_key = y + (H + g) * S;
    const threadgroup float* own_value = y + (H + G + g) * S;
    float highest = LOWEST, total = 0.0f, sums[S];
    UNROLL for (int i = 0; i < S; ++i) {
      sums[i] = 0.0f;
    }
    const size_t cache = (size_t(a) * rows + n) * G + g;
    for (int j = lane - 1; j < seen + fresh; j += 32) {     // -1 is the row's own
      const size_t old = (cache * places + metal::max(j, 0)) * S, young = (cache * recents + j - seen) * S;
      const device T* key = j < seen ? keys + old : recent_keys + young;
      const device T* value = j < seen ? values + old : recent_values + young;
      float score = 0.0f;
      UNROLL for (int i = 0; i < S; ++i) {
        score += q[i] * (j < 0 ? own_key[i] : float(key[i]));
      }
#ifdef BIAS
      score += j < 0 ? 0.0f : bias[n * places + j];
#endif
      const float most = metal::max(highest, score * LOG2_E);
      const float shrink = metal::precise::exp2(highest - most), weight = metal::precise::exp2(score * LOG2_E - most);
      highest = most;
      total = total * shrink + weight;
      UNROLL for (int i = 0; i < S; ++i) {
        sums[i] = sums[i] * shrink + weight * (j < 0 ? own_value[i] : float(value[i]));
      }
    }
    const float share = metal::precise::exp2(highest - metal::simd_max(highest));
    total = metal::simd_sum(total * share);
    UNROLL for (int i = 0; i < S; ++i) {
      const float sum = metal::simd_sum(sums[i] * share);   // all lanes have read the query by now
      if (lane == i % 32) {
        sums[i] = sum / total;
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);          // the query's place takes the result
    UNROLL for (int i = 0; i < S; ++i) {
      if (lane == i % 32) {
        q[i] = sums[i];
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);          // heads have attended

  multiply<H * S, D, THREADS>(parts, y, out + size_t(a) * H * S * D, tid);
  threadgroup_barrier(mem_flags::mem_threadgroup);          // parts are there
  for (int i = tid; i < D; i += THREADS) {
    x[i] += product<H * S, D, THREADS>(parts, y, out + size_t(a) * H * S * D, i);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);          // the state has what attention adds

  sum_squares<D, THREADS>(squares, x, tid);
  multiply<D, 2 * F, THREADS>(parts, x, gate_up + size_t(a) * D * 2 * F, tid);
  threadgroup_barrier(mem_flags::mem_threadgroup);          // squares and parts are there
  factor = norm_factor<D, SIMDGROUPS>(squares, eps[0]);
  for (int i = tid; i < 2 * F; i += THREADS) {
    y[i] = factor * product<D, 2 * F, THREADS>(parts, x, gate_up + size_t(a) * D * 2 * F, i);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);          // gates and the other half are there
  for (int i = tid; i < F; i += THREADS) {
    y[i] = y[i] / (1.0f + metal::precise::exp(-y[i])) * y[F + i];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);          // they are multiplied

  multiply<F, D, THREADS>(parts, y, down + size_t(a) * F * D, tid);
  threadgroup_barrier(mem_flags::mem_threadgroup);          // parts are there
  for (int i = tid; i < D; i += THREADS) {
    x[i] += product<F, D, THREADS>(parts, y, down + size_t(a) * F * D, i);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);          // the layer is done
}

for (int i = tid; i < D; i += THREADS) {
  next[n * D + i] = T(x[i]);
}
