// Packing: an operand of a matrix product, copied into the panels that the micro-kernel reads.
//
// An operand is lines times k: lines are rows of A or columns of B. Its panels are kWidth lines
// wide (kRows or kCols), one after the other, each [k][kWidth]; lines beyond the last are zero.
// A policy says where element (line, k) stands, and what is done to it on the way:
//
//   Along<Map>   a line is contiguous in memory       p[line * stride + k]     transposed on the way
//   Across<Map>  the lines of one k are contiguous    p[k * stride + line]     copied
#pragma once

#include "math.h"

namespace tenarai {
namespace TENARAI_ISA {

struct Same {
  static vf map(vf x) { return x; }
};
template <bool kTanh>
struct GeluOf {
  static vf map(vf x) { return gelu<kTanh>(x); }
};

// Where lines line .. line + kLanes - 1 of one k go: a whole vector where panels are that wide,
// pieces of several panels where they are narrower. K is the panels' length.
template <int kWidth>
TENARAI_INLINE void store_lines(float* panels, i64 line, i64 k, i64 K, vf v) {
  if constexpr (kWidth >= kLanes) {
    store(panels + line / kWidth * kWidth * K + k * kWidth + line % kWidth, v);
  } else {
    float lane[kLanes];
    store(lane, v);
    for (int i = 0; i < kLanes; i += kWidth)
      std::memcpy(panels + (line + i) * K + k * kWidth, lane + i, kWidth * sizeof(float));
  }
}

// One step of the transposition of kLanes vectors: where the index of a vector and the index of a
// lane differ in the bit kBit, the two change places.
template <int... i>
struct Indices {};
template <int kBit, int... i>
TENARAI_INLINE vf keep_low(vf a, vf b, Indices<i...>) {
  return __builtin_shufflevector(a, b, (i & kBit ? kLanes + i - kBit : i)...);
}
template <int kBit, int... i>
TENARAI_INLINE vf keep_high(vf a, vf b, Indices<i...>) {
  return __builtin_shufflevector(a, b, (i & kBit ? kLanes + i : i + kBit)...);
}
template <int n, int... i>
struct Count : Count<n - 1, n - 1, i...> {};
template <int... i>
struct Count<0, i...> {
  using type = Indices<i...>;
};
template <int kBit>
TENARAI_INLINE void transpose_step(vf* v) {
  using Lanes = typename Count<kLanes>::type;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if ((i & kBit) == 0) {
      const vf low = v[i], high = v[i + kBit];
      v[i] = keep_low<kBit>(low, high, Lanes());
      v[i + kBit] = keep_high<kBit>(low, high, Lanes());
    }
}
TENARAI_INLINE void transpose(vf* v) {
  if constexpr (kLanes > 8) transpose_step<8>(v);
  if constexpr (kLanes > 4) transpose_step<4>(v);
  transpose_step<2>(v);
  transpose_step<1>(v);
}

template <class Map>
struct Along {
  const float* p;
  i64 stride;

  // panels = lines [line0, line0 + lines) of k [k0, k0 + K).
  template <int kWidth>
  void pack(float* panels, i64 line0, i64 lines, i64 k0, i64 K) const {
    for (i64 line = 0; line < lines; line += kLanes) {
      const i64 n = lines - line < kLanes ? lines - line : kLanes;
      const float* from = p + (line0 + line) * stride + k0;
      i64 k = 0;
      for (; k + kLanes <= K; k += kLanes) block<kWidth>(panels, line, n, k, K, from + k, kLanes);
      if (k < K) block<kWidth>(panels, line, n, k, K, from + k, K - k);
    }
  }

 private:
  template <int kWidth>
  TENARAI_INLINE void block(float* panels, i64 line, i64 n, i64 k, i64 K, const float* from,
                            i64 steps, i64 stride) {
    vf v[kLanes];
    if (n == kLanes && steps == kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) v[i] = Map::map(load(from + i * stride));
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        v[i] = i < n ? Map::map(load_n(from + i * stride, steps)) : vf{};
    }
    transpose(v);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if (i < steps) store_lines<kWidth>(panels, line, k + i, K, v[i]);
  }
  template <int kWidth>
  void block(float* panels, i64 line, i64 n, i64 k, i64 K, const float* from, i64 steps) const {
    block<kWidth>(panels, line, n, k, K, from, steps, stride);
  }
};

template <class Map>
struct Across {
  const float* p;
  i64 stride;

  template <int kWidth>
  void pack(float* panels, i64 line0, i64 lines, i64 k0, i64 K) const {
    const i64 block = 4 * kLanes;  // lines at a time: their panels are few enough for the L1 cache
    for (i64 begin = 0; begin < lines; begin += block) {
      const i64 end = begin + block < lines ? begin + block : lines;
      for (i64 k = 0; k < K; ++k) {
        const float* from = p + (k0 + k) * stride + line0;
        i64 line = begin;
        for (; line + kLanes <= end; line += kLanes)
          store_lines<kWidth>(panels, line, k, K, Map::map(load(from + line)));
        if (line < end)
          store_lines<kWidth>(panels, line, k, K, Map::map(load_n(from + line, end - line)));
      }
    }
  }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai
