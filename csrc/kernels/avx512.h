/* avx512.h: what the AVX-512 kernel files share.
 *
 * A tile's 16 rows are the 16 lanes of a register, so no sum ever crosses lanes. Sums of floats are
 * kept in two chains, the even and the odd steps, whatever the block, which hides the latency of
 * one addition behind the other. */

#ifndef STORYLLAMAS_AVX512_H
#define STORYLLAMAS_AVX512_H

#include <immintrin.h>
#include <string.h>

#include "blocks.h"
#include "sets.h"

enum { CHAINS = 2, MOST = 8 }; /* MOST: of tiles times rows of x in a block */

#endif
