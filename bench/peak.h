/* peak.h: loops that only multiply and add in registers. */

#ifndef STORYLLAMAS_BENCH_PEAK_H
#define STORYLLAMAS_BENCH_PEAK_H

typedef struct {
    const char *type;    /* of the factors */
    double (*run)(void); /* returns the number of operations, 0 if the system does not permit them;
                            NULL: the processor cannot */
} peak;

enum { PEAKS = 5 };
extern const peak peaks[PEAKS];

#endif
