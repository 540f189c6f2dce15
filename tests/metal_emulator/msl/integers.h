// <metal_integer>, and what integers and floats share: min, max, clamp, select.
#pragma clang system_header

namespace metal {
#define EMU_INTEGER(T)                                                                     \
  inline T min(T a, T b) { return b < a ? b : a; }                                         \
  inline T max(T a, T b) { return a < b ? b : a; }                                         \
  inline T min3(T a, T b, T c) { return min(a, min(b, c)); }                               \
  inline T max3(T a, T b, T c) { return max(a, max(b, c)); }                               \
  inline T clamp(T x, T low, T high) { return min(max(x, low), high); }                    \
  inline T abs(T x) { return x < T(0) ? T(-x) : x; }                                       \
  inline T mulhi(T a, T b) {                                                               \
    if constexpr (sizeof(T) == 8) return T((__int128(a) * __int128(b)) >> 64);             \
    else return T((long(a) * long(b)) >> (8 * sizeof(T)));                                 \
  }                                                                                        \
  inline T madhi(T a, T b, T c) { return T(mulhi(a, b) + c); }                             \
  inline T mad24(T a, T b, T c) { return T(a * b + c); }                                   \
  inline T mul24(T a, T b) { return T(a * b); }                                            \
  inline T popcount(T x) { return T(__builtin_popcountg(emu_bits(x))); }                   \
  inline T clz(T x) { return T(__builtin_clzg(emu_bits(x), int(8 * sizeof(T)))); }         \
  inline T ctz(T x) { return T(__builtin_ctzg(emu_bits(x), int(8 * sizeof(T)))); }         \
  inline T rotate(T x, T by) {                                                             \
    constexpr int bits = 8 * sizeof(T);                                                    \
    int n = int(by) & (bits - 1);                                                          \
    return n ? T((emu_bits(x) << n) | (emu_bits(x) >> (bits - n))) : x;                    \
  }                                                                                        \
  inline T absdiff(T a, T b) { return a < b ? T(b - a) : T(a - b); }

inline uchar emu_bits(char x) { return uchar(x); }
inline uchar emu_bits(uchar x) { return x; }
inline ushort emu_bits(short x) { return ushort(x); }
inline ushort emu_bits(ushort x) { return x; }
inline uint emu_bits(int x) { return uint(x); }
inline uint emu_bits(uint x) { return x; }
inline ulong emu_bits(long x) { return ulong(x); }
inline ulong emu_bits(ulong x) { return x; }
EMU_INTEGERS(EMU_INTEGER)

inline uint reverse_bits(uint x) { return __builtin_bitreverse32(x); }
inline uint extract_bits(uint x, uint offset, uint bits) {
  return bits ? (x >> offset) & (~0u >> (32 - bits)) : 0;
}
inline uint insert_bits(uint base, uint insert, uint offset, uint bits) {
  uint mask = bits ? (~0u >> (32 - bits)) << offset : 0;
  return (base & ~mask) | ((insert << offset) & mask);
}

#define EMU_SELECT(T) inline T select(T a, T b, bool second) { return second ? b : a; }
EMU_INTEGERS(EMU_SELECT) EMU_FLOATS(EMU_SELECT)
template <class T, class C, int N> inline vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<C, N> second) {
  for (int i = 0; i < N; ++i) a[i] = second[i] ? b[i] : a[i];
  return a;
}
template <class T, int N> inline vec<T, N> clamp(vec<T, N> x, vec<T, N> low, vec<T, N> high) {
  for (int i = 0; i < N; ++i) x[i] = clamp(T(x[i]), T(low[i]), T(high[i]));
  return x;
}
template <class T, int N> inline vec<T, N> clamp(vec<T, N> x, T low, T high) {
  for (int i = 0; i < N; ++i) x[i] = clamp(T(x[i]), low, high);
  return x;
}
}  // namespace metal
