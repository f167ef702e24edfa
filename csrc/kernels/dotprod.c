/* dotprod.c: the kernels of neon.c for processors with the 8-bit dot product, such as the
 * Cortex-A55 and the Cortex-A76, and Apple's from the A13 on. */

#include "sets.h"

#ifdef SL_DOTPROD
#define HAS_DOTPROD
#include "neon.c"
#endif
