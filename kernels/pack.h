// Packing: an operand of a matrix product, copied into the panels that the micro-kernel reads.
//
// An operand is lines times k: lines are rows of A or columns of B. Its panels are kWidth lines
// wide (kRows or kCols), one after the other, each [k][kWidth]; lines beyond the last are zero as
// far as its vector goes.
// A policy says where element (line, k) stands, and what is done to it on the way:
//
//   Along<Map>   a line is contiguous in memory       p[line * stride + k]     transposed on the
//   way Across<Map>  the lines of one k are contiguous    p[k * stride + line]     copied
//
// and kDepthGrain, of which the blocks of k that it is asked for are whole multiples.
#pragma once

#include "math.h"
#include "micro.h"
#include "threads.h"
#include "transpose.h"

namespace tenarai {
namespace TENARAI_ISA {

struct Same {
  static vf map(vf x) { return x; }
};
template <bool kTanh>
struct GeluOf {
  static vf map(vf x) { return gelu<kTanh>(x); }
};

// Where lines line .. line + kLanes - 1 of one k go: into one panel, or the halves of a vector into
// two panels. K is the panels' length.
template <int... i>
TENARAI_INLINE void store_halves(float* low, float* high, vf v, Indices<i...>) {
  typedef float half __attribute__((vector_size(kVectorBytes / 2)));
  const half a = __builtin_shufflevector(v, v, i...);
  const half b = __builtin_shufflevector(v, v, (i + kLanes / 2)...);
  std::memcpy(low, &a, sizeof a);
  std::memcpy(high, &b, sizeof b);
}
template <int kWidth>
TENARAI_INLINE void store_lines(float* panels, i64 line, i64 k, i64 K, vf v) {
  if constexpr (kWidth >= kLanes) {
    store(panels + line / kWidth * kWidth * K + k * kWidth + line % kWidth, v);
  } else {
    static_assert(2 * kWidth == kLanes, "a panel is half a vector wide, or whole vectors");
    float* low = panels + line * K + k * kWidth;
    store_halves(low, low + kWidth * K, v, typename Count<kLanes / 2>::type());
  }
}

template <class Map>
struct Along {
  static constexpr i64 kDepthGrain = 8;
  const float* p;
  i64 stride;

  // panels = lines [line0, line0 + lines) of k [k0, k0 + K).
  template <int kWidth>
  void pack(float* panels, i64 line0, i64 lines, i64 k0, i64 K) const {
    for (i64 line = 0; line < lines; line += kLanes) {
      const i64 n = lines - line < kLanes ? lines - line : kLanes;
      const float* from = p + (line0 + line) * stride + k0;
      if (K < kLanes) {
        block<kWidth>(panels, line, n, 0, K, from, K);
        continue;
      }
      // The first and the last block overlap their neighbours, so that all others are whole and,
      // where rows are a whole number of vectors, aligned: a load that touches two cache lines
      // loses the second before its turn comes, when rows are a multiple of 4 KB apart.
      block<kWidth>(panels, line, n, 0, K, from, kLanes);
      const i64 past = static_cast<i64>(reinterpret_cast<uintptr_t>(from) / 4 % kLanes);
      i64 k = kLanes - past;
      const bool more = line + 2 * kLanes <= lines;  // ask for the next lines meanwhile
      for (; k + kLanes < K; k += kLanes) {
        if (more)
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i)
            __builtin_prefetch(from + k + (kLanes + i) * stride, 0, 2);
        block<kWidth>(panels, line, n, k, K, from + k, kLanes);
      }
      block<kWidth>(panels, line, n, K - kLanes, K, from + K - kLanes, kLanes);
    }
  }

  // What pack will read.
  Lines reads(i64 line0, i64 lines, i64 k0, i64 K) const {
    return Lines::of(p + line0 * stride + k0, stride, lines, K);
  }

 private:
  template <int kWidth>
  void block(float* panels, i64 line, i64 n, i64 k, i64 K, const float* from, i64 steps) const {
    vf v[kLanes];
    if (n == kLanes && steps == kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) v[i] = Map::map(load(from + i * stride));
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store_lines<kWidth>(panels, line, k + i, K, v[i]);
    } else {
      for (int i = 0; i < kLanes; ++i)
        v[i] = i < n ? Map::map(load_n(from + i * stride, steps)) : vf{};
      transpose(v);
      for (int i = 0; i < steps; ++i) store_lines<kWidth>(panels, line, k + i, K, v[i]);
    }
  }
};

template <class Map>
struct Across {
  static constexpr i64 kDepthGrain = 8;
  const float* p;
  i64 stride;

  template <int kWidth>
  void pack(float* panels, i64 line0, i64 lines, i64 k0, i64 K) const {
    // A cache line's worth of lines at a time, or a panel's: each line of memory is read once, and
    // the panels written (4 KB apart, perhaps) are few.
    constexpr i64 kGroup = kWidth > kLanes ? kWidth : 2 * kLanes;
    for (i64 line = 0; line < lines; line += kGroup) {
      const float* from = p + k0 * stride + line0 + line;
      float* to = panels + line * K;
      if (lines - line >= kGroup)
        for (i64 k = 0; k < K; ++k) {
#pragma GCC unroll 16
          for (i64 i = 0; i < kGroup; i += 16)  // each row on a page of its own, perhaps
            __builtin_prefetch(from + (k + 16) * stride + i, 0, 3);
          copy<kWidth, kGroup>(to + k * kWidth, from + k * stride, K);
        }
      else
        for (i64 k = 0; k < K; ++k)
          for (i64 i = 0; i < lines - line; i += kLanes) {
            const i64 n = lines - line - i < kLanes ? lines - line - i : kLanes;
            store_lines<kWidth>(to, i, k, K, Map::map(load_n(from + k * stride + i, n)));
          }
    }
  }

  Lines reads(i64 line0, i64 lines, i64 k0, i64 K) const {
    return Lines::of(p + k0 * stride + line0, stride, K, lines);
  }

 private:
  template <int kWidth, i64 kGroup>
  TENARAI_INLINE void copy(float* to, const float* from, i64 K) {
#pragma GCC unroll 16
    for (i64 i = 0; i < kGroup; i += kLanes)
      store_lines<kWidth>(to, i, 0, K, Map::map(load(from + i)));
  }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai
