// What MLX puts before every custom kernel (mlx/backend/metal/kernels/utils.h) and a kernel may use.
#pragma clang system_header

typedef half float16_t;
typedef bfloat bfloat16_t;
#define MLX_MTL_PRAGMA_UNROLL _Pragma("clang loop unroll(full)")

template <typename U> struct Limits {
  static constexpr constant U max = metal::numeric_limits<U>::max();
  static constexpr constant U min = metal::numeric_limits<U>::lowest();
  static constexpr constant U finite_max = metal::numeric_limits<U>::max();
  static constexpr constant U finite_min = metal::numeric_limits<U>::lowest();
};
#define EMU_MLX_LIMITS(T)                                                        \
  template <> struct Limits<T> {                                                 \
    static constexpr constant T max = metal::numeric_limits<T>::infinity();      \
    static constexpr constant T min = -metal::numeric_limits<T>::infinity();     \
    static constexpr constant T finite_max = metal::numeric_limits<T>::max();    \
    static constexpr constant T finite_min = -metal::numeric_limits<T>::max();   \
  };
EMU_FLOATS(EMU_MLX_LIMITS)

// The offset of an element, by shape and strides, last dimension fastest.
template <typename Index = int64_t>
inline Index elem_to_loc(Index element, constant int* shape, constant int64_t* strides, int dimensions) {
  Index offset = 0;
  for (int i = dimensions - 1; i >= 0 && element > 0; --i) {
    offset += (element % shape[i]) * Index(strides[i]);
    element /= shape[i];
  }
  return offset;
}
template <typename T, typename U> inline T ceildiv(T n, U m) { return (n + m - 1) / m; }
