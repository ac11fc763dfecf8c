// A block of quantised weights, unpacked. Every format is
//
//     w[i] = scale[i / group] · q[i] − min[i / group]
//
// with q signed bytes in the order of the row, scale and min float32, and min 0 where the format
// has none. A product scale · q is exact in float32 in every format (float16 times a scale of at
// most 7 bits times a level of at most 7 bits), so w is rounded once and is the same in any order
// of factors, fused or not.
//
// Plain loops over fixed lengths: compilers make vectors of them. quant.cc expands rows with them,
// quant_linear.cc multiplies.
#pragma once

#include "half.h"
#include "quant_formats.h"

namespace tenarai {
namespace TENARAI_ISA {

template <int kWeights, int kGroup, bool kMin>
struct BlockShape {
  static constexpr int weights = kWeights;  // in a block
  static constexpr int group = kGroup;      // that share a scale
  static constexpr int groups = kWeights / kGroup;
  static constexpr bool has_min = kMin;
};
template <class Block>
struct ShapeOf;
// clang-format off
template <> struct ShapeOf<Q4_0> : BlockShape<32, 32, false> {};
template <> struct ShapeOf<Q4_1> : BlockShape<32, 32, true> {};
template <> struct ShapeOf<Q5_0> : BlockShape<32, 32, false> {};
template <> struct ShapeOf<Q5_1> : BlockShape<32, 32, true> {};
template <> struct ShapeOf<Q8_0> : BlockShape<32, 32, false> {};
template <> struct ShapeOf<Q2_K> : BlockShape<256, 16, true> {};
template <> struct ShapeOf<Q3_K> : BlockShape<256, 16, false> {};
template <> struct ShapeOf<Q4_K> : BlockShape<256, 32, true> {};
template <> struct ShapeOf<Q5_K> : BlockShape<256, 32, true> {};
template <> struct ShapeOf<Q6_K> : BlockShape<256, 16, false> {};
template <> struct ShapeOf<Q8_K> : BlockShape<256, 256, false> {};
template <> struct ShapeOf<IQ4_NL> : BlockShape<32, 32, false> {};
template <> struct ShapeOf<IQ4_XS> : BlockShape<256, 32, false> {};
// clang-format on

// The levels of IQ4_NL and IQ4_XS.
constexpr int8_t kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                1,    13,   25,  38,  53,  69,  89,  113};

// f(Block{}) for a format of blocks; false where it has none (F32, F16, BF16, unknown numbers).
template <class F>
static inline bool with_block(QuantFormat format, F&& f) {
  switch (format) {
      // clang-format off
    case QuantFormat::q4_0: f(Q4_0{}); return true;
    case QuantFormat::q4_1: f(Q4_1{}); return true;
    case QuantFormat::q5_0: f(Q5_0{}); return true;
    case QuantFormat::q5_1: f(Q5_1{}); return true;
    case QuantFormat::q8_0: f(Q8_0{}); return true;
    case QuantFormat::q2_k: f(Q2_K{}); return true;
    case QuantFormat::q3_k: f(Q3_K{}); return true;
    case QuantFormat::q4_k: f(Q4_K{}); return true;
    case QuantFormat::q5_k: f(Q5_K{}); return true;
    case QuantFormat::q6_k: f(Q6_K{}); return true;
    case QuantFormat::q8_k: f(Q8_K{}); return true;
    case QuantFormat::iq4_nl: f(IQ4_NL{}); return true;
    case QuantFormat::iq4_xs: f(IQ4_XS{}); return true;
    default: return false;
      // clang-format on
  }
}

// Scales as stored: whole numbers.

// Q4_K, Q5_K: s and z of 6 bits in 12 bytes. Sub-blocks 0 to 3: the low six bits of bytes j (s) and
// j + 4 (z). 4 to 7: the nibbles of byte j + 4, and above them the top two bits of bytes j - 4, j.
TENARAI_INLINE void unpack_scales(const uint8_t* __restrict packed, uint8_t* __restrict s,
                                  uint8_t* __restrict z) {
  for (int j = 0; j < 4; ++j) {
    s[j] = packed[j] & 63;
    z[j] = packed[j + 4] & 63;
    s[j + 4] = static_cast<uint8_t>((packed[j + 8] & 15) | (packed[j] >> 6) << 4);
    z[j + 4] = static_cast<uint8_t>(packed[j + 8] >> 4 | (packed[j + 4] >> 6) << 4);
  }
}
// Q3_K: s - 32 of 6 bits: the low four are nibble j / 8 of byte j % 8, the upper two are bits
// 2 (j / 4) of byte 8 + j % 4.
TENARAI_INLINE void unpack_scales(const Q3_K& b, int8_t* __restrict s) {
  for (int j = 0; j < 16; ++j) {
    const int low = b.scale[j % 8] >> 4 * (j / 8) & 15,
              high = b.scale[8 + j % 4] >> 2 * (j / 4) & 3;
    s[j] = static_cast<int8_t>((low | high << 4) - 32);
  }
}
// IQ4_XS: s - 32.
TENARAI_INLINE void unpack_scales(const IQ4_XS& b, int8_t* __restrict s) {
  for (int j = 0; j < 8; ++j) {
    const int low = b.scale_low[j / 2] >> 4 * (j % 2) & 15, high = b.scale_high >> 2 * j & 3;
    s[j] = static_cast<int8_t>((low | high << 4) - 32);
  }
}

// Levels alone. The fifth bits of a plain block as bytes of 0 and 16.
TENARAI_INLINE void unpack_high(const uint8_t* __restrict high, int8_t* __restrict q) {
  for (int i = 0; i < kBlock; ++i) q[i] = static_cast<int8_t>((high[i / 8] >> (i % 8) & 1) << 4);
}

// q = nibble - kOffset, the low ones of n bytes first.
template <int kBytes, int kOffset>
TENARAI_INLINE void unpack_nibbles(const uint8_t* __restrict packed, int8_t* __restrict q) {
  for (int i = 0; i < kBytes; ++i) {
    q[i] = static_cast<int8_t>((packed[i] & 15) - kOffset);
    q[i + kBytes] = static_cast<int8_t>((packed[i] >> 4) - kOffset);
  }
}

TENARAI_INLINE void unpack_levels(const Q4_0& b, int8_t* __restrict q) {
  unpack_nibbles<16, 8>(b.q, q);
}
TENARAI_INLINE void unpack_levels(const Q4_1& b, int8_t* __restrict q) {
  unpack_nibbles<16, 0>(b.q, q);
}
template <int kOffset>
TENARAI_INLINE void unpack_fives(const uint8_t* __restrict high, const uint8_t* __restrict packed,
                                 int8_t* __restrict q) {
  int8_t fifth[kBlock];
  unpack_high(high, fifth);
  unpack_nibbles<16, kOffset>(packed, q);
  for (int i = 0; i < kBlock; ++i) q[i] = static_cast<int8_t>(q[i] + fifth[i]);
}
TENARAI_INLINE void unpack_levels(const Q5_0& b, int8_t* __restrict q) {
  unpack_fives<16>(b.high, b.q, q);
}
TENARAI_INLINE void unpack_levels(const Q5_1& b, int8_t* __restrict q) {
  unpack_fives<0>(b.high, b.q, q);
}
TENARAI_INLINE void unpack_levels(const Q8_0& b, int8_t* __restrict q) {
  std::memcpy(q, b.q, kBlock);
}
TENARAI_INLINE void unpack_levels(const Q8_K& b, int8_t* __restrict q) {
  std::memcpy(q, b.q, kSuperBlock);
}
TENARAI_INLINE void unpack_levels(const Q2_K& b, int8_t* __restrict q) {
  for (int half = 0; half < 2; ++half)
    for (int two = 0; two < 4; ++two)
      for (int i = 0; i < 32; ++i)
        q[128 * half + 32 * two + i] = static_cast<int8_t>(b.q[32 * half + i] >> 2 * two & 3);
}
TENARAI_INLINE void unpack_levels(const Q3_K& b, int8_t* __restrict q) {
  for (int half = 0; half < 2; ++half)
    for (int two = 0; two < 4; ++two)
      for (int i = 0; i < 32; ++i) {
        const int low = b.q[32 * half + i] >> 2 * two & 3;
        const int third = (b.high[i] >> (4 * half + two) & 1) << 2;
        q[128 * half + 32 * two + i] = static_cast<int8_t>((low | third) - 4);
      }
}
TENARAI_INLINE void unpack_levels(const Q4_K& b, int8_t* __restrict q) {
  for (int pair = 0; pair < 4; ++pair) unpack_nibbles<32, 0>(b.q + 32 * pair, q + 64 * pair);
}
TENARAI_INLINE void unpack_levels(const Q5_K& b, int8_t* __restrict q) {
  for (int pair = 0; pair < 4; ++pair)
    for (int i = 0; i < 32; ++i) {
      const int byte = b.q[32 * pair + i], fifths = b.high[i] >> 2 * pair;
      q[64 * pair + i] = static_cast<int8_t>((byte & 15) | (fifths & 1) << 4);
      q[64 * pair + 32 + i] = static_cast<int8_t>(byte >> 4 | (fifths & 2) << 3);
    }
}
TENARAI_INLINE void unpack_levels(const Q6_K& b, int8_t* __restrict q) {
  for (int half = 0; half < 2; ++half)
    for (int i = 0; i < 32; ++i) {
      const int first = b.low[64 * half + i], second = b.low[64 * half + 32 + i];
      const int twos = b.high[32 * half + i];
      int8_t* const to = q + 128 * half + i;
      to[0] = static_cast<int8_t>(((first & 15) | (twos & 3) << 4) - 32);
      to[32] = static_cast<int8_t>(((second & 15) | (twos & 12) << 2) - 32);
      to[64] = static_cast<int8_t>((first >> 4 | (twos & 48)) - 32);
      to[96] = static_cast<int8_t>((second >> 4 | (twos & 192) >> 2) - 32);
    }
}
TENARAI_INLINE void unpack_table(const uint8_t* __restrict packed, int8_t* __restrict q) {
  for (int i = 0; i < 16; ++i) {
    q[i] = kLevels[packed[i] & 15];
    q[i + 16] = kLevels[packed[i] >> 4];
  }
}
TENARAI_INLINE void unpack_levels(const IQ4_NL& b, int8_t* __restrict q) { unpack_table(b.q, q); }
TENARAI_INLINE void unpack_levels(const IQ4_XS& b, int8_t* __restrict q) {
  for (int j = 0; j < 8; ++j) unpack_table(b.q + 16 * j, q + 32 * j);
}

// Scales and minima in float32, one a group. `min` is written only where the format has minima.
template <class Plain>  // one scale: Q4_0, Q5_0, Q8_0, IQ4_NL
TENARAI_INLINE void unpack_floats(const Plain& b, float* __restrict scale, float* __restrict) {
  scale[0] = from_half(b.d);
}
TENARAI_INLINE void unpack_floats(const Q4_1& b, float* __restrict scale, float* __restrict min) {
  scale[0] = from_half(b.d);
  min[0] = -from_half(b.m);
}
TENARAI_INLINE void unpack_floats(const Q5_1& b, float* __restrict scale, float* __restrict min) {
  scale[0] = from_half(b.d);
  min[0] = -from_half(b.m);
}
TENARAI_INLINE void unpack_floats(const Q8_K& b, float* __restrict scale, float* __restrict) {
  scale[0] = b.d;
}
TENARAI_INLINE void unpack_floats(const Q2_K& b, float* __restrict scale, float* __restrict min) {
  const float d = from_half(b.d), dmin = from_half(b.dmin);
  for (int j = 0; j < 16; ++j) {
    scale[j] = d * static_cast<float>(b.scale[j] & 15);
    min[j] = dmin * static_cast<float>(b.scale[j] >> 4);
  }
}
TENARAI_INLINE void unpack_floats(const Q3_K& b, float* __restrict scale, float* __restrict) {
  int8_t s[16];
  unpack_scales(b, s);
  const float d = from_half(b.d);
  for (int j = 0; j < 16; ++j) scale[j] = d * static_cast<float>(s[j]);
}
template <class FourOrFive>
TENARAI_INLINE void unpack_sixes(const FourOrFive& b, float* __restrict scale,
                                 float* __restrict min) {
  uint8_t s[8], z[8];
  unpack_scales(b.scale, s, z);
  const float d = from_half(b.d), dmin = from_half(b.dmin);
  for (int j = 0; j < 8; ++j) {
    scale[j] = d * static_cast<float>(s[j]);
    min[j] = dmin * static_cast<float>(z[j]);
  }
}
TENARAI_INLINE void unpack_floats(const Q4_K& b, float* __restrict scale, float* __restrict min) {
  unpack_sixes(b, scale, min);
}
TENARAI_INLINE void unpack_floats(const Q5_K& b, float* __restrict scale, float* __restrict min) {
  unpack_sixes(b, scale, min);
}
TENARAI_INLINE void unpack_floats(const Q6_K& b, float* __restrict scale, float* __restrict) {
  const float d = from_half(b.d);
  for (int j = 0; j < 16; ++j) scale[j] = d * static_cast<float>(b.scale[j]);
}
TENARAI_INLINE void unpack_floats(const IQ4_XS& b, float* __restrict scale, float* __restrict) {
  int8_t s[8];
  unpack_scales(b, s);
  const float d = from_half(b.d);
  for (int j = 0; j < 8; ++j) scale[j] = d * static_cast<float>(s[j]);
}

// The weights of a block in float32.
template <class Block>
TENARAI_INLINE void expand_block(const Block& b, float* __restrict w) {
  using S = ShapeOf<Block>;
  int8_t q[S::weights];
  float scale[S::groups], min[S::groups];
  unpack_levels(b, q);
  unpack_floats(b, scale, min);
  for (int g = 0; g < S::groups; ++g)
    for (int i = 0; i < S::group; ++i) {
      const float x = scale[g] * static_cast<float>(q[g * S::group + i]);
      w[g * S::group + i] = S::has_min ? x - min[g] : x;
    }
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
