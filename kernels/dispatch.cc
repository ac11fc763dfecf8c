#include "dispatch.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#include <sys/prctl.h>
#elif defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tenarai {

extern const Kernels kernels_baseline;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512vnni;
extern const Kernels kernels_amx;
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

#if defined(TENARAI_HAS_AVX512) || defined(TENARAI_HAS_AVX512VNNI) || defined(TENARAI_HAS_AMX)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

#if defined(TENARAI_HAS_AMX)
// Whether the CPU has it, and the system lets this process use it, which must be asked for once.
bool has_amx() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned tiles_bytes_bfloats = 1u << 24 | 1u << 25 | 1u << 22;
  if ((d & tiles_bytes_bfloats) != tiles_bytes_bfloats) return false;
  return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tiles' data */) == 0;
#else
  return false;
#endif
}
#endif

struct Available {
  const Kernels* tables[6];
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
#if defined(TENARAI_HAS_AMX)
    if (has_avx512() && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512bf16") && has_amx())
      tables[count++] = &kernels_amx;
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
