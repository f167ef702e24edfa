/* threads.h: the number of the calling thread. OpenMP's header does not come with every compiler.
 */

#ifndef FUSED_THREADS_H
#define FUSED_THREADS_H

#ifdef _OPENMP
int omp_get_thread_num(void);
#else
static int omp_get_thread_num(void) {
    return 0;
}
#endif

#endif
