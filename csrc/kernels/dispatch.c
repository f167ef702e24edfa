/* dispatch.c: finds the kernel sets that this processor runs. */

#include "sets.h"

#include "../platform.h"

#ifdef SL_X86
#include <cpuid.h>
#endif

enum { MAX_SETS = 8 };

/* A program whose start-up code runs no constructors has the scalar set. */
static const sl_kernels *available[MAX_SETS] = {&sl_kernels_scalar};

#ifdef SL_X86
/* Return whether the processor converts between f16 and f32. Not every compiler's
 * __builtin_cpu_supports has a name for that. */
static bool has_f16(void) {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && ecx & bit_F16C;
}
#endif

#ifdef SL_AVX_VNNI
static bool has_avx_vnni(void) {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && eax & 1 << 4;
}
#endif

#ifdef SL_AMX
/* Return whether the processor multiplies tiles of 8-bit integers, and the system saves its tile
 * registers. */
static bool has_amx(void) {
    enum { TILE_STATE = 3 << 17, AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25 };
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE)) return false;
    __asm__("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    if ((eax & TILE_STATE) != TILE_STATE) return false;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && edx & AMX_TILE && edx & AMX_INT8;
}
#endif

/* Runs before main, so before any other thread exists. */
SL_BEFORE_MAIN static void find_kernels(void) {
    size_t count = 0;
#ifdef SL_X86
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vnni");
#ifdef SL_AMX
    const sl_kernels *amx = avx512 && has_amx() && sl_request_tiles() ? sl_kernels_amx() : NULL;
    if (amx) available[count++] = amx;
#endif
    if (avx512) available[count++] = &sl_kernels_avx512;
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16();
#ifdef SL_AVX_VNNI
    if (avx2 && has_avx_vnni()) available[count++] = &sl_kernels_avxvnni;
#endif
    if (avx2) available[count++] = &sl_kernels_avx2;
#elif defined(SL_ARM)
#ifdef SL_I8MM
    if (sl_has_dot_product() && sl_has_matrix_product()) available[count++] = &sl_kernels_i8mm;
#endif
#ifdef SL_DOTPROD
    if (sl_has_dot_product()) available[count++] = &sl_kernels_dotprod;
#endif
    available[count++] = &sl_kernels_neon;
#elif defined(SL_WASM)
    available[count++] = &sl_kernels_wasm;
#endif
    available[count] = &sl_kernels_scalar;
}

const sl_kernels *const *sl_kernels_available(void) {
    return available;
}

const sl_kernels *sl_kernels_find(const char *name) {
    const sl_kernels *const *set = available;
    while (*set && name && strcmp((*set)->name, name) != 0) set++;
    return *set;
}

const char *sl_kernels_name(size_t index) {
    const sl_kernels *const *set = available;
    while (*set && index--) set++;
    return *set ? (*set)->name : NULL;
}

sl_matmul_quantized *sl_matmul_of(const sl_kernels *kernels, uint32_t type) {
    sl_matmul_quantized *const own = kernels->matmul_quantized[type];
    return own ? own : sl_kernels_scalar.matmul_quantized[type];
}
