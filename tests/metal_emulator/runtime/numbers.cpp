// Conversions of 16-bit floats that a compiler calls by name where the processor has none. Bits in, bits out.
#include "base.h"

static u32 bits_of(float x) { return __builtin_bit_cast(u32, x); }

static u16 half_bits(float x) {  // to nearest, ties to even
  u32 bits = bits_of(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return sign | 0x7e00 | (rest >> 13 & 0x3ff);
  if (rest >= 0x47800000) return sign | 0x7c00;
  if (rest < 0x38800000) {  // below the smallest normal: an integer multiple of 2^-24
    float scaled = __builtin_bit_cast(float, rest) + 0.5f;  // 2^-24 is half's unit here and float's in [0.5, 1)
    return sign | (bits_of(scaled) - bits_of(0.5f));
  }
  return sign | ((rest + 0xfff + (rest >> 13 & 1) - 0x38000000) >> 13);
}

static float float_of_half(u16 half) {
  u32 sign = u32(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
  if (exponent == 31) return __builtin_bit_cast(float, sign | 0x7f800000 | fraction << 13);
  if (exponent) return __builtin_bit_cast(float, sign | (exponent + 112) << 23 | fraction << 13);
  float tiny = fraction * 0x1p-24f;
  return sign ? -tiny : tiny;
}

static u16 bfloat_bits(float x) {
  u32 bits = bits_of(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return bits >> 16 | 0x40;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

extern "C" {
_Float16 __truncsfhf2(float x) { return __builtin_bit_cast(_Float16, half_bits(x)); }
float __extendhfsf2(_Float16 x) { return float_of_half(__builtin_bit_cast(u16, x)); }
__bf16 __truncsfbf2(float x) { return __builtin_bit_cast(__bf16, bfloat_bits(x)); }
float __extendbfsf2(__bf16 x) { return __builtin_bit_cast(float, u32(__builtin_bit_cast(u16, x)) << 16); }
}
