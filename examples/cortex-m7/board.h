/* board.h: what the example needs from a board: output, a timer, an exit and the memory map. */

#ifndef BOARD_H
#define BOARD_H

#include <stddef.h>
#include <stdint.h>

/* Enable what main needs. Runs before main. */
void board_init(void);

/* Print text[length]. */
void board_write(const char *text, size_t length);

/* Copy what the user asks for into text[capacity], with a final NUL: the name of the program and
 * its arguments, separated by spaces. Returns 0, or -1 if there is nothing. */
int board_arguments(char *text, size_t capacity);

/* Return the ticks of the system timer since board_init. */
uint64_t board_ticks(void);

/* End the program. 0 is success. */
_Noreturn void board_exit(int status);

/* The system timer's interrupt. */
void board_tick(void);

/* Addresses from linker.ld. */
extern uint8_t stack_start[], stack_end[], data_start[], data_end[], bss_start[], bss_end[];
extern uint8_t heap_start[], heap_end[];
extern const uint8_t data_load[], model_start[], model_end[];

/* What startup.c writes over the stack before its first use. */
enum { STACK_PAINT = 0xa5 };

/* Return the largest number of bytes that the heap has had, and how often memory was requested from
 * it or given back. */
size_t heap_bytes(void);
size_t heap_calls(void);

#endif
