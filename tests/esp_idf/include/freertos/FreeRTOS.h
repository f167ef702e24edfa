/* FreeRTOS.h: the part of the header that the example uses. */

#ifndef FREERTOS_H
#define FREERTOS_H

#include <stdint.h>

typedef uint32_t TickType_t;
typedef unsigned int UBaseType_t;

#endif
