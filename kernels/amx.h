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

// All eight tiles whole, for this thread and as long as this stands. What was set before is set
// again after: other libraries set their tiles once a thread. Where nothing was, the tiles are
// given up, as the kernel would save them with every switch.
struct WholeTiles {
  WholeTiles() {
    asm volatile("sttilecfg %0" : "=m"(before_));
    constexpr Config kWhole = {
        1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    asm volatile("ldtilecfg %0" ::"m"(kWhole));
  }
  ~WholeTiles() {
    if (before_.palette)
      asm volatile("ldtilecfg %0" ::"m"(before_));
    else
      _tile_release();
  }
  WholeTiles(const WholeTiles&) = delete;
  WholeTiles& operator=(const WholeTiles&) = delete;

 private:
  struct Config {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  Config before_;
};

// Before tiles are loaded: what they are loaded from has been written. GCC's own functions do not
// say that they read memory.
TENARAI_INLINE void tiles_read_memory() { asm volatile("" ::: "memory"); }

}  // namespace TENARAI_ISA
}  // namespace tenarai

#endif
