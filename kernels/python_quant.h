// A quantised matrix as it comes from Python: bytes, the format's number, and what is checked of
// them.
#pragma once

#include "python.h"
#include "quant_formats.h"

namespace tenarai {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;
using OutBytes = nb::ndarray<uint8_t, nb::c_contig, nb::device::cpu>;

struct QuantMatrix {
  const uint8_t* data;
  QuantFormat format;
  int64_t O, I, row_bytes;
};

// Bytes of a row of I weights; fails where the format is unknown or I no whole number of blocks.
inline int64_t row_bytes(int format, int64_t I) {
  const BlockSize size = block_size(static_cast<QuantFormat>(format));
  if (!size.weights) fail("format " + std::to_string(format) + " of weights is not known");
  if (I % size.weights)
    fail("a row of " + std::to_string(I) + " weights is no multiple of " +
         std::to_string(size.weights));
  return I / size.weights * size.bytes;
}

// w (O, bytes a row) in rows of I weights.
inline QuantMatrix quant_matrix(const Bytes& w, int format, int64_t I) {
  if (w.ndim() != 2) fail("w: expected two dims of bytes");
  const int64_t bytes = row_bytes(format, I);
  expect(w.shape(1), bytes, "bytes of a row of w");
  return {w.data(), static_cast<QuantFormat>(format), static_cast<int64_t>(w.shape(0)), I, bytes};
}

}  // namespace
}  // namespace tenarai
