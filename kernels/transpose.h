// kLanes vectors transposed in registers.
#pragma once

#include "simd.h"

namespace tenarai {
namespace TENARAI_ISA {

// 0, 1 .. n - 1 as a type: Count<n>::type.
template <int... i>
struct Indices {};
template <int n, int... i>
struct Count : Count<n - 1, n - 1, i...> {};
template <int... i>
struct Count<0, i...> {
  using type = Indices<i...>;
};

// One step of the transposition of kLanes vectors: where the index of a vector and the index of a
// lane differ in the bit kBit, the two change places.
template <int kBit, int... i>
TENARAI_INLINE vf keep_low(vf a, vf b, Indices<i...>) {
  return __builtin_shufflevector(a, b, (i & kBit ? kLanes + i - kBit : i)...);
}
template <int kBit, int... i>
TENARAI_INLINE vf keep_high(vf a, vf b, Indices<i...>) {
  return __builtin_shufflevector(a, b, (i & kBit ? kLanes + i : i + kBit)...);
}
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
// Vector i, lane j becomes vector j, lane i.
TENARAI_INLINE void transpose(vf* v) {
  if constexpr (kLanes > 8) transpose_step<8>(v);
  if constexpr (kLanes > 4) transpose_step<4>(v);
  transpose_step<2>(v);
  transpose_step<1>(v);
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
