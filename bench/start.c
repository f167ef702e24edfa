/* start.c: runs a program and prints the seconds to its first byte of output, and its peak memory:
 *
 *     start PROGRAM [ARGUMENTS]      {"first_byte": 0.0042, "peak_bytes": 4321280}
 *
 * This is a program of its own because a child's peak includes the size of the process that starts
 * it, and this process is small. */

#define _DEFAULT_SOURCE

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int main(int argc, char **argv) {
    int ends[2], status;
    if (argc < 2 || pipe(ends)) return EXIT_FAILURE;
    const double start = seconds();
    const pid_t child = fork();
    if (child < 0) return EXIT_FAILURE;
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        execv(argv[1], argv + 1);
        _exit(127);
    }
    close(ends[1]);
    char output[4096];
    const ssize_t first = read(ends[0], output, 1);
    const double first_byte = seconds() - start;
    while (read(ends[0], output, sizeof output) > 0) continue;
    struct rusage usage;
    if (first < 0 || wait4(child, &status, 0, &usage) < 0 || status) return EXIT_FAILURE;
#ifdef __APPLE__
    const long unit = 1;
#else
    const long unit = 1024;
#endif
    printf("{\"first_byte\": %.6f, \"peak_bytes\": %ld}\n", first_byte, usage.ru_maxrss * unit);
    return EXIT_SUCCESS;
}
