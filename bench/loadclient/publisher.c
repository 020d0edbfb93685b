#define _GNU_SOURCE
#include "publisher.h"

#include "clock.h"
#include "scan.h"

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <signal.h>
#include <unistd.h>

enum {
    WRITE_BYTES = 64 * 1024,
    /* Below this the publisher writes what is due at once rather than sleep: 20,000 wake-ups/s at most. */
    SHORTEST_SLEEP_NS = 50 * 1000,
    REPLIES_DEADLINE_NS = 2000000000,
    NICER_BY = 5, /* the pace must not depend on how busy the receivers keep this core */
};

struct wire {
    const struct publisher_options *options;
    int fd;
    size_t length, capacity;
    char *buffer;
    uint64_t replies, errors;
    bool at_line_start;
};

static void count_replies(struct wire *wire, const char *at, size_t length)
{
    if (wire->options->protocol == PUBLISH_HTTP) {
        /* A read may cut a status line: the few missed only cost the wait for the last ones. */
        for (const char *p = at; (p = memmem(p, length - (size_t)(p - at), "HTTP/1.1 ", 9)) != NULL; p += 9) {
            wire->replies++;
            if (p + 9 < at + length && p[9] != '2')
                wire->errors++;
        }
        return;
    }
    for (size_t i = 0; i < length; i++) {
        if (wire->at_line_start && at[i] == '-')
            wire->errors++;
        wire->at_line_start = at[i] == '\n';
        wire->replies += wire->at_line_start;
    }
}

static bool read_replies(struct wire *wire)
{
    static char chunk[64 * 1024];
    ssize_t n;
    while ((n = recv(wire->fd, chunk, sizeof chunk, MSG_DONTWAIT)) > 0)
        count_replies(wire, chunk, (size_t)n);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        warnx("the publisher's connection was closed");
        return false;
    }
    return true;
}

static bool flush(struct wire *wire)
{
    for (size_t sent = 0; sent < wire->length;) {
        ssize_t n = send(wire->fd, wire->buffer + sent, wire->length - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) {
            sent += (size_t)n;
            continue;
        }
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            warn("publish");
            return false;
        }
        struct pollfd ready = {.fd = wire->fd, .events = POLLIN | POLLOUT};
        if (poll(&ready, 1, 1000) == 0) {
            warnx("the publisher's connection takes no more");
            return false;
        }
        if (!read_replies(wire))
            return false;
    }
    wire->length = 0;
    return read_replies(wire);
}

static void append(struct wire *wire, const char *at, size_t length)
{
    if (wire->length + length > wire->capacity) {
        wire->capacity = 2 * (wire->length + length);
        wire->buffer = realloc(wire->buffer, wire->capacity);
        if (wire->buffer == NULL)
            err(1, "publisher");
    }
    memcpy(wire->buffer + wire->length, at, length);
    wire->length += length;
}

static void append_publication(struct wire *wire, uint32_t topic, const char *head, uint64_t counter)
{
    static char tail[256], pad[64 * 1024], frame[1024];
    const struct publisher_options *o = wire->options;
    const char *channel = o->topics[topic].channel;
    size_t head_length = strlen(head);
    int tail_length = snprintf(tail, sizeof tail, ",\"%c\":[%u,%lu,%lu]", MARKER, topic, counter, now_ns());
    size_t length = head_length + (size_t)tail_length + 1, pad_length = 0;
    const size_t pad_frame = strlen(",\"pad\":\"\"");
    if (length + pad_frame < o->payload_bytes) {
        size_t width = o->payload_bytes - length - pad_frame;
        if (width > sizeof pad - 64)
            width = sizeof pad - 64;
        // Letters, since a server may have to look closely at so many digits.
        pad_length = (size_t)sprintf(pad, ",\"pad\":\"");
        memset(pad + pad_length, 'x', width);
        pad_length += width;
        pad[pad_length++] = '"';
    }
    length += pad_length;
    int n = 0;
    switch (o->protocol) {
    case PUBLISH_REDIS:
        n = snprintf(frame, sizeof frame, "*3\r\n$7\r\nPUBLISH\r\n$%zu\r\n%s\r\n$%zu\r\n", strlen(channel), channel, length);
        break;
    case PUBLISH_NATS:
        n = snprintf(frame, sizeof frame, "PUB %s %zu\r\n", channel, length);
        break;
    case PUBLISH_HTTP:
        n = snprintf(frame, sizeof frame, "POST %s%s HTTP/1.1\r\nHost: bench\r\nContent-Length: %zu\r\n\r\n", o->http_path, channel, length);
        break;
    }
    append(wire, frame, (size_t)n);
    append(wire, head, head_length);
    append(wire, tail, (size_t)tail_length);
    append(wire, pad, pad_length);
    append(wire, "}", 1);
    if (o->protocol != PUBLISH_HTTP)
        append(wire, "\r\n", 2);
}

static int connect_to(const char *host, int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (fd < 0 || inet_pton(AF_INET, host, &address.sin_addr) != 1)
        errx(1, "publisher: %s is not an IPv4 address", host);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        err(1, "publisher: connect to %s:%d", host, port);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void wait_for_replies(struct wire *wire, uint64_t wanted)
{
    uint64_t deadline = now_ns() + REPLIES_DEADLINE_NS;
    while (wire->replies < wanted && now_ns() < deadline) {
        struct pollfd ready = {.fd = wire->fd, .events = POLLIN};
        poll(&ready, 1, 50);
        if (!read_replies(wire))
            return;
    }
}

static void publish_all(const struct publisher_options *o, struct publisher_report *report, struct wire *wire)
{
    const uint64_t start = now_ns(), total = publisher_total(o);
    uint64_t i = 0;
    while (i < total) {
        const struct scheduled_publication *scheduled = o->schedule ? &o->schedule[i] : NULL;
        uint64_t due = start + (scheduled ? scheduled->at_ns : (uint64_t)(1e9 * (double)i / o->rate_per_second)), now = now_ns();
        if (due > now) {
            if (wire->length > 0 && !flush(wire))
                break;
            uint64_t wake = due > now + SHORTEST_SLEEP_NS ? due : now + SHORTEST_SLEEP_NS;
            struct timespec until = {.tv_sec = (time_t)(wake / 1000000000u), .tv_nsec = (long)(wake % 1000000000u)};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
            continue;
        }
        if (now - due > report->max_late_ns)
            report->max_late_ns = now - due;
        uint32_t topic = scheduled ? scheduled->topic : (uint32_t)(i % o->topic_count);
        append_publication(wire, topic, scheduled ? scheduled->head : o->topics[topic].head, report->per_topic[topic]++);
        i++;
        if (wire->length > WRITE_BYTES && !flush(wire))
            break;
    }
    report->elapsed_ns = now_ns() - start;
    if (wire->length > 0)
        flush(wire);
    report->published = i;
}

static void run(const struct publisher_options *o, struct publisher_report *report, int go)
{
    char byte;
    /* Needs privileges; without them the report shows how late the publications were. */
    setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) - NICER_BY);
    prctl(PR_SET_TIMERSLACK, 1);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (read(go, &byte, 1) != 1)
        return;
    struct wire wire = {.options = o, .fd = connect_to(o->host, o->port), .at_line_start = true};
    static const char hello[] = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n", ping[] = "PING\r\n";
    if (o->protocol == PUBLISH_NATS)
        append(&wire, hello, sizeof hello - 1);
    publish_all(o, report, &wire);
    if (o->protocol == PUBLISH_NATS) {
        append(&wire, ping, sizeof ping - 1); /* its PONG says that all before it was taken: after INFO, one line */
        flush(&wire);
        wait_for_replies(&wire, 2);
    } else {
        wait_for_replies(&wire, report->published);
    }
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    report->cpu_ns = (uint64_t)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000000u
                     + (uint64_t)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1000u;
    report->errors = wire.errors;
    __atomic_store_n(&report->finished, true, __ATOMIC_RELEASE);
}

uint64_t publisher_total(const struct publisher_options *o)
{
    return o->schedule ? o->schedule_count : (uint64_t)(o->rate_per_second * o->seconds);
}

struct publisher publisher_fork(const struct publisher_options *options)
{
    int go[2];
    size_t size = sizeof(struct publisher_report) + options->topic_count * sizeof(uint64_t);
    struct publisher_report *report = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (report == MAP_FAILED || pipe(go) != 0)
        err(1, "publisher");
    pid_t pid = fork();
    if (pid < 0)
        err(1, "fork");
    if (pid == 0) {
        close(go[1]);
        run(options, report, go[0]);
        _exit(0);
    }
    close(go[0]);
    return (struct publisher){.pid = pid, .go = go[1], .report = report};
}

void publisher_start(struct publisher *publisher)
{
    if (write(publisher->go, "g", 1) != 1)
        err(1, "publisher");
}
