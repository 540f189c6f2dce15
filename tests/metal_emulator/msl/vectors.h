// Vectors: clang's ext_vector_type has Metal's layout, operators and swizzles. source.py turns `float4(a, b)` into
// `emu_make<float4>(a, b)`, because clang has no constructors for them.
#pragma clang system_header

#define EMU_INTEGERS(M) M(char) M(uchar) M(short) M(ushort) M(int) M(uint) M(long) M(ulong)
#define EMU_FLOATS(M) M(float) M(half) M(bfloat)

namespace metal {
template <class T, int N> using vec = T __attribute__((ext_vector_type(N)));

template <class V> struct emu_vector {
  typedef V element;
  static constexpr int size = 1;
};
#define EMU_VECTOR(T)                                                                                \
  typedef vec<T, 2> T##2;                                                                            \
  typedef vec<T, 3> T##3;                                                                            \
  typedef vec<T, 4> T##4;                                                                            \
  template <> struct emu_vector<T##2> { typedef T element; static constexpr int size = 2; };        \
  template <> struct emu_vector<T##3> { typedef T element; static constexpr int size = 3; };        \
  template <> struct emu_vector<T##4> { typedef T element; static constexpr int size = 4; };
EMU_INTEGERS(EMU_VECTOR)
EMU_FLOATS(EMU_VECTOR)

// Tightly packed vectors, for reading and writing members. (p[i] = packed_float3(...) needs an operator that clang
// cannot give to device memory; assign x, y and z.)
#define EMU_PACKED(T)                                                   \
  struct packed_##T##2 { T x, y; };                                     \
  struct packed_##T##3 { T x, y, z; };                                  \
  struct packed_##T##4 { T x, y, z, w; };
EMU_INTEGERS(EMU_PACKED)
EMU_FLOATS(EMU_PACKED)

// The arguments' elements in a row; one scalar alone fills the vector.
template <class V, class... A> inline V emu_make(const A&... parts) {
  typedef typename emu_vector<V>::element T;
  constexpr int size = emu_vector<V>::size;
  constexpr int given = (0 + ... + emu_vector<A>::size);
  static_assert(given == size || (sizeof...(A) == 1 && given == 1), "a vector needs one value, or one an element");
  V result{};
  int next = 0;
  auto put = [&](auto part) {
    typedef emu_vector<decltype(part)> P;
    if constexpr (P::size == 1) result[next++] = static_cast<T>(part);
    else for (int i = 0; i < P::size; ++i) result[next++] = static_cast<T>(part[i]);
  };
  (put(parts), ...);
  for (; next < size; ++next) result[next] = result[0];
  return result;
}
#define EMU_UNPACK(SPACE)                                                                         \
  template <class V, class P> inline auto emu_make(const SPACE P& p) -> decltype(p.z, V()) {      \
    typedef typename emu_vector<V>::element T;                                                    \
    if constexpr (emu_vector<V>::size == 3) return V{T(p.x), T(p.y), T(p.z)};                     \
    else return V{T(p.x), T(p.y), T(p.z), T(p.w)};                                                \
  }

template <class T, class U> inline T as_type(U bits) {
  static_assert(sizeof(T) == sizeof(U), "as_type keeps the size");
  return __builtin_bit_cast(T, bits);
}

template <class T, int N> inline bool any(vec<T, N> x) {
  for (int i = 0; i < N; ++i) if (x[i]) return true;
  return false;
}
template <class T, int N> inline bool all(vec<T, N> x) {
  for (int i = 0; i < N; ++i) if (!x[i]) return false;
  return true;
}
template <class T, int N> inline T dot(vec<T, N> a, vec<T, N> b) {
  T sum = a[0] * b[0];
  for (int i = 1; i < N; ++i) sum += a[i] * b[i];
  return sum;
}
template <class T, int N> inline T length_squared(vec<T, N> x) { return dot(x, x); }
template <class T, int N> inline T length(vec<T, N> x) { return T(__builtin_sqrtf(float(dot(x, x)))); }
template <class T, int N> inline T distance(vec<T, N> a, vec<T, N> b) { return length(a - b); }
template <class T, int N> inline vec<T, N> normalize(vec<T, N> x) { return x / length(x); }
template <class T> inline vec<T, 3> cross(vec<T, 3> a, vec<T, 3> b) { return a.yzx * b.zxy - a.zxy * b.yzx; }
}  // namespace metal

// A whole structure out of another address space, in steps of its alignment.
template <int SPACE, class T> inline void emu_copy(thread T* to, const __attribute__((address_space(SPACE))) T* from) {
  typedef metal::conditional_t<alignof(T) == 8, ulong, metal::conditional_t<alignof(T) == 4, uint,
      metal::conditional_t<alignof(T) == 2, ushort, uchar>>> Part;
  for (size_t i = 0; i < sizeof(T) / sizeof(Part); ++i)
    reinterpret_cast<Part*>(to)[i] = reinterpret_cast<const __attribute__((address_space(SPACE))) Part*>(from)[i];
}
