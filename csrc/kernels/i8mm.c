/* i8mm.c: the kernels of neon.c for processors that also multiply matrices of 8-bit integers, such
 * as Apple's from the M2, and Arm's from the Neoverse V1 and the Cortex-X2 on. */

#include "sets.h"

#ifdef SL_I8MM
#define HAS_DOTPROD
#define HAS_I8MM
#include "neon.c"
#endif
