// float32 to bfloat16 and back, for what is kept between forward and backward. How one number is
// rounded stands in half.h.
//
// The CPU's own conversion (AVX512-BF16) is not used: it takes subnormal numbers for zero.
#include "half.h"
#include "ops.h"
#include "parts.h"

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kGrain = 64;  // no cache line has two threads' numbers, where y is aligned

void to_bfloat16(Pool& pool, uint16_t* y, const float* x, i64 n) {
  for_parts(pool, n, 2, kGrain, [=](int, i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) y[i] = to_bfloat(x[i]);
  });
}

void from_bfloat16(Pool& pool, float* y, const uint16_t* x, i64 n) {
  for_parts(pool, n, 2, kGrain, [=](int, i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) y[i] = from_bfloat(x[i]);
  });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
