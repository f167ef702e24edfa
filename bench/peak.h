/* peak.h: loops of nothing but multiplications and additions in registers. */

#ifndef STORYLLAMAS_BENCH_PEAK_H
#define STORYLLAMAS_BENCH_PEAK_H

typedef struct {
    const char *type;    /* of the numbers that are multiplied */
    double (*run)(void); /* returns the number of operations; NULL where there is no such */
} peak;

enum { PEAKS = 3 };
extern const peak peaks[PEAKS];

#endif
