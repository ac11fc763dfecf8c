// What happens to a finished tile of a linear layer's output.
#pragma once

#include "strassen.h"

namespace tenarai {
namespace TENARAI_ISA {

// y = sum + bias + residual
struct Forward {
  float* c;
  i64 stride;
  const float *bias, *residual;
  static constexpr bool kStreams = false;

  vf start(i64 i, i64 j, i64 n) const {
    vf v = {};
    if (bias) v += load_upto(bias + j, n);
    if (residual) v += load_upto(residual + i * stride + j, n);
    return v;
  }
  vf finish(vf sum, i64, i64, i64) const { return sum; }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai
