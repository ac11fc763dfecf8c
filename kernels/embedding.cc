// Token and position embeddings: x[b, t] = wte[tokens[b, t]] + wpe[start + t], or with positions
// wpe[positions[b, t]].
//
// Backward: dwte[tokens[b, t]] += dx[b, t] and dwpe[start + t] += dx[b, t]. Two places may hold
// the same token, so the threads divide the channels, not the places: each adds its own columns
// in the order of the places, without races and with the same bits for any number of threads.
#include "ops.h"
#include "parts.h"

namespace tenarai {
namespace TENARAI_ISA {
namespace {

constexpr i64 kCacheLine = 16;  // floats

void add_into(float* y, const float* x, i64 n) {
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(y + i) + load(x + i));
  for (; i < n; ++i) y[i] += x[i];
}

}  // namespace

void embedding_forward(Pool& pool, float* x, const int32_t* tokens, const float* wte,
                       const float* wpe, const int32_t* positions, i64 B, i64 T, i64 C, i64 start) {
  for_parts(pool, B * T, C, 1, [=](int, i64 begin, i64 end) {
    for (i64 place = begin; place < end; ++place) {
      float* row = x + place * C;
      std::memcpy(row, wte + tokens[place] * C, static_cast<size_t>(C) * 4);
      if (wpe) add_into(row, wpe + (positions ? positions[place] : start + place % T) * C, C);
    }
  });
}

void embedding_backward(Pool& pool, float* dwte, float* dwpe, const float* dx,
                        const int32_t* tokens, i64 B, i64 T, i64 C, i64 start) {
  for_parts(pool, C, B * T, kCacheLine, [=](int, i64 begin, i64 end) {
    for (i64 place = 0; place < B * T; ++place) {
      const float* row = dx + place * C + begin;
      add_into(dwte + tokens[place] * C + begin, row, end - begin);
      if (dwpe) add_into(dwpe + (start + place % T) * C + begin, row, end - begin);
    }
  });
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
