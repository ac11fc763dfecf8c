// Quantised weights one at a time, as the formulas above the structs of quant_formats.h read, and
// random blocks of them.
#pragma once

#include <cstring>
#include <vector>

#include "test.h"

namespace tenarai::test {

// A float16 at any address: 1 bit of sign, 5 of exponent, 10 of fraction; finite.
inline double half_at(const uint8_t* p) {
  const int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double size =
      exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return bits >> 15 ? -size : size;
}
inline double float_at(const uint8_t* p) {
  float x;
  std::memcpy(&x, p, 4);
  return x;
}
inline double bfloat_at(const uint8_t* p) {
  const uint8_t wide[4] = {0, 0, p[0], p[1]};
  return float_at(wide);
}

// Weight i of the block at b.
inline double weight_at(QuantFormat format, const uint8_t* b, int64_t i) {
  static const int levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                 1,    13,   25,  38,  53,  69,  89,  113};
  const auto nibble = [](uint8_t byte, int64_t high) { return byte >> 4 * high & 15; };
  const auto bits = [](uint8_t byte, int64_t which) { return byte >> 2 * which & 3; };
  const auto bit = [](uint8_t byte, int64_t which) { return byte >> which & 1; };
  const auto plain = [&](const uint8_t* q) { return nibble(q[i % 16], i / 16); };
  const auto two = [&](const uint8_t* q) { return bits(q[i / 128 * 32 + i % 32], i / 32 % 4); };
  const auto four = [&](const uint8_t* q) { return nibble(q[i / 64 * 32 + i % 32], i / 32 % 2); };
  const int64_t j = i / 32, k = i / 16;
  const auto scale = [&](int64_t min) {  // of Q4_K and Q5_K; the minimum's where `min`
    const uint8_t* s = b + 4 + 4 * min;
    return j < 4 ? s[j] & 63 : nibble(b[8 + j], min) | (s[j - 4] >> 6) << 4;
  };
  switch (format) {
    case QuantFormat::f32:
      return float_at(b);
    case QuantFormat::f16:
      return half_at(b);
    case QuantFormat::bf16:
      return bfloat_at(b);
    case QuantFormat::q4_0:
      return half_at(b) * (plain(b + 2) - 8);
    case QuantFormat::q4_1:
      return half_at(b) * plain(b + 4) + half_at(b + 2);
    case QuantFormat::q5_0:
      return half_at(b) * ((plain(b + 6) | bit(b[2 + i / 8], i % 8) << 4) - 16);
    case QuantFormat::q5_1:
      return half_at(b) * (plain(b + 8) | bit(b[4 + i / 8], i % 8) << 4) + half_at(b + 2);
    case QuantFormat::q8_0:
      return half_at(b) * static_cast<int8_t>(b[2 + i]);
    case QuantFormat::q8_k:
      return float_at(b) * static_cast<int8_t>(b[4 + i]);
    case QuantFormat::q2_k:
      return half_at(b + 80) * nibble(b[k], 0) * two(b + 16) - half_at(b + 82) * nibble(b[k], 1);
    case QuantFormat::q3_k:
      return half_at(b + 108) *
             ((nibble(b[96 + k % 8], k / 8) | bits(b[104 + k % 4], k / 4) << 4) - 32) *
             ((two(b + 32) | bit(b[i % 32], j) << 2) - 4);
    case QuantFormat::q4_k:
      return half_at(b) * scale(0) * four(b + 16) - half_at(b + 2) * scale(1);
    case QuantFormat::q5_k:
      return half_at(b) * scale(0) * (four(b + 48) | bit(b[16 + i % 32], j) << 4) -
             half_at(b + 2) * scale(1);
    case QuantFormat::q6_k:
      return half_at(b + 208) * static_cast<int8_t>(b[192 + k]) *
             ((nibble(b[i / 128 * 64 + i % 64], i / 64 % 2) | two(b + 128) << 4) - 32);
    case QuantFormat::iq4_nl:
      return half_at(b) * levels[plain(b + 2)];
    case QuantFormat::iq4_xs:
      return half_at(b) * ((nibble(b[4 + j / 2], j % 2) | bits(b[2 + j / 4], j % 4) << 4) - 32) *
             levels[nibble(b[8 + j * 16 + i % 16], i % 32 / 16)];
  }
  return NAN;
}

// A matrix (O, I) of a format at an odd address, between guards.
class Blocks {
 public:
  const QuantFormat format;
  const BlockSize size;
  const int64_t O, I, row_bytes;

  Blocks(QuantFormat f, int64_t o, int64_t i)
      : format(f),
        size(block_size(f)),
        O(o),
        I(i),
        row_bytes(i / size.weights * size.bytes),
        storage_(static_cast<size_t>(o * row_bytes) + 2, kGuard) {}
  uint8_t* data() { return storage_.data() + 1; }
  bool guards_hold() const { return storage_.front() == kGuard && storage_.back() == kGuard; }
  double at(int64_t o, int64_t i) {
    return weight_at(format, data() + o * row_bytes + i / size.weights * size.bytes,
                     i % size.weights);
  }
  std::vector<double> wide() {
    std::vector<double> w;
    for (int64_t i = 0; i < O * I; ++i) w.push_back(at(i / I, i % I));
    return w;
  }

  // Anything, but for the float16 numbers at `halves` (-1: none): some of +-2^-6 to 2^-5. Floats
  // are random numbers.
  void fill(const int (&halves)[2]) {
    for (int64_t i = 0; i < O * row_bytes; ++i)
      data()[i] = static_cast<uint8_t>(random_number() * 128 + 128);
    for (int64_t block = 0; block < O * I / size.weights; ++block) {
      uint8_t* const b = data() + block * size.bytes;
      for (const int half : halves)
        if (half >= 0) b[half + 1] = static_cast<uint8_t>((b[half + 1] & 0x83) | 0x24);
      const float x = random_number();
      if (format == QuantFormat::f32) std::memcpy(b, &x, 4);
      if (format == QuantFormat::bf16) std::memcpy(b, reinterpret_cast<const char*>(&x) + 2, 2);
    }
  }

 private:
  static constexpr uint8_t kGuard = 0xa5;
  std::vector<uint8_t> storage_;
};

struct BlockCase {
  const char* name;
  QuantFormat format;
  int halves[2];  // where float16 numbers stand in a block, -1 for none
  // What `quantize` loses at most of numbers spread evenly over (-1, 1), as a part of their size:
  // some 3 % above what was measured; another instruction set's rounding may take another way.
  double lost;
};
inline constexpr BlockCase kBlockCases[] = {
    {"F32", QuantFormat::f32, {-1, -1}, 0},
    {"F16", QuantFormat::f16, {0, -1}, 2e-4},
    {"BF16", QuantFormat::bf16, {-1, -1}, 1.6e-3},
    {"Q4_0", QuantFormat::q4_0, {0, -1}, 0.062},
    {"Q4_1", QuantFormat::q4_1, {0, 2}, 0.056},
    {"Q5_0", QuantFormat::q5_0, {0, -1}, 0.030},
    {"Q5_1", QuantFormat::q5_1, {0, 2}, 0.027},
    {"Q8_0", QuantFormat::q8_0, {0, -1}, 3.6e-3},
    {"Q2_K", QuantFormat::q2_k, {80, 82}, 0.22},
    {"Q3_K", QuantFormat::q3_k, {108, -1}, 0.125},
    {"Q4_K", QuantFormat::q4_k, {0, 2}, 0.056},
    {"Q5_K", QuantFormat::q5_k, {0, 2}, 0.0275},
    {"Q6_K", QuantFormat::q6_k, {208, -1}, 0.0131},
    {"IQ4_NL", QuantFormat::iq4_nl, {0, -1}, 0.063},
    {"IQ4_XS", QuantFormat::iq4_xs, {0, -1}, 0.066},
};

}  // namespace tenarai::test
