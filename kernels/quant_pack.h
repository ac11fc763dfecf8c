// Levels and scales put into a block: quant_unpack.h the other way. A code is a level as it is
// stored: the level plus the format's offset, or for IQ4_NL and IQ4_XS its place in kLevels.
#pragma once

#include "half.h"
#include "quant_formats.h"

namespace tenarai {
namespace TENARAI_ISA {

// The low nibbles of n bytes first.
template <int kBytes>
TENARAI_INLINE void pack_nibbles(const uint8_t* __restrict code, uint8_t* __restrict packed) {
  for (int i = 0; i < kBytes; ++i)
    packed[i] = static_cast<uint8_t>((code[i] & 15) | (code[i + kBytes] & 15) << 4);
}
// Two bits of 256 codes, from bit `shift` on.
TENARAI_INLINE void pack_twos(const uint8_t* __restrict code, int shift,
                              uint8_t* __restrict packed) {
  for (int half = 0; half < 2; ++half)
    for (int i = 0; i < 32; ++i) {
      int byte = 0;
      for (int two = 0; two < 4; ++two)
        byte |= (code[128 * half + 32 * two + i] >> shift & 3) << 2 * two;
      packed[32 * half + i] = static_cast<uint8_t>(byte);
    }
}
// Bit `bit` of 256 codes.
TENARAI_INLINE void pack_ones(const uint8_t* __restrict code, int bit, uint8_t* __restrict packed) {
  for (int i = 0; i < 32; ++i) {
    int byte = 0;
    for (int j = 0; j < 8; ++j) byte |= (code[32 * j + i] >> bit & 1) << j;
    packed[i] = static_cast<uint8_t>(byte);
  }
}
TENARAI_INLINE void pack_fifths(const uint8_t* __restrict code, uint8_t* __restrict high) {
  for (int byte = 0; byte < 4; ++byte) {
    int bits = 0;
    for (int i = 0; i < 8; ++i) bits |= (code[8 * byte + i] >> 4 & 1) << i;
    high[byte] = static_cast<uint8_t>(bits);
  }
}

TENARAI_INLINE void pack_codes(Q4_0& b, const uint8_t* code) { pack_nibbles<16>(code, b.q); }
TENARAI_INLINE void pack_codes(Q4_1& b, const uint8_t* code) { pack_nibbles<16>(code, b.q); }
TENARAI_INLINE void pack_codes(IQ4_NL& b, const uint8_t* code) { pack_nibbles<16>(code, b.q); }
TENARAI_INLINE void pack_codes(Q5_0& b, const uint8_t* code) {
  pack_nibbles<16>(code, b.q);
  pack_fifths(code, b.high);
}
TENARAI_INLINE void pack_codes(Q5_1& b, const uint8_t* code) {
  pack_nibbles<16>(code, b.q);
  pack_fifths(code, b.high);
}
// Eight bits: the code is the level plus 128.
TENARAI_INLINE void pack_codes(Q8_0& b, const uint8_t* code) {
  for (int i = 0; i < kBlock; ++i) b.q[i] = static_cast<int8_t>(code[i] - 128);
}
TENARAI_INLINE void pack_codes(Q8_K& b, const uint8_t* code) {
  for (int i = 0; i < kSuperBlock; ++i) b.q[i] = static_cast<int8_t>(code[i] - 128);
  for (int j = 0; j < kSuperBlock / 16; ++j) {
    int sum = 0;
    for (int i = 0; i < 16; ++i) sum += b.q[16 * j + i];
    b.sums[j] = static_cast<int16_t>(sum);
  }
}
TENARAI_INLINE void pack_codes(Q2_K& b, const uint8_t* code) { pack_twos(code, 0, b.q); }
TENARAI_INLINE void pack_codes(Q3_K& b, const uint8_t* code) {
  pack_twos(code, 0, b.q);
  pack_ones(code, 2, b.high);
}
TENARAI_INLINE void pack_codes(Q4_K& b, const uint8_t* code) {
  for (int pair = 0; pair < 4; ++pair) pack_nibbles<32>(code + 64 * pair, b.q + 32 * pair);
}
TENARAI_INLINE void pack_codes(Q5_K& b, const uint8_t* code) {
  for (int pair = 0; pair < 4; ++pair) pack_nibbles<32>(code + 64 * pair, b.q + 32 * pair);
  pack_ones(code, 4, b.high);
}
TENARAI_INLINE void pack_codes(Q6_K& b, const uint8_t* code) {
  for (int half = 0; half < 2; ++half) pack_nibbles<64>(code + 128 * half, b.low + 64 * half);
  pack_twos(code, 4, b.high);
}
TENARAI_INLINE void pack_codes(IQ4_XS& b, const uint8_t* code) {
  for (int j = 0; j < 8; ++j) pack_nibbles<16>(code + 32 * j, b.q + 16 * j);
}

// Whole-number scales s and minima z, one a sub-block.
TENARAI_INLINE void pack_scales(Q2_K& b, const int* s, const int* z) {
  for (int j = 0; j < 16; ++j) b.scale[j] = static_cast<uint8_t>(s[j] | z[j] << 4);
}
template <class FourOrFive>
TENARAI_INLINE void pack_scales(FourOrFive& b, const int* s, const int* z) {
  for (int j = 0; j < 4; ++j) {
    b.scale[j] = static_cast<uint8_t>(s[j] | (s[j + 4] >> 4) << 6);
    b.scale[j + 4] = static_cast<uint8_t>(z[j] | (z[j + 4] >> 4) << 6);
    b.scale[j + 8] = static_cast<uint8_t>((s[j + 4] & 15) | (z[j + 4] & 15) << 4);
  }
}
// Signed ones.
TENARAI_INLINE void pack_scales(Q3_K& b, const int* s) {
  for (int j = 0; j < 12; ++j) b.scale[j] = 0;
  for (int j = 0; j < 16; ++j) {
    const int u = s[j] + 32;
    b.scale[j % 8] = static_cast<uint8_t>(b.scale[j % 8] | (u & 15) << 4 * (j / 8));
    b.scale[8 + j % 4] = static_cast<uint8_t>(b.scale[8 + j % 4] | (u >> 4) << 2 * (j / 4));
  }
}
TENARAI_INLINE void pack_scales(Q6_K& b, const int* s) {
  for (int j = 0; j < 16; ++j) b.scale[j] = static_cast<int8_t>(s[j]);
}
TENARAI_INLINE void pack_scales(IQ4_XS& b, const int* s) {
  for (int j = 0; j < 4; ++j) b.scale_low[j] = 0;
  b.scale_high = 0;
  for (int j = 0; j < 8; ++j) {
    const int u = s[j] + 32;
    b.scale_low[j / 2] = static_cast<uint8_t>(b.scale_low[j / 2] | (u & 15) << 4 * (j % 2));
    b.scale_high = static_cast<uint16_t>(b.scale_high | (u >> 4) << 2 * j);
  }
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
