// What the tests of kernels share: random arrays that start where no vector would be aligned and
// end at a guard, and a count of what held.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../dispatch.h"

namespace tenarai::test {

inline int passed = 0, failed = 0;

inline void expect(bool holds, const char* isa, const char* what, double got, double wanted) {
  ++(holds ? passed : failed);
  if (!holds && failed <= 40)
    std::printf("FAILED %s %s: %.9g, expected %.9g\n", isa, what, got, wanted);
}

inline bool is(const Kernels& k, const char* isa) { return std::strcmp(k.isa, isa) == 0; }
inline bool has_vnni(const Kernels& k) { return is(k, "avx512vnni") || is(k, "amx"); }

// Numbers in (-1, 1), the same on every machine. A test whose bound holds for these numbers and not
// for all sets the state, so that it meets the same whatever ran before it.
inline uint64_t random_state = 1;
inline float random_number() {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<float>(static_cast<int64_t>(random_state) >> 40) / 8388608.0f;
}

class Array {
 public:
  explicit Array(int64_t n) : n_(n), storage_(static_cast<size_t>(n) + 2, kGuard) {
    for (int64_t i = 0; i < n; ++i) data()[i] = random_number();
  }
  Array(int64_t n, float value) : Array(n) {
    for (int64_t i = 0; i < n; ++i) data()[i] = value;
  }
  float* data() { return storage_.data() + 1; }  // vectors never lie on their own boundary
  float& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return n_; }
  bool guards_hold() const { return storage_.front() == kGuard && storage_.back() == kGuard; }

 private:
  static constexpr float kGuard = 12345.0f;
  int64_t n_;
  std::vector<float> storage_;
};

// |got - want| <= tolerance · (1 + |want|) everywhere, NaN nowhere, nothing written outside.
inline void expect_near(const char* isa, const char* what, Array& got,
                        const std::vector<double>& want, double tolerance) {
  for (int64_t i = 0; i < got.size(); ++i) {
    const double error = std::fabs(got[i] - want[static_cast<size_t>(i)]);
    if (!(error <= tolerance * (1 + std::fabs(want[static_cast<size_t>(i)])))) {
      expect(false, isa, what, got[i], want[static_cast<size_t>(i)]);
      return;
    }
  }
  expect(got.guards_hold(), isa, what, 0, 12345);
}

// In files of their own.
void test_attention(const Kernels&, Pool&);
void test_cache_attention(const Kernels&, Pool&);
void test_linear_attention(const Kernels&, Pool&);
void test_rows(const Kernels&, Pool&);
void test_quant(const Kernels&, Pool&);
void test_quantize(const Kernels&, Pool&);
void test_pool(int threads);
void test_pieces(int threads);

}  // namespace tenarai::test
