// Selects the instruction set that runs, among those that for_each_isa.h compiles.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define TM_HAVE_X86_ISAS 1
#endif

namespace trajmatch::cpu {

enum class Isa { kPortable, kAvx2, kAvx512 };

// The best instruction set that the processor supports. The environment variable TRAJMATCH_ISA
// (portable, avx2 or avx512) overrides it if the processor supports that set. Decided once, on the
// first call.
Isa current_isa();
const char* isa_name(Isa isa);

}  // namespace trajmatch::cpu

// Returns the result of `function` as compiled for the current instruction set.
#ifdef TM_HAVE_X86_ISAS
#define TM_DISPATCH_ISA(function, ...)        \
  switch (::trajmatch::cpu::current_isa()) {  \
    case ::trajmatch::cpu::Isa::kAvx512:      \
      return avx512::function(__VA_ARGS__);   \
    case ::trajmatch::cpu::Isa::kAvx2:        \
      return avx2::function(__VA_ARGS__);     \
    default:                                  \
      return portable::function(__VA_ARGS__); \
  }
#else
#define TM_DISPATCH_ISA(function, ...) return portable::function(__VA_ARGS__)
#endif
