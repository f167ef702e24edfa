/* unicode.c: finds the classes of a character. */

#include "unicode.h"

sl_unicode_range sl_unicode_range_of(uint32_t point) {
    uint32_t low = 0, high = sl_unicode_range_count; /* the range is one of low … high - 1 */
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        if (sl_unicode_ranges[middle] >> 8 <= point)
            low = middle;
        else
            high = middle;
    }
    const uint32_t end =
        high < sl_unicode_range_count ? sl_unicode_ranges[high] >> 8 : UINT32_C(0x110000);
    return (sl_unicode_range){sl_unicode_ranges[low] >> 8, end, sl_unicode_ranges[low] & 0xff};
}
