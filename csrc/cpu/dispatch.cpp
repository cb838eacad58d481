// Chooses the instruction set: the best this CPU has, unless GSFIELDS_CPU_ISA or set_isa() says otherwise.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace gsfields::cpu {

extern const IsaTable isa_table_baseline;
#if defined(GSFIELDS_X86)
extern const IsaTable isa_table_avx2;
extern const IsaTable isa_table_avx512;
#endif

bool isa_available(Isa isa) {
#if defined(GSFIELDS_X86)
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
  if (isa == Isa::avx2) return __builtin_cpu_supports("x86-64-v3");
  if (isa == Isa::avx512) return __builtin_cpu_supports("x86-64-v4");
#else
  // The marker features of x86-64-v3 and -v4; every CPU that has these has the rest.
  if (isa != Isa::baseline && !(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                                __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")))
    return false;
  if (isa == Isa::avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
#endif
  return true;
#else
  return isa == Isa::baseline;
#endif
}

namespace {

Isa best_isa() {
  for (const Isa isa : {Isa::avx512, Isa::avx2})
    if (isa_available(isa)) return isa;
  return Isa::baseline;
}

// An unknown or unavailable name is ignored here; gsfields.ops reports it.
Isa initial_isa() {
  const char* name = std::getenv("GSFIELDS_CPU_ISA");
  const struct {
    const char* name;
    Isa isa;
  } named[] = {{"baseline", Isa::baseline}, {"avx2", Isa::avx2}, {"avx512", Isa::avx512}};
  for (const auto& n : named)
    if (name && std::strcmp(name, n.name) == 0 && isa_available(n.isa)) return n.isa;
  return best_isa();
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

}  // namespace

Isa current_isa() { return chosen().load(std::memory_order_relaxed); }

void set_isa(Isa isa) { chosen().store(isa, std::memory_order_relaxed); }

const IsaTable& kernels() {
#if defined(GSFIELDS_X86)
  switch (current_isa()) {
    case Isa::avx512:
      return isa_table_avx512;
    case Isa::avx2:
      return isa_table_avx2;
    case Isa::baseline:
      break;
  }
#endif
  return isa_table_baseline;
}

}  // namespace gsfields::cpu
