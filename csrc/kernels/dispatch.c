/* dispatch.c: choose the kernels for this processor. */

#include "kernels.h"

const sl_kernels *sl_kernels_best(void) {
    return &sl_kernels_scalar;
}
