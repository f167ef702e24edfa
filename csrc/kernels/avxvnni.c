/* avxvnni.c: the kernels of avx2.c for processors that also have the 8-bit dot product without
 * AVX-512, such as Intel's client processors from the 12th generation on. */

#define HAS_VNNI
#include "avx2.c"
