#ifndef HISTOGRAM_H
#define HISTOGRAM_H
#include <stdint.h>

/* Log-linear, as HdrHistogram: 64 steps to each power of two, so a percentile is at most 1.6 % too high. */
enum { HISTOGRAM_STEP_BITS = 6, HISTOGRAM_BUCKETS = 64 << HISTOGRAM_STEP_BITS };

struct histogram {
    uint64_t count, max, buckets[HISTOGRAM_BUCKETS];
};

void histogram_add(struct histogram *h, uint64_t value);
/* The value that `share` (0 to 1) of the recorded ones do not exceed; 0 when nothing was recorded. */
uint64_t histogram_percentile(const struct histogram *h, double share);
#endif
