// Stands in for CUDA's headers, so that any C++ compiler can check a rendered text. Nothing here runs.
#pragma once
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))

struct stub_position { unsigned x, y, z; };
extern const stub_position threadIdx, blockIdx, blockDim;

template <int N> struct stub_half {
  unsigned short bits;
  stub_half() = default;
  explicit stub_half(float);
  explicit operator float() const;
};
typedef stub_half<0> __nv_bfloat16;
typedef stub_half<1> __half;

template <class T> T __shfl_sync(unsigned lanes, T x, int lane);
template <class T> T __shfl_xor_sync(unsigned lanes, T x, int mask);
bool __any_sync(unsigned lanes, bool x);
void __syncthreads();
void __syncwarp();
float expf(float), exp2f(float), log2f(float), sqrtf(float);
