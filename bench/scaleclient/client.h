#ifndef SCALE_CLIENT_H
#define SCALE_CLIENT_H
#include "../loadclient/histogram.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum client_state {
    STATE_WAITING, /* until its time to connect */
    STATE_CONNECTING,
    STATE_HANDSHAKE,
    STATE_ASKING, /* for its subscriptions, or for its session */
    STATE_LIVE,
    STATE_CLOSING, /* the server has sent a close, and shall end the connection */
};

enum { SESSION_ID_BYTES = 64 };

/* What a client holds of one topic. */
struct holding {
    uint32_t topic;
    uint64_t sequence; /* the last one, from which the next message must follow */
};

/* About 150 bytes, so that a hundred thousand are not what is measured. */
struct client {
    int fd;
    uint8_t state;
    bool returning;
    char session_id[SESSION_ID_BYTES];
    uint32_t holding_count, retry_after_ms;
    struct holding *holdings; /* by topic */
    char *held;               /* the beginning of a frame whose end has not arrived */
    uint32_t held_length, number;
    uint64_t opened_ns, live_ns, left_ns;
};

struct counts {
    uint64_t live, opening, waiting;
    uint64_t updates, frames, bytes, merged, snapshots, replayed;
    /* Faults: what a client must never see. */
    uint64_t lost, repeated, gaps, errors, malformed, unrestored, incomplete;
    uint64_t refused, cut, dismissed, returned;
    struct histogram latency, handshake, away;
};

struct world {
    struct client *clients;
    uint64_t *due_ns; /* of each client that waits */
    uint32_t client_count, topic_count;
    char (*epochs)[64]; /* of each topic */
    struct sockaddr_in server;
    uint32_t first_source; /* host byte order */
    uint32_t sources;
    uint64_t window_ns; /* latency counts from here on */
    int poll;
    struct counts counts;
};

void client_open(struct world *world, struct client *c);
void client_writable(struct world *world, struct client *c);
void client_readable(struct world *world, struct client *c);
#endif
