// <metal_simdgroup_matrix>: 8 x 8, two neighbouring elements of a row in each lane, in the layout that MLX's own
// kernels rely on (steel/gemm/mma.h). Apple does not document it.
#pragma clang system_header

namespace metal {
inline int emu_matrix_row(int lane) { return ((lane / 4) & 4) + ((lane / 2) % 4); }
inline int emu_matrix_column(int lane) { return ((lane / 4) & 2) * 2 + (lane % 2) * 2; }
inline int emu_matrix_lane(int row, int column) {
  return ((row & 4) << 2) | ((column & 4) << 1) | ((row & 3) << 1) | ((column >> 1) & 1);
}

// What a matrix holds before it is set: a NaN that arithmetic keeps, so that it can be told from others.
template <class T> struct emu_unset { typedef ushort Bits; static constexpr ushort bits = 0x7ef5; };  // half
template <> struct emu_unset<bfloat> { typedef ushort Bits; static constexpr ushort bits = 0x7fde; };
template <> struct emu_unset<float> { typedef uint Bits; static constexpr uint bits = 0x7fdea000; };
template <class T> inline bool emu_is_unset(T x) {
  return __builtin_bit_cast(typename emu_unset<T>::Bits, x) == emu_unset<T>::bits;
}

template <class T, int Columns, int Rows = Columns> struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8, "Metal has 8 x 8 only");
  static_assert(is_floating_point_v<T>, "Metal has float, half and bfloat only");
  typedef vec<T, 2> storage_type;
  storage_type emu_elements;

  simdgroup_matrix() {
    emu_elements[0] = emu_elements[1] = __builtin_bit_cast(T, emu_unset<T>::bits);
  }
  explicit simdgroup_matrix(T diagonal) {
    int ahead = emu_matrix_row(emu_current->lane) - emu_matrix_column(emu_current->lane);
    emu_elements[0] = ahead == 0 ? diagonal : T(0.0f);
    emu_elements[1] = ahead == 1 ? diagonal : T(0.0f);
  }
  thread storage_type& thread_elements() { return emu_elements; }
  const thread storage_type& thread_elements() const { return emu_elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int Columns, int Rows>
inline simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, Columns, Rows> matrix;
  matrix.emu_elements = {value, value};
  return matrix;
}
template <class T> inline void emu_check_set(const simdgroup_matrix<T, 8, 8>& matrix, uint line) {
  for (int i = 0; i < 2; ++i)
    if (emu_is_unset(T(matrix.emu_elements[i]))) emu_uninitialised_matrix(line);
}

// Address of a lane's element `i`, checked. `origin` is (column, row) of the corner.
template <class T>
inline ulong emu_element(ulong base, ulong stride, ulong2 origin, bool transposed, int i, int space, int ways,
                         uint line) {
  ulong row = emu_matrix_row(emu_current->lane), column = emu_matrix_column(emu_current->lane) + i;
  if (transposed) {
    ulong kept = row;
    row = column, column = kept;
  }
  ulong index = (origin.y + row) * stride + origin.x + column;
  return emu_access(base + index * sizeof(T), sizeof(T), space, ways, line);
}
#define EMU_MATRIX_MEMORY(SPACE, NUMBER)                                                                       \
  template <class T>                                                                                           \
  inline void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& to, const SPACE T* from, ulong stride = 8,      \
                             ulong2 origin = {0, 0}, bool transposed = false, uint line = __builtin_LINE()) {  \
    emu_matrix_memory(EMU_MATRIX_LOAD, line);                                                                  \
    for (int i = 0; i < 2; ++i) {                                                                              \
      ulong at = emu_element<T>(ulong(from), stride, origin, transposed, i, NUMBER, EMU_LOAD, line);           \
      to.emu_elements[i] = *(const T*)at;                                                                      \
    }                                                                                                          \
  }                                                                                                            \
  template <class T>                                                                                           \
  inline void simdgroup_store(simdgroup_matrix<T, 8, 8> from, SPACE T* to, ulong stride = 8,                   \
                              ulong2 origin = {0, 0}, bool transposed = false, uint line = __builtin_LINE()) { \
    emu_matrix_memory(EMU_MATRIX_STORE, line);                                                                 \
    emu_check_set(from, line);                                                                                 \
    for (int i = 0; i < 2; ++i) {                                                                              \
      ulong at = emu_element<T>(ulong(to), stride, origin, transposed, i, NUMBER, EMU_STORE, line);            \
      *(T*)at = from.emu_elements[i];                                                                          \
    }                                                                                                          \
  }
EMU_MATRIX_MEMORY(device, EMU_DEVICE)
EMU_MATRIX_MEMORY(threadgroup, EMU_THREADGROUP)

// d = a b + c, summed in float in the order of the inner index.
template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                                          simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c,
                                          uint line = __builtin_LINE()) {
  emu_check_set(a, line);
  emu_check_set(b, line);
  emu_check_set(c, line);
  struct Pair { float a[2], b[2]; };
  Pair mine = {{float(a.emu_elements[0]), float(a.emu_elements[1])},
               {float(b.emu_elements[0]), float(b.emu_elements[1])}};
  emu_lanes lanes = emu_meet(mine, EMU_MULTIPLY, 0, line);
  int lane = emu_current->lane, row = emu_matrix_row(lane), column = emu_matrix_column(lane);
  if (!lane) emu_count_multiply();
  float sum[2] = {float(c.emu_elements[0]), float(c.emu_elements[1])};
  for (int k = 0; k < 8; ++k) {
    float left = ((const Pair*)(lanes.slots + EMU_SLOT * emu_matrix_lane(row, k)))->a[k & 1];
    const Pair* right = (const Pair*)(lanes.slots + EMU_SLOT * emu_matrix_lane(k, column));
    sum[0] += left * right->b[0];
    sum[1] += left * right->b[1];
  }
  d.emu_elements = {D(sum[0]), D(sum[1])};
}
template <class D, class A, class B>
inline void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                               simdgroup_matrix<B, 8, 8> b, uint line = __builtin_LINE()) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0.0f)), line);
}
}  // namespace metal
