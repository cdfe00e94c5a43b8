/* The one loop of a simulation that cannot be a running sum. See simulate.py. */

#include <stdint.h>

/* Each edge in order: its target is not before its source and what passes between them. */
void relax(const int32_t *source, const int32_t *target, const int64_t *passes, int64_t count, int64_t *times) {
    for (int64_t edge = 0; edge < count; edge++) {
        int64_t arrival = times[source[edge]] + passes[edge];
        if (arrival > times[target[edge]]) times[target[edge]] = arrival;
    }
}
