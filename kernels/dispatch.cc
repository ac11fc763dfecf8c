#include "dispatch.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#include <sys/prctl.h>
#endif

namespace tenarai {

extern const Kernels kernels_baseline;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512vnni;
extern const Kernels kernels_sve512;

namespace {

#if defined(TENARAI_HAS_SVE512)
bool has_sve512() {
  // HWCAP_SVE is bit 22; PR_SVE_GET_VL answers the vector length in bytes in its low 16 bits.
  if (!(getauxval(AT_HWCAP) & (1UL << 22))) return false;
  const int length = prctl(51 /* PR_SVE_GET_VL */);
  return length >= 0 && (length & 0xffff) == 64;
}
#endif

#if defined(TENARAI_HAS_AVX512) || defined(TENARAI_HAS_AVX512VNNI)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

struct Available {
  const Kernels* tables[5];
  int count = 0;

  Available() {
    tables[count++] = &kernels_baseline;
#if defined(TENARAI_HAS_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      tables[count++] = &kernels_avx2;
#endif
#if defined(TENARAI_HAS_AVX512)
    if (has_avx512()) tables[count++] = &kernels_avx512;
#endif
#if defined(TENARAI_HAS_AVX512VNNI)
    if (has_avx512() && __builtin_cpu_supports("avx512vnni")) tables[count++] = &kernels_avx512vnni;
#endif
#if defined(TENARAI_HAS_SVE512)
    if (has_sve512()) tables[count++] = &kernels_sve512;
#endif
  }
};

}  // namespace

const Kernels* const* available_kernels(int* count) {
  static const Available available;
  *count = available.count;
  return available.tables;
}

}  // namespace tenarai
