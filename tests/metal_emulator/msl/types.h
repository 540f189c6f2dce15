// Qualifiers, number types, and the type traits of <metal_type_traits>.
#pragma clang system_header

#define __METAL__ 1
#define __METAL_VERSION__ 310
#define __HAVE_BFLOAT__ 1
#define device __attribute__((address_space(1)))
#define constant const __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define thread
#define kernel
#define METAL_FUNC inline __attribute__((__always_inline__))

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;
typedef __bf16 bfloat;
typedef char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef uchar uint8_t;
typedef ushort uint16_t;
typedef uint uint32_t;
typedef ulong uint64_t;
typedef ulong size_t;
typedef long ptrdiff_t;
typedef ulong uintptr_t;

#define INFINITY __builtin_inff()
#define HUGE_VALF __builtin_inff()
#define NAN __builtin_nanf("")
#define MAXFLOAT 3.402823466e+38f
#define FLT_MAX MAXFLOAT
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.1920929e-7f
#define HALF_MAX half(65504.0f)
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define M_PI_F 3.14159274101257324219f
#define M_PI_2_F 1.57079637050628662109f
#define M_1_PI_F 0.31830987334251403809f
#define M_2_PI_F 0.63661974668502807617f
#define M_E_F 2.71828174591064453125f
#define M_LOG2E_F 1.44269502162933349609f
#define M_LOG10E_F 0.43429449200630187988f
#define M_LN2_F 0.69314718246459960938f
#define M_LN10_F 2.30258512496948242188f
#define M_SQRT2_F 1.41421353816986083984f
#define M_SQRT1_2_F 0.70710676908493041992f

namespace metal {
template <class T, T v> struct integral_constant {
  static constexpr T value = v;
  constexpr operator T() const { return v; }
};
typedef integral_constant<bool, true> true_type;
typedef integral_constant<bool, false> false_type;
template <bool B> using bool_constant = integral_constant<bool, B>;

template <class A, class B> struct is_same : false_type {};
template <class A> struct is_same<A, A> : true_type {};
template <class A, class B> constexpr bool is_same_v = is_same<A, B>::value;
template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { typedef T type; };
template <bool B, class T = void> using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class X, class Y> struct conditional { typedef X type; };
template <class X, class Y> struct conditional<false, X, Y> { typedef Y type; };
template <bool B, class X, class Y> using conditional_t = typename conditional<B, X, Y>::type;

template <class T> struct remove_cv { typedef __remove_cv(T) type; };
template <class T> using remove_cv_t = __remove_cv(T);
template <class T> struct remove_reference { typedef __remove_reference_t(T) type; };
template <class T> using remove_reference_t = __remove_reference_t(T);
template <class T> constexpr bool is_integral_v = __is_integral(T);
template <class T> struct is_integral : bool_constant<__is_integral(T)> {};
template <class T> constexpr bool is_floating_point_v =
    is_same_v<remove_cv_t<T>, float> || is_same_v<remove_cv_t<T>, half> || is_same_v<remove_cv_t<T>, bfloat>;
template <class T> struct is_floating_point : bool_constant<is_floating_point_v<T>> {};
template <class T> constexpr bool is_signed_v = T(-1) < T(0);
template <class T> constexpr bool is_unsigned_v = !is_signed_v<T>;

template <class T> struct numeric_limits;
#define EMU_INTEGER_LIMITS(T, lo, hi, bits)                 \
  template <> struct numeric_limits<T> {                    \
    static constexpr T min() { return T(lo); }              \
    static constexpr T lowest() { return T(lo); }           \
    static constexpr T max() { return T(hi); }              \
    static constexpr int digits = bits;                     \
    static constexpr bool is_integer = true;                \
  };
EMU_INTEGER_LIMITS(bool, 0, 1, 1)
EMU_INTEGER_LIMITS(char, -128, 127, 7)
EMU_INTEGER_LIMITS(uchar, 0, 255, 8)
EMU_INTEGER_LIMITS(short, -32768, 32767, 15)
EMU_INTEGER_LIMITS(ushort, 0, 65535, 16)
EMU_INTEGER_LIMITS(int, -2147483647 - 1, 2147483647, 31)
EMU_INTEGER_LIMITS(uint, 0, 4294967295u, 32)
EMU_INTEGER_LIMITS(long, -9223372036854775807l - 1, 9223372036854775807l, 63)
EMU_INTEGER_LIMITS(ulong, 0, 18446744073709551615ul, 64)
#define EMU_FLOAT_LIMITS(T, lo, hi, eps, bits)                            \
  template <> struct numeric_limits<T> {                                  \
    static constexpr T min() { return T(lo); }                            \
    static constexpr T max() { return T(hi); }                            \
    static constexpr T lowest() { return -T(hi); }                        \
    static constexpr T epsilon() { return T(eps); }                       \
    static constexpr T infinity() { return T(INFINITY); }                 \
    static constexpr T quiet_NaN() { return T(NAN); }                     \
    static constexpr int digits = bits;                                   \
    static constexpr bool is_integer = false;                             \
  };
EMU_FLOAT_LIMITS(float, FLT_MIN, MAXFLOAT, FLT_EPSILON, 24)
EMU_FLOAT_LIMITS(half, 0x1p-14f, 65504.0f, 0x1p-10f, 11)
EMU_FLOAT_LIMITS(bfloat, 0x1p-126f, 0x1.fep127f, 0x1p-7f, 8)
}  // namespace metal
