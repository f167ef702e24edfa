/* dispatch.c: which kernels this processor runs. */

#include "sets.h"

#include <stdbool.h>

#ifdef SL_X86
#include <cpuid.h>
#elif defined(SL_ARM) && defined(__linux__)
#include <sys/auxv.h>
#endif

enum { MOST = 8 };

static const sl_kernels *available[MOST];

#ifdef SL_X86
/* Conversions between f16 and f32, which not all compilers know by name. */
static bool has_f16(void) {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && ecx & bit_F16C;
}
#endif

#ifdef SL_ARM
static bool has_dot_product(void) {
#if defined(__ARM_FEATURE_DOTPROD)
    return true;
#elif defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return false;
#endif
}
#endif

/* Before main, and so before any thread. */
__attribute__((constructor)) static void find_kernels(void) {
    size_t count = 0;
#ifdef SL_X86
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vnni");
    if (avx512) available[count++] = &sl_kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16())
        available[count++] = &sl_kernels_avx2;
#elif defined(SL_ARM)
    if (has_dot_product()) available[count++] = &sl_kernels_neon;
#endif
    available[count] = &sl_kernels_scalar;
}

const sl_kernels *const *sl_kernels_available(void) {
    return available;
}
