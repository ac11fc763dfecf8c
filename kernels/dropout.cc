// Dropout with a counted random stream, bit for bit that of src/tenarai/ops/reference/dropout.py,
// where its formula stands: element i draws mix(mix(n0 ^ k0) ^ k1), n = counter + i, with keys
// from the seed and n's high word. No mask is stored; the backward draws it again.
#include "ops.h"
#include "parts.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

// A hash of 32 bits, of one word or of a vector of them.
template <class U>
TENARAI_INLINE U mix(U h) {
  h ^= h >> 16;
  h *= 0x21f0aaadu;
  h ^= h >> 15;
  h *= 0xd35a2d97u;
  return h ^ (h >> 15);
}

// n elements whose counters run from n1 : n0 on and share the high word n1.
void drop(float* y, const float* x, i64 n, uint32_t threshold, float scale, uint64_t seed,
          uint32_t n1, uint32_t n0) {
  const uint32_t s0 = static_cast<uint32_t>(seed), s1 = static_cast<uint32_t>(seed >> 32);
  const uint32_t k0 = mix(mix(s0 ^ 0x9e3779b9u) + n1), k1 = mix(mix(s1 ^ 0x85ebca6bu) + k0);
  vu lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = static_cast<uint32_t>(i);
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const vu random = mix(mix((lane + (n0 + static_cast<uint32_t>(i))) ^ k0) ^ k1);
    store(y + i, random >= threshold ? load(x + i) * scale : vf{});
  }
  for (; i < n; ++i) {
    const uint32_t random = mix(mix((n0 + static_cast<uint32_t>(i)) ^ k0) ^ k1);
    y[i] = random >= threshold ? x[i] * scale : 0;
  }
}

}  // namespace

void dropout(Pool& pool, float* y, const float* x, i64 n, uint32_t threshold, float scale,
             uint64_t seed, uint64_t counter) {
  for_parts(pool, n, 2, 16, [=](int, i64 begin, i64 end) {
    while (begin < end) {  // up to where the counter's high word changes
      const uint64_t at = counter + static_cast<uint64_t>(begin);
      const uint32_t n0 = static_cast<uint32_t>(at), n1 = static_cast<uint32_t>(at >> 32);
      const i64 left = (i64{1} << 32) - n0, count = end - begin < left ? end - begin : left;
      drop(y + begin, x + begin, count, threshold, scale, seed, n1, n0);
      begin += count;
    }
  });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
