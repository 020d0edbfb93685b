#ifndef SCAN_H
#define SCAN_H
#include <stdbool.h>
#include <stdint.h>

/* The field that the publisher adds to every message: "~":[topic, counter, nanoseconds].
 * The byte '~' stands nowhere else in a publication, so that counting messages, whether bare or
 * inside batches and wherever the reads cut them, is counting one byte. */
#define MARKER '~'

struct update {
    uint32_t topic;
    uint64_t counter; /* from 0, per topic */
    uint64_t t_ns;    /* now_ns() just before PUBLISH */
    /* Where the server numbers the messages of a stream: this one, and the one it says it follows
     * ("previous", else the number before). What lies between was merged by policy. */
    uint64_t sequence, previous;
    bool numbered, snapshot;
};

struct scan_visitor {
    void *context;
    void (*on_update)(void *context, const struct update *update);
    void (*on_gap)(void *context);
    void (*on_error)(void *context);
};

/* Reads one JSON value, calling the visitor for each message in it (bare or in a batch).
 * Returns the end of the value, or NULL if it is not JSON. */
const char *scan_json(const char *at, const char *end, const struct scan_visitor *visitor);
#endif
