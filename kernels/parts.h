// Loops over independent items, divided among the threads where there is enough to do.
#pragma once

#include "simd.h"
#include "threads.h"

namespace tenarai {
namespace TENARAI_ISA {

// Below this many floats moved (or as much arithmetic), waking the others costs more than it saves.
constexpr i64 kWorthAThread = 8192;

// How many threads get a part of n items, each of which costs as much as moving `cost` floats.
static inline i64 parts_of(const Pool& pool, i64 n, i64 cost, i64 grain = 1) {
  const i64 blocks = (n + grain - 1) / grain;
  i64 parts = n * cost / kWorthAThread;
  if (parts > pool.threads()) parts = pool.threads();
  if (parts > blocks) parts = blocks;
  return parts < 1 ? 1 : parts;
}

// f(thread, begin, end) for each part of [0, n), whole multiples of `grain` but for the last.
template <class F>
static inline void for_parts(Pool& pool, i64 n, i64 cost, i64 grain, F&& f) {
  if (n <= 0) return;
  const i64 parts = parts_of(pool, n, cost, grain);
  if (parts == 1) return f(0, i64{0}, n);
  parallel(pool, [&](int thread) {
    if (thread >= parts) return;
    const Range mine = split(n, parts, thread, grain);
    f(thread, mine.begin, mine.end);
  });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
