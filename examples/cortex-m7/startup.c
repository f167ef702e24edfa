/* startup.c: the vector table, and what happens between reset and main. */

#include <string.h>

#include "board.h"

int main(void);

typedef void (*vector)(void);

extern const vector init_start[], init_end[];

#define COPROCESSORS (*(volatile uint32_t *)0xe000ed88)    /* CPACR */
#define VECTOR_TABLE (*(volatile uint32_t *)0xe000ed08)    /* VTOR */
#define CONFIGURATION (*(volatile uint32_t *)0xe000ed14)   /* CCR */
#define CACHE_SIZE (*(volatile uint32_t *)0xe000ed80)      /* CCSIDR */
#define CACHE_SELECTION (*(volatile uint32_t *)0xe000ed84) /* CSSELR */
#define INVALIDATE_CODE (*(volatile uint32_t *)0xe000ef50) /* ICIALLU */
#define INVALIDATE_LINE (*(volatile uint32_t *)0xe000ef60) /* DCISW */

enum { USE_DATA_CACHE = 1 << 16, USE_CODE_CACHE = 1 << 17, FULL_FPU_ACCESS = 0xf << 20 };

static void synchronize(void) {
    __asm__ volatile("dsb\n\tisb" ::: "memory");
}

/* Enable both caches, which are off and undefined after a reset. A program that ran before, such as
 * a boot loader, may have enabled them. */
static void enable_caches(void) {
    enum { WAY_SHIFT = 30, SET_SHIFT = 5 }; /* a Cortex-M7 has 4 ways with lines of 32 bytes */
    if (CONFIGURATION & (USE_DATA_CACHE | USE_CODE_CACHE)) return;
    INVALIDATE_CODE = 0;
    CACHE_SELECTION = 0;
    synchronize();
    const uint32_t size = CACHE_SIZE, sets = size >> 13 & 0x7fff, ways = size >> 3 & 0x3ff;
    for (uint32_t set = 0; set <= sets; set++)
        for (uint32_t way = 0; way <= ways; way++)
            INVALIDATE_LINE = way << WAY_SHIFT | set << SET_SHIFT;
    synchronize();
    CONFIGURATION |= USE_DATA_CACHE | USE_CODE_CACHE;
    synchronize();
}

/* Fill the unused part of the stack, so that main can see how much of it was used. */
static void paint_stack(void) {
    enum { OWN_BYTES = 256 }; /* of this function and those that it calls */
    uint8_t *const here = __builtin_frame_address(0);
    memset(stack_start, STACK_PAINT, (size_t)(here - stack_start) - OWN_BYTES);
}

/* Code that uses the FPU must not be inlined here, before the FPU is on. */
__attribute__((noinline)) static void start(void) {
    memcpy(data_start, data_load, (size_t)(data_end - data_start));
    memset(bss_start, 0, (size_t)(bss_end - bss_start));
    paint_stack();
    for (const vector *constructor = init_start; constructor < init_end; constructor++)
        (*constructor)();
    board_init();
    board_exit(main());
}

void reset(void);
extern const vector vectors[16];

void reset(void) {
    VECTOR_TABLE = (uint32_t)vectors;
    COPROCESSORS |= FULL_FPU_ACCESS;
    synchronize();
    enable_caches();
    start();
}

__attribute__((used)) static void report_fault(void) {
    static const char message[] = "error: the processor met a fault, such as a full stack\n";
    board_write(message, sizeof message - 1);
    board_exit(1);
}

/* The stack may be what is wrong, so empty it first. */
__attribute__((naked)) static void fault(void) {
    __asm__ volatile("ldr sp, =stack_end\n\tb report_fault");
}

/* No peripheral's interrupt is enabled. */
__attribute__((section(".vectors"), used)) const vector vectors[16] = {
    (vector)(uintptr_t)stack_end,
    reset,
    fault,
    fault,
    fault,
    fault,
    fault,
    fault,
    fault,
    fault,
    fault,
    fault,
    fault,
    fault,
    fault,
    board_tick,
};
