// A table of every kernel for each instruction set in this build, and the choice among them.
#pragma once

#ifndef TENARAI_ISA
#define TENARAI_ISA baseline  // only for the signatures, which are the same in every build
#endif
#include "ops.h"

namespace tenarai {

struct Kernels {
  const char* isa;
  int vector_bytes;
#define TENARAI_MEMBER(name) decltype(&TENARAI_ISA::name) name;
  TENARAI_KERNELS(TENARAI_MEMBER)
#undef TENARAI_MEMBER
};

// The tables that this build has and this CPU can run, the best last. *count is their number.
const Kernels* const* available_kernels(int* count);

}  // namespace tenarai
