#ifndef CLOCK_H
#define CLOCK_H
#include <stdint.h>
#include <time.h>

/* CLOCK_MONOTONIC is one clock for all processes of a machine, so the publisher's stamp and the
 * receiver's reading can be subtracted; CLOCK_REALTIME could be stepped in between. */
static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
#endif
