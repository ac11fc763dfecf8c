// Rows of quantised weights in float32, whole matrices and embeddings. What a block holds stands in
// quant_unpack.h; products that never expand a matrix are quant_linear.cc's, the way back is
// quantize.cc's.
#include "ops.h"
#include "parts.h"
#include "quant_unpack.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

// n weights, a whole number of blocks, from `data`, which may begin at any byte.
void expand_row(float* y, const uint8_t* data, QuantFormat format, i64 n) {
  const bool blocks = with_block(format, [=](auto sample) {
    using Block = decltype(sample);
    for (i64 i = 0; i < n / ShapeOf<Block>::weights; ++i) {
      Block block;
      std::memcpy(&block, data + i * static_cast<i64>(sizeof block), sizeof block);
      expand_block(block, y + i * ShapeOf<Block>::weights);
    }
  });
  if (blocks) return;
  if (format == QuantFormat::f32) {
    std::memcpy(y, data, static_cast<size_t>(n) * 4);
    return;
  }
  for (i64 i = 0; i < n; ++i) {
    uint16_t h;
    std::memcpy(&h, data + 2 * i, 2);
    y[i] = format == QuantFormat::f16 ? from_half(h) : from_bfloat(h);
  }
}

}  // namespace

void dequantize(Pool& pool, float* y, const uint8_t* data, QuantFormat format, i64 O, i64 I,
                i64 row_bytes) {
  for_parts(pool, O, I, 1, [=](int, i64 begin, i64 end) {
    for (i64 o = begin; o < end; ++o) expand_row(y + o * I, data + o * row_bytes, format, I);
  });
}

void quant_embedding_forward(Pool& pool, float* x, const int32_t* tokens, const uint8_t* data,
                             QuantFormat format, const float* wpe, const int32_t* positions, i64 B,
                             i64 T, i64 C, i64 row_bytes, i64 start) {
  for_parts(pool, B * T, C, 1, [=](int, i64 begin, i64 end) {
    for (i64 place = begin; place < end; ++place) {
      float* const row = x + place * C;
      expand_row(row, data + tokens[place] * row_bytes, format, C);
      if (!wpe) continue;
      const float* const position = wpe + (positions ? positions[place] : start + place % T) * C;
      for (i64 i = 0; i < C; ++i) row[i] += position[i];
    }
  });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
