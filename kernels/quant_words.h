// A group of 256 quantised weights as the products with rounded activations take them: whole
// numbers in words of 16 bits, each already times its sub-block's whole-number scale, and what
// turns sums of products into floats:
//
//     w[i] = scale[i / 32] · word[i] − min[i / 16]
//
// A K block is one group, and has one scale for all of it. Of the plain formats eight blocks make a
// group. |word| <= 2^12: Q6_K and IQ4_XS reach it. The plain loops that say what a block holds
// stand in quant_unpack.h; these do the same with vectors of words, and a test compares them.
#pragma once

#include "quant_words_plain.h"

namespace tenarai {
namespace TENARAI_ISA {

template <class Block>
constexpr int32_t most_word() {
  return 128;  // bytes
}
template <>
constexpr int32_t most_word<Q2_K>() {
  return 3 * 15;
}
template <>
constexpr int32_t most_word<Q4_K>() {
  return 15 * 63;
}
template <>
constexpr int32_t most_word<Q5_K>() {
  return 31 * 63;
}
template <>
constexpr int32_t most_word<Q6_K>() {
  return 32 * 128;
}
template <>
constexpr int32_t most_word<Q3_K>() {
  return 4 * 32;
}
template <>
constexpr int32_t most_word<IQ4_XS>() {
  return 127 * 32;
}

// Which weights of a group share a scale, and where they stand.
enum class Layout {
  super,   // all
  plain,   // 32 in their order
  paired,  // 32: half a vector and half of the next
};

template <class Block>
constexpr Layout layout_of() {
  return ShapeOf<Block>::weights == kSuperBlock ? Layout::super
         : kPaired                              ? Layout::paired
                                                : Layout::plain;
}
template <>
constexpr Layout layout_of<Q8_0>() {
  return Layout::plain;
}

template <class Block>
struct GroupOf {
  using Shape = ShapeOf<Block>;
  static constexpr Layout layout = layout_of<Block>();
  static constexpr bool plain = Shape::weights == kBlock;
  static constexpr i64 bytes = static_cast<i64>(sizeof(Block)) * (plain ? 8 : 1);

  static TENARAI_ALWAYS void unpack(const uint8_t* data, Group* g) {
    const Block* b = reinterpret_cast<const Block*>(data);
    if constexpr (plain) {
#pragma GCC unroll 4
      for (int j = 0; j < 8; j += 2) unpack_two(b + j, g->words + j * kHalves);
      plain_factors(b, g);
    } else {
      unpack_words(*b, g->words, g->min);
      g->scale[0] = from_half(b->d);
    }
  }
  // The first blocks of a group of plain ones; words of the others are left alone.
  static TENARAI_ALWAYS void unpack_some(const uint8_t* data, i64 blocks, Group* g) {
    const Block* b = reinterpret_cast<const Block*>(data);
    for (int j = 0; j < 8; ++j) {
      g->scale[j] = j < blocks ? from_half(b[j].d) : 0.0f;
      if constexpr (Shape::has_min)
        g->min[2 * j] = g->min[2 * j + 1] = j < blocks ? -from_half(b[j].m) : 0.0f;
    }
    for (i64 j = 0; j < blocks; j += 2) {
      Block last[2] = {};
      if (j + 1 == blocks) last[0] = b[j];
      unpack_two(j + 1 == blocks ? last : b + j, g->words + j * kHalves);
    }
  }
};
// For activations, with a float32 scale; nobody keeps weights in it.
template <>
struct GroupOf<Q8_K> {
  using Shape = ShapeOf<Q8_K>;
  static constexpr Layout layout = Layout::super;
  static constexpr bool plain = false;
  static constexpr i64 bytes = sizeof(Q8_K);

  static TENARAI_ALWAYS void unpack(const uint8_t* data, Group* g) {
    const Q8_K* b = reinterpret_cast<const Q8_K*>(data);
    for (int c = 0; c < kChunks; ++c) g->words[c] = widen(b->q + c * kWords);
    g->scale[0] = b->d;
  }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai
