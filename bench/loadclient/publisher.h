#ifndef PUBLISHER_H
#define PUBLISHER_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum publish_protocol { PUBLISH_REDIS, PUBLISH_NATS, PUBLISH_HTTP };

struct publication_topic {
    const char *channel;
    uint32_t stream; /* topics whose messages a server may number together have one, less than the count of topics */
    const char *head; /* the message up to its last field, without the closing brace */
};

/* One line of a recorded feed. */
struct scheduled_publication {
    uint64_t at_ns; /* from the start */
    uint32_t topic;
    const char *head;
};

struct publisher_options {
    enum publish_protocol protocol;
    const char *host;
    int port;
    const char *http_path; /* %s is the channel */
    double rate_per_second; /* over all topics, which take turns */
    double seconds;
    const struct scheduled_publication *schedule; /* instead of a rate, where not NULL */
    uint64_t schedule_count;
    size_t payload_bytes; /* messages are padded to this */
    const struct publication_topic *topics;
    uint32_t topic_count;
};

/* Shared with the publishing process. */
struct publisher_report {
    uint64_t published, errors;
    uint64_t max_late_ns; /* how far behind its schedule a publication was written, at worst */
    uint64_t elapsed_ns, cpu_ns;
    bool finished;
    uint64_t per_topic[]; /* how many publications of each */
};

struct publisher {
    pid_t pid;
    int go;
    struct publisher_report *report;
};

/* A process of its own, so that draining does not delay publishing; it waits for publisher_start. */
struct publisher publisher_fork(const struct publisher_options *options);
void publisher_start(struct publisher *publisher);
uint64_t publisher_total(const struct publisher_options *options);
#endif
