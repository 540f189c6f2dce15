// <metal_math>: real overloads for every type, so that a mixed call such as max(half, float) is ambiguous as there.
// precise:: and fast:: compute the same; how they differ on a GPU cannot be seen here.
#pragma clang system_header

namespace metal {
// Each name with what computes it in float.
#define EMU_UNARY(M)                                                                                            \
  M(exp, __builtin_expf(x)) M(exp2, __builtin_exp2f(x)) M(exp10, __builtin_powf(10.0f, x))                      \
  M(log, __builtin_logf(x)) M(log2, __builtin_log2f(x)) M(log10, __builtin_log10f(x))                           \
  M(sqrt, __builtin_sqrtf(x)) M(rsqrt, 1.0f / __builtin_sqrtf(x))                                               \
  M(sin, __builtin_sinf(x)) M(cos, __builtin_cosf(x)) M(tan, __builtin_tanf(x))                                 \
  M(asin, __builtin_asinf(x)) M(acos, __builtin_acosf(x)) M(atan, __builtin_atanf(x))                           \
  M(sinh, __builtin_sinhf(x)) M(cosh, __builtin_coshf(x)) M(tanh, __builtin_tanhf(x))                           \
  M(asinh, __builtin_asinhf(x)) M(acosh, __builtin_acoshf(x)) M(atanh, __builtin_atanhf(x))                     \
  M(sinpi, __builtin_sinf(M_PI_F * x)) M(cospi, __builtin_cosf(M_PI_F * x))                                     \
  M(floor, __builtin_floorf(x)) M(ceil, __builtin_ceilf(x)) M(rint, __builtin_rintf(x))                         \
  M(round, __builtin_roundf(x)) M(trunc, __builtin_truncf(x)) M(fabs, __builtin_fabsf(x))                       \
  M(fract, __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f))
#define EMU_BINARY(M)                                                                                           \
  M(pow, __builtin_powf(x, y)) M(powr, __builtin_powf(x, y)) M(fmod, __builtin_fmodf(x, y))                     \
  M(atan2, __builtin_atan2f(x, y)) M(copysign, __builtin_copysignf(x, y)) M(divide, x / y)                      \
  M(fmin, __builtin_fminf(x, y)) M(fmax, __builtin_fmaxf(x, y)) M(fdim, __builtin_fdimf(x, y))                  \
  M(min, __builtin_fminf(x, y)) M(max, __builtin_fmaxf(x, y))

#define EMU_UNARY_OF(T, name, value) inline T name(T a) { float x = float(a); return T(value); }
#define EMU_BINARY_OF(T, name, value) \
  inline T name(T a, T b) { float x = float(a), y = float(b); return T(value); }
#define EMU_UNARY_ALL(name, value)                                                                              \
  EMU_UNARY_OF(float, name, value) EMU_UNARY_OF(half, name, value) EMU_UNARY_OF(bfloat, name, value)            \
  template <class T, int N> inline vec<T, N> name(vec<T, N> a) {                                                \
    for (int i = 0; i < N; ++i) a[i] = name(T(a[i]));                                                           \
    return a;                                                                                                   \
  }
#define EMU_BINARY_ALL(name, value)                                                                             \
  EMU_BINARY_OF(float, name, value) EMU_BINARY_OF(half, name, value) EMU_BINARY_OF(bfloat, name, value)         \
  template <class T, int N> inline vec<T, N> name(vec<T, N> a, vec<T, N> b) {                                   \
    for (int i = 0; i < N; ++i) a[i] = name(T(a[i]), T(b[i]));                                                  \
    return a;                                                                                                   \
  }
#define EMU_REST(T)                                                                                             \
  inline T abs(T x) { return T(__builtin_fabsf(float(x))); }                                                    \
  inline T fma(T a, T b, T c) { return T(__builtin_fmaf(float(a), float(b), float(c))); }                       \
  inline T clamp(T x, T low, T high) { return fmin(fmax(x, low), high); }                                       \
  inline T max3(T a, T b, T c) { return fmax(a, fmax(b, c)); }                                                  \
  inline T min3(T a, T b, T c) { return fmin(a, fmin(b, c)); }                                                  \
  inline T sincos(T x, thread T& cosine) { cosine = cos(x); return sin(x); }                                    \
  inline T ldexp(T x, int k) { return T(__builtin_ldexpf(float(x), k)); }
EMU_UNARY(EMU_UNARY_ALL) EMU_BINARY(EMU_BINARY_ALL) EMU_FLOATS(EMU_REST)
namespace fast { EMU_UNARY(EMU_UNARY_ALL) EMU_BINARY(EMU_BINARY_ALL) EMU_FLOATS(EMU_REST) }
namespace precise { EMU_UNARY(EMU_UNARY_ALL) EMU_BINARY(EMU_BINARY_ALL) EMU_FLOATS(EMU_REST) }

#define EMU_COMMON(T)                                                                                           \
  inline T saturate(T x) { return clamp(x, T(0.0f), T(1.0f)); }                                                 \
  inline T mix(T a, T b, T t) { return a + (b - a) * t; }                                                       \
  inline T step(T edge, T x) { return x < edge ? T(0.0f) : T(1.0f); }                                           \
  inline T sign(T x) { return x > T(0.0f) ? T(1.0f) : x < T(0.0f) ? T(-1.0f) : T(0.0f); }                       \
  inline T smoothstep(T a, T b, T x) { T t = saturate((x - a) / (b - a)); return t * t * (T(3.0f) - T(2.0f) * t); } \
  inline bool isnan(T x) { return x != x; }                                                                     \
  inline bool isinf(T x) { return __builtin_isinf(float(x)); }                                                  \
  inline bool isfinite(T x) { return __builtin_isfinite(float(x)); }                                            \
  inline bool signbit(T x) { return __builtin_signbit(float(x)); }
EMU_FLOATS(EMU_COMMON)

template <class T, int N> inline vec<T, N> fma(vec<T, N> a, vec<T, N> b, vec<T, N> c) {
  for (int i = 0; i < N; ++i) a[i] = fma(T(a[i]), T(b[i]), T(c[i]));
  return a;
}
template <class T, int N> inline vec<T, N> abs(vec<T, N> x) { return __builtin_elementwise_abs(x); }
}  // namespace metal
