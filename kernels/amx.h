// AMX: eight registers of 1 KB, tiles of 16 rows of 64 bytes, and products of two of them.
//
//   bfloat16   sum (16, 16) += a (16, 32) b (32, 16)    sums in float32, rounded to nearest
//   bytes      sum (16, 16) += a (16, 64) b (64, 16)    sums in 32 bits
//
// A row of a tile of b holds, for each of its 16 columns, two ks (or four) beside each other.
#pragma once

#include "simd.h"

#if defined(__AMX_TILE__)
#define TENARAI_AMX

namespace tenarai {
namespace TENARAI_ISA {

enum class Side { a, b };  // of a product, an operand's

constexpr i64 kAmxRows = 16;                       // of a tile; the columns of a sum, too
constexpr i64 kAmxBytes = 1024, kAmxFloats = 256;  // of a tile, contiguous

// All eight tiles whole, for this thread and as long as this stands. The state is given up after,
// since the kernel would save it with every switch, and because other libraries set their own.
struct WholeTiles {
  WholeTiles() {
    // Constant: of a variable the compiler may not write what it thinks is not read (GCC 12).
    static constexpr struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } kConfig;
    _tile_loadconfig(&kConfig);
  }
  ~WholeTiles() { _tile_release(); }
  WholeTiles(const WholeTiles&) = delete;
  WholeTiles& operator=(const WholeTiles&) = delete;
};

// Before tiles are loaded: what they are loaded from has been written. GCC's own functions do not
// say that they read memory.
TENARAI_INLINE void tiles_read_memory() { asm volatile("" ::: "memory"); }

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
