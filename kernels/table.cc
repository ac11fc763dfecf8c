// This instruction set's table.
#include "dispatch.h"
#include "simd.h"

namespace tenarai {

#define TENARAI_JOIN_(a, b) a##b
#define TENARAI_JOIN(a, b) TENARAI_JOIN_(a, b)
#define TENARAI_STRING_(a) #a
#define TENARAI_STRING(a) TENARAI_STRING_(a)
#define TENARAI_ENTRY(name) &TENARAI_ISA::name,

extern const Kernels TENARAI_JOIN(kernels_, TENARAI_ISA);
const Kernels TENARAI_JOIN(kernels_, TENARAI_ISA) = {
    TENARAI_STRING(TENARAI_ISA), TENARAI_ISA::kVectorBytes, TENARAI_KERNELS(TENARAI_ENTRY)};

}  // namespace tenarai
