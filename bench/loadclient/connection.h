#ifndef CONNECTION_H
#define CONNECTION_H
#include "histogram.h"
#include "inflater.h"
#include "publisher.h"
#include "transport.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum connection_kind {
    KIND_DRAIN,  /* reads and counts */
    KIND_SAMPLE, /* every message parsed: order, loss, latency */
    KIND_SLOW,   /* stops reading for a while, then is checked as a sample is */
    KINDS
};

enum connection_state { STATE_NEW, STATE_CONNECTING, STATE_SECURING, STATE_HANDSHAKE, STATE_SUBSCRIBING, STATE_LIVE, STATE_ENDED };

enum { COUNTER_UNKNOWN_BIT = 63 };
#define COUNTER_UNKNOWN (UINT64_C(1) << COUNTER_UNKNOWN_BIT)

/* What one receiver knows of one topic. */
struct track {
    uint64_t next;   /* the counter expected, or COUNTER_UNKNOWN */
    uint64_t recent; /* bit i: counter next - 1 - i was received */
};

enum { SEQUENCE_UNKNOWN = 0 };

struct connection {
    int fd;
    struct tls *tls; /* NULL if it is plain */
    uint8_t kind, state;
    bool base; /* connected before publishing began, so it must receive counter 0 */
    uint8_t head[14], head_length, opcode, control_length;
    uint8_t control[125];
    bool in_frame, final, compressed; /* compressed: the message being received */
    char line; /* of a stream of events: the first byte of the line being received, 0 at its start */
    struct inflater *inflater; /* only where messages are parsed */
    uint32_t acks;
    uint64_t frame_left;
    char *held; /* handshake answer, later the message being assembled; only where it is parsed */
    size_t held_length, held_capacity;
    uint64_t opened_ns;
    struct track *tracks;
    uint64_t *sequences; /* per stream the last number received, or SEQUENCE_UNKNOWN */
    /* from the specification */
    const char *path;
    uint32_t *topics, topic_count;
    char **sends;
    uint32_t send_count;
};

/* What the parsed connections of one kind found. */
struct tally {
    uint64_t updates, lost, merged, duplicates, out_of_order, snapshots, gaps, errors, malformed;
    struct histogram latency;
    /* For how long a client had shown a value that was no longer the newest, when its next came. The
     * same as the latency where nothing is merged; it needs publications at a steady pace. */
    struct histogram age;
};

enum { MAX_SECONDS = 3600 };

/* A connection that only counts does not inflate: its compressed frames count as many messages as those
 * that the parsed connections have received in the same time contain on average. */
struct received {
    uint64_t messages; /* in frames that were plain or inflated */
    uint64_t uninflated_frames, inflated_frames, inflated_messages;
};

struct totals {
    struct received received;
    uint64_t frames, bytes, pings, live, ended, failed, resumed;
    struct tally tallies[KINDS];
    uint64_t worst_ns[MAX_SECONDS]; /* the sample's longest latency among what each second published */
    struct histogram handshake; /* connect to the last acknowledgement */
};

struct protocol {
    struct sockaddr_in address;
    const char *host;
    const char *ack; /* bytes that a message acknowledging one subscription contains */
    uint32_t acks;   /* of them each connection waits for; 0 = the handshake is the subscription */
    bool nats;       /* the payloads are one stream of the NATS protocol */
    bool tls;        /* wss:// */
    bool deflate;    /* offer permessage-deflate */
    bool sse;        /* server-sent events instead of WebSocket; the request is the subscription */
    uint32_t topic_count;
    const struct publication_topic *topics;
    int slow_receive_buffer_bytes;
    uint64_t topic_period_ns; /* between two publications of a topic */
    /* Publications stamped within this are measured for latency. */
    uint64_t measure_start_ns, measure_end_ns;
};

/* Messages received between two moments, those in frames that were not inflated included. */
uint64_t received_between(struct received before, struct received after);
/* Begins a non-blocking connect; false if that failed at once. */
bool connection_open(struct connection *c, const struct protocol *protocol);
/* Call when the socket became writable during STATE_CONNECTING, and when it is ready during STATE_SECURING. */
void connection_writable(struct connection *c, const struct protocol *protocol, struct totals *totals);
void connection_secure(struct connection *c, const struct protocol *protocol, struct totals *totals);
/* Reads what is there. `now` is the time of receipt. */
void connection_readable(struct connection *c, const struct protocol *protocol, struct totals *totals, uint64_t now);
void connection_close(struct connection *c, struct totals *totals);
#endif
