/* exponential.h: the constants for exp(x) in vectors.
 *
 * x = k ln 2 + r with an integer k and |r| at most half of ln 2. k ln 2 is subtracted in two parts,
 * which keeps r exact. Then exp(x) = 2^k (1 + r + r² p(r)), where p is the rest of the Taylor
 * series with its last coefficients fitted to this range. */

#ifndef STORYLLAMAS_EXPONENTIAL_H
#define STORYLLAMAS_EXPONENTIAL_H

#define EXP_MIN (-105.0f) /* exp(x) is 0 here and below */
#define EXP_MAX 88.0f
#define LOG2_E 1.44269504f
#define LN_2_UPPER 0.693359375f
#define LN_2_LOWER (-2.12194440e-4f)

/* The coefficients of p, from the fourth power of r to the constant. */
#define EXP_P4 1.3981999e-3f
#define EXP_P3 8.3334519e-3f
#define EXP_P2 4.1665796e-2f
#define EXP_P1 1.6666665e-1f
#define EXP_P0 0.5f

#endif
