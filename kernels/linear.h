// What happens to a finished tile of a linear layer's output, and which of the products makes it.
#pragma once

#include "digit_gemm.h"
#include "ops.h"
#include "strassen.h"
#include "word_gemm.h"

namespace tenarai {
namespace TENARAI_ISA {

// y = sum + bias + residual
struct Forward {
  float* c;
  i64 stride;
  const float *bias, *residual;
  bool large = false;  // is y to go past the caches?

  bool streams() const { return large; }

  vf start(i64 i, i64 j, i64 n) const {
    vf v = {};
    if (bias) v += load_upto(bias + j, n);
    if (residual) v += load_upto(residual + i * stride + j, n);
    return v;
  }
  vf finish(vf sum, i64, i64, i64) const { return sum; }
  // The same for the rows from m on.
  Forward from(i64 m) const {
    return {c + m * stride, stride, bias, residual ? residual + m * stride : nullptr, large};
  }
};

// The product as it is asked for, where that can be had and pays.
template <class A, class B, class Epilogue>
static void multiply(Products products, Pool& pool, A a, B b, Epilogue epilogue, i64 M, i64 N,
                     i64 K, float* row_sums = nullptr) {
#if defined(TENARAI_AMX)
  using Three = DigitProduct<A, B, Epilogue, 3>;
  using Two = DigitProduct<A, B, Epilogue, 2>;
  if (products == Products::fast && Three::worthwhile(M, N, K))
    return Three{a, b, epilogue, row_sums, M, N, K}.run(pool);
  if (products == Products::words && Two::worthwhile(M, N, K))
    return Two{a, b, epilogue, row_sums, M, N, K}.run(pool);
#elif defined(TENARAI_WORDS)
  using Words = WordProduct<A, B, Epilogue>;
  if (products == Products::words && Words::worthwhile(M, N, K))
    return Words{a, b, epilogue, row_sums, M, N, K}.run(pool);
#endif
  using Seven = SevenProducts<A, B, Epilogue>;
  if (products != Products::plain && Seven::worthwhile(M, N, K))
    return Seven{a, b, epilogue, row_sums, M, N, K}.run(pool);
  multiply(pool, a, b, epilogue, M, N, K, row_sums);
}

}  // namespace TENARAI_ISA
}  // namespace tenarai
