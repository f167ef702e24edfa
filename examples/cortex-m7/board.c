/* board.c: a board with a debugger, or qemu, that answers semihosting calls. To print on a serial
 * port instead, replace this file. */

#include "board.h"

#include <string.h>

/* ---- Semihosting ----------------------------------------------------------------------------- */

enum { SYS_OPEN = 0x01, SYS_WRITE = 0x05, SYS_GET_CMDLINE = 0x15, SYS_EXIT_EXTENDED = 0x20 };
enum { OPEN_TO_WRITE = 4, APPLICATION_EXIT = 0x20026 };

static uintptr_t console;

/* Stop for the debugger, which reads the operation and its arguments, and writes the result. */
static uintptr_t semihosting(uintptr_t operation, const void *arguments) {
    register uintptr_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void board_write(const char *text, size_t length) {
    const uintptr_t arguments[] = {console, (uintptr_t)text, length};
    if (length) semihosting(SYS_WRITE, arguments);
}

int board_arguments(char *text, size_t capacity) {
    const uintptr_t arguments[] = {(uintptr_t)text, capacity};
    return semihosting(SYS_GET_CMDLINE, arguments) ? -1 : 0;
}

_Noreturn void board_exit(int status) {
    const uintptr_t arguments[] = {APPLICATION_EXIT, (uintptr_t)status};
    semihosting(SYS_EXIT_EXTENDED, arguments);
    for (;;) {
    }
}

/* ---- SysTick, the system timer of every Cortex-M7 -------------------------------------------- */

typedef struct {
    uint32_t control;
    uint32_t reload;
    uint32_t value; /* counts down */
} system_timer;

#define TIMER ((volatile system_timer *)0xe000e010)
enum { TIMER_MAX = 0xffffff, TIMER_ENABLE = 1, TIMER_INTERRUPT = 2, TIMER_PROCESSOR_CLOCK = 4 };

static volatile uint32_t rounds; /* of the timer */

void board_tick(void) {
    rounds++;
}

uint64_t board_ticks(void) {
    uint32_t before, value;
    do {
        before = rounds;
        value = TIMER->value;
    } while (before != rounds);
    return (uint64_t)before * (TIMER_MAX + UINT64_C(1)) + (TIMER_MAX - value);
}

void board_init(void) {
    static const char name[] = ":tt"; /* the debugger's console */
    const uintptr_t arguments[] = {(uintptr_t)name, OPEN_TO_WRITE, sizeof name - 1};
    console = semihosting(SYS_OPEN, arguments);
    TIMER->reload = TIMER_MAX;
    TIMER->value = 0;
    TIMER->control = TIMER_ENABLE | TIMER_INTERRUPT | TIMER_PROCESSOR_CLOCK;
}
