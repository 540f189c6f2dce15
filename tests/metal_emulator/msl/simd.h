// <metal_simdgroup>: every lane gives its value, waits for the others and reads what it wants of theirs. All lanes must
// take part: Metal lets active lanes go alone, which is rarely what a kernel means.
#pragma clang system_header

namespace metal {
struct emu_lanes {
  const unsigned char* slots;
  int count;
  template <class T> T get(int lane) const {
    T value;
    __builtin_memcpy(&value, slots + EMU_SLOT * lane, sizeof(T));
    return value;
  }
};
template <class T> inline emu_lanes emu_meet(T mine, int operation, int detail, uint line) {
  static_assert(sizeof(T) <= EMU_SLOT, "too large for a simd operation");
  emu_lanes lanes;
  lanes.slots = emu_exchange(&mine, sizeof(T), operation, detail, line, &lanes.count);
  return lanes;
}

#define EMU_REDUCTION(name, detail, step)                                                       \
  template <class T> inline T name(T x, uint line = __builtin_LINE()) {                         \
    emu_lanes lanes = emu_meet(x, EMU_REDUCE, detail, line);                                    \
    T a = lanes.get<T>(0);                                                                      \
    for (int i = 1; i < lanes.count; ++i) {                                                     \
      T b = lanes.get<T>(i);                                                                    \
      a = step;                                                                                 \
    }                                                                                           \
    return a;                                                                                   \
  }
EMU_REDUCTION(simd_sum, 0, T(a + b))
EMU_REDUCTION(simd_product, 1, T(a * b))
EMU_REDUCTION(simd_max, 2, max(a, b))
EMU_REDUCTION(simd_min, 3, min(a, b))
EMU_REDUCTION(simd_and, 4, T(a & b))
EMU_REDUCTION(simd_or, 5, T(a | b))
EMU_REDUCTION(simd_xor, 6, T(a ^ b))
inline bool simd_all(bool x, uint line = __builtin_LINE()) { return simd_and<int>(x, line); }
inline bool simd_any(bool x, uint line = __builtin_LINE()) { return simd_or<int>(x, line); }

// A lane that does not exist gives a value of all ones (NaN in floats): Metal leaves it undefined.
template <class T> inline T emu_lane_value(const emu_lanes& lanes, int lane) {
  T value;
  __builtin_memset(&value, 0xff, sizeof(T));
  return lane >= 0 && lane < lanes.count ? lanes.get<T>(lane) : value;
}
#define EMU_SHUFFLE_FROM(name, detail, argument, from)                                          \
  template <class T> inline T name(T x, ushort argument, uint line = __builtin_LINE()) {        \
    emu_lanes lanes = emu_meet(x, EMU_SHUFFLE, detail, line);                                   \
    int lane = emu_current->lane;                                                               \
    (void)lane;                                                                                 \
    return emu_lane_value<T>(lanes, from);                                                      \
  }
EMU_SHUFFLE_FROM(simd_shuffle, 0, from_lane, from_lane)
EMU_SHUFFLE_FROM(simd_broadcast, 1, from_lane, from_lane)
EMU_SHUFFLE_FROM(simd_shuffle_xor, 2, mask, lane ^ mask)
EMU_SHUFFLE_FROM(simd_shuffle_rotate_down, 3, delta, (lane + delta) % 32)
EMU_SHUFFLE_FROM(simd_shuffle_rotate_up, 4, delta, (lane + 32 - delta % 32) % 32)
// Shuffles past the simdgroup's end leave the lane's own value.
EMU_SHUFFLE_FROM(simd_shuffle_down, 5, delta, lane + delta < 32 ? lane + delta : lane)
EMU_SHUFFLE_FROM(simd_shuffle_up, 6, delta, lane < delta ? lane : lane - delta)

template <class T> inline T simd_shuffle_and_fill_down(T x, T fill, ushort delta, uint line = __builtin_LINE()) {
  emu_lanes lanes = emu_meet(x, EMU_SHUFFLE, 7, line), fills = emu_meet(fill, EMU_SHUFFLE, 8, line);
  int from = emu_current->lane + delta;
  return from < 32 ? emu_lane_value<T>(lanes, from) : emu_lane_value<T>(fills, from - 32);
}
template <class T> inline T simd_shuffle_and_fill_up(T x, T fill, ushort delta, uint line = __builtin_LINE()) {
  emu_lanes lanes = emu_meet(x, EMU_SHUFFLE, 9, line), fills = emu_meet(fill, EMU_SHUFFLE, 10, line);
  int from = int(emu_current->lane) - delta;
  return from >= 0 ? emu_lane_value<T>(lanes, from) : emu_lane_value<T>(fills, from + 32);
}
template <class T> inline T simd_broadcast_first(T x, uint line = __builtin_LINE()) {
  return simd_broadcast(x, 0, line);
}

template <class T> inline T simd_prefix_exclusive_sum(T x, uint line = __builtin_LINE()) {
  emu_lanes lanes = emu_meet(x, EMU_PREFIX, 0, line);
  T sum = T(0);
  for (int i = 0; i < int(emu_current->lane); ++i) sum = T(sum + lanes.get<T>(i));
  return sum;
}
template <class T> inline T simd_prefix_inclusive_sum(T x, uint line = __builtin_LINE()) {
  return T(simd_prefix_exclusive_sum(x, line) + x);
}
template <class T> inline T simd_prefix_exclusive_product(T x, uint line = __builtin_LINE()) {
  emu_lanes lanes = emu_meet(x, EMU_PREFIX, 1, line);
  T product = T(1);
  for (int i = 0; i < int(emu_current->lane); ++i) product = T(product * lanes.get<T>(i));
  return product;
}
template <class T> inline T simd_prefix_inclusive_product(T x, uint line = __builtin_LINE()) {
  return T(simd_prefix_exclusive_product(x, line) * x);
}

struct simd_vote {
  typedef ulong vote_t;
  vote_t votes;
  explicit constexpr simd_vote(vote_t v = 0) : votes(v) {}
  explicit constexpr operator vote_t() const { return votes; }
  bool all() const { return votes == 0xffffffff; }
  bool any() const { return votes; }
};
inline simd_vote simd_ballot(bool x, uint line = __builtin_LINE()) {
  emu_lanes lanes = emu_meet(x, EMU_BALLOT, 0, line);
  ulong votes = 0;
  for (int i = 0; i < lanes.count; ++i) votes |= ulong(lanes.get<bool>(i)) << i;
  return simd_vote(votes);
}
inline bool simd_is_first() { return emu_current->lane == 0; }
}  // namespace metal
