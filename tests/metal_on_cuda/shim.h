// What the kernels' texts use of Metal, in CUDA. A simdgroup is a warp; its matrices are two floats a lane and shuffles.
// `render.py` strips address spaces from the texts, makes threadgroup variables shared and float2 a pair.

typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uint8;
#define METAL_FUNC __device__ __forceinline__
#define UNROLL _Pragma("unroll")

namespace metal {

constexpr unsigned ALL_LANES = 0xffffffffu;

template <typename T, int N>
struct vec;

template <typename T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  T x, y;
};

// float2 with Metal's constructors and operators, which CUDA's has not.
struct alignas(8) pair {
  float x, y;
  pair() = default;
  __device__ __forceinline__ explicit pair(float both) : x(both), y(both) {}
  __device__ __forceinline__ pair(float left, float right) : x(left), y(right) {}
  __device__ __forceinline__ float& operator[](int i) { return i == 0 ? x : y; }
  __device__ __forceinline__ float operator[](int i) const { return i == 0 ? x : y; }
  __device__ __forceinline__ pair operator*(float factor) const { return pair(x * factor, y * factor); }
  __device__ __forceinline__ pair operator/(float divisor) const { return pair(x / divisor, y / divisor); }
  __device__ __forceinline__ pair& operator*=(float factor) { return *this = *this * factor; }
};

struct uint_pair {
  uint x, y;
  __device__ __forceinline__ uint_pair operator/(uint divisor) const { return {x / divisor, y / divisor}; }
  __device__ __forceinline__ uint_pair operator%(uint divisor) const { return {x % divisor, y % divisor}; }
};

struct uint_triple {
  uint x, y, z;
  __device__ __forceinline__ uint_pair xy() const { return {x, y}; }
};

template <typename T>
__device__ __forceinline__ T min(T a, T b) {
  return b < a ? b : a;
}

template <typename T>
__device__ __forceinline__ T max(T a, T b) {
  return a < b ? b : a;
}

namespace precise {
__device__ __forceinline__ float exp(float x) { return expf(x); }
__device__ __forceinline__ float exp2(float x) { return exp2f(x); }
__device__ __forceinline__ float log2(float x) { return log2f(x); }
__device__ __forceinline__ float rsqrt(float x) { return 1.0f / sqrtf(x); }
}  // namespace precise

template <typename T>
__device__ __forceinline__ T simd_shuffle_xor(T x, ushort mask) {
  return __shfl_xor_sync(ALL_LANES, x, mask);
}

__device__ __forceinline__ bool simd_any(bool x) {
  return __any_sync(ALL_LANES, x);
}

template <typename T>
__device__ __forceinline__ T simd_sum(T x) {
  for (int mask = 16; mask > 0; mask /= 2) {
    x = x + __shfl_xor_sync(ALL_LANES, x, mask);
  }
  return x;
}

template <typename T>
__device__ __forceinline__ T simd_max(T x) {
  for (int mask = 16; mask > 0; mask /= 2) {
    x = max(x, __shfl_xor_sync(ALL_LANES, x, mask));
  }
  return x;
}

template <typename T>
__device__ __forceinline__ T simd_min(T x) {
  for (int mask = 16; mask > 0; mask /= 2) {
    x = min(x, __shfl_xor_sync(ALL_LANES, x, mask));
  }
  return x;
}

template <typename T, int Columns, int Rows>
struct simdgroup_matrix {
  pair elements;
  __device__ __forceinline__ pair& thread_elements() { return elements; }
};

// Lane of element (row, column), whose even columns have lanes of their own with the odd ones behind them.
__device__ __forceinline__ int lane_of(int row, int column) {
  return ((row & 4) << 2) | ((column & 4) << 1) | ((row & 3) << 1) | ((column >> 1) & 1);
}

// d = a b + c: each lane gathers its row of a and its two columns of b.
template <typename T>
__device__ __forceinline__ void simdgroup_multiply_accumulate(T& d, const T& a, const T& b, const T& c) {
  const int lane = threadIdx.x % 32;
  const int row = ((lane / 4) & 4) + (lane / 2) % 4, column = ((lane / 4) & 2) * 2 + (lane % 2) * 2;
  pair sum = c.elements;
  for (int k = 0; k < 8; k += 2) {
    const int left = lane_of(row, k), upper = lane_of(k, column), lower = lane_of(k + 1, column);
    const float even = __shfl_sync(ALL_LANES, a.elements.x, left), odd = __shfl_sync(ALL_LANES, a.elements.y, left);
    sum.x += even * __shfl_sync(ALL_LANES, b.elements.x, upper);
    sum.y += even * __shfl_sync(ALL_LANES, b.elements.y, upper);
    sum.x += odd * __shfl_sync(ALL_LANES, b.elements.x, lower);
    sum.y += odd * __shfl_sync(ALL_LANES, b.elements.y, lower);
  }
  d.elements = sum;
}

}  // namespace metal

namespace mem_flags {
constexpr int mem_threadgroup = 1;
}

__device__ __forceinline__ void threadgroup_barrier(int) {
  __syncthreads();
}

__device__ __forceinline__ void simdgroup_barrier(int) {
  __syncwarp();
}

