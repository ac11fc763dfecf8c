// The blocks of quantised weights, as GGUF files hold them (little-endian): a struct, a formula and
// a static assertion each. The readable twin is src/tenarai/quant/formats.py; what is done with
// blocks stands in quant.cc and quant_linear.cc.
//
// w is the weight, q its whole number as stored, d and m float16. In formats of 256 weights (the
// K types) each sub-block has a whole-number scale s of its own, some a minimum z as well.
// Source: the GGUF specification and the layouts of ggml.
#pragma once

#include <cstdint>

namespace tenarai {

constexpr int kBlock = 32;        // weights in a block of the plain formats
constexpr int kSuperBlock = 256;  // and of the K formats

#pragma pack(push, 1)  // a block may stand at any address

// w = d (q - 8). Low nibbles are weights 0 to 15, high ones 16 to 31.
struct Q4_0 {
  uint16_t d;
  uint8_t q[kBlock / 2];
};
static_assert(sizeof(Q4_0) == 18);

// w = d q + m
struct Q4_1 {
  uint16_t d, m;
  uint8_t q[kBlock / 2];
};
static_assert(sizeof(Q4_1) == 20);

// w = d (q - 16). Bit i of `high` is the fifth bit of weight i.
struct Q5_0 {
  uint16_t d;
  uint8_t high[4];
  uint8_t q[kBlock / 2];
};
static_assert(sizeof(Q5_0) == 22);

// w = d q + m
struct Q5_1 {
  uint16_t d, m;
  uint8_t high[4];
  uint8_t q[kBlock / 2];
};
static_assert(sizeof(Q5_1) == 24);

// w = d q
struct Q8_0 {
  uint16_t d;
  int8_t q[kBlock];
};
static_assert(sizeof(Q8_0) == 34);

// w = d s q - dmin z; 16 sub-blocks of 16; scale[i] = s | z << 4. Two bits a weight: byte
// 32 (i / 128) + i % 32, bits 2 (i / 32 % 4).
struct Q2_K {
  uint8_t scale[kSuperBlock / 16];
  uint8_t q[kSuperBlock / 4];
  uint16_t d, dmin;
};
static_assert(sizeof(Q2_K) == 84);

// w = d (s - 32) (q - 4); 16 sub-blocks of 16, s in 6 bits. q's low two bits as in Q2_K, its third
// one is bit i / 32 of high[i % 32].
struct Q3_K {
  uint8_t high[kSuperBlock / 8];
  uint8_t q[kSuperBlock / 4];
  uint8_t scale[12];
  uint16_t d;
};
static_assert(sizeof(Q3_K) == 110);

// w = d s q - dmin z; 8 sub-blocks of 32, s and z in 6 bits. Nibbles: byte 32 (i / 64) + i % 32,
// high where i / 32 is odd.
struct Q4_K {
  uint16_t d, dmin;
  uint8_t scale[12];
  uint8_t q[kSuperBlock / 2];
};
static_assert(sizeof(Q4_K) == 144);

// The same with a fifth bit: bit i / 32 of high[i % 32].
struct Q5_K {
  uint16_t d, dmin;
  uint8_t scale[12];
  uint8_t high[kSuperBlock / 8];
  uint8_t q[kSuperBlock / 2];
};
static_assert(sizeof(Q5_K) == 176);

// w = d s (q - 32); 16 sub-blocks of 16. Low nibbles: byte 64 (i / 128) + i % 64, high where
// i / 64 is odd; two high bits: byte 32 (i / 128) + i % 32, bits 2 (i / 32 % 4).
struct Q6_K {
  uint8_t low[kSuperBlock / 2];
  uint8_t high[kSuperBlock / 4];
  int8_t scale[kSuperBlock / 16];
  uint16_t d;
};
static_assert(sizeof(Q6_K) == 210);

// w = d q, d float32; for activations. sums[i] is that of q over 16.
struct Q8_K {
  float d;
  int8_t q[kSuperBlock];
  int16_t sums[kSuperBlock / 16];
};
static_assert(sizeof(Q8_K) == 292);

// w = d table[q], a table of 16 levels. Nibbles as in Q4_0.
struct IQ4_NL {
  uint16_t d;
  uint8_t q[kBlock / 2];
};
static_assert(sizeof(IQ4_NL) == 18);

// w = d (s - 32) table[q]; 8 sub-blocks of 32, nibbles as in Q4_0 within each. s: four bits in
// scale_low (two a byte), two in scale_high.
struct IQ4_XS {
  uint16_t d;
  uint16_t scale_high;
  uint8_t scale_low[kSuperBlock / 64];
  uint8_t q[kSuperBlock / 2];
};
static_assert(sizeof(IQ4_XS) == 136);

#pragma pack(pop)

// The formats by the numbers that GGUF files give them.
enum class QuantFormat : int {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  q8_k = 15,
  iq4_nl = 20,
  iq4_xs = 23,
  bf16 = 30
};

// Weights and bytes of a block; zeros for a number that is none of the formats.
struct BlockSize {
  int weights, bytes;
};
static inline BlockSize block_size(QuantFormat format) {
  switch (format) {
      // clang-format off
    case QuantFormat::f32: return {1, 4};
    case QuantFormat::f16: case QuantFormat::bf16: return {1, 2};
    case QuantFormat::q4_0: return {kBlock, sizeof(Q4_0)};
    case QuantFormat::q4_1: return {kBlock, sizeof(Q4_1)};
    case QuantFormat::q5_0: return {kBlock, sizeof(Q5_0)};
    case QuantFormat::q5_1: return {kBlock, sizeof(Q5_1)};
    case QuantFormat::q8_0: return {kBlock, sizeof(Q8_0)};
    case QuantFormat::q2_k: return {kSuperBlock, sizeof(Q2_K)};
    case QuantFormat::q3_k: return {kSuperBlock, sizeof(Q3_K)};
    case QuantFormat::q4_k: return {kSuperBlock, sizeof(Q4_K)};
    case QuantFormat::q5_k: return {kSuperBlock, sizeof(Q5_K)};
    case QuantFormat::q6_k: return {kSuperBlock, sizeof(Q6_K)};
    case QuantFormat::q8_k: return {kSuperBlock, sizeof(Q8_K)};
    case QuantFormat::iq4_nl: return {kBlock, sizeof(IQ4_NL)};
    case QuantFormat::iq4_xs: return {kSuperBlock, sizeof(IQ4_XS)};
      // clang-format on
  }
  return {0, 0};
}

}  // namespace tenarai
