#define _GNU_SOURCE
#include "connection.h"

#include "clock.h"
#include "scan.h"

#include <err.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { OPCODE_TEXT = 1, OPCODE_BINARY = 2, OPCODE_CLOSE = 8, OPCODE_PING = 9, OPCODE_PONG = 10, FINAL = 0x80, MASKED = 0x80, COMPRESSED = 0x40 };
enum { CHUNK_BYTES = 256 * 1024, HANDSHAKE_LIMIT_BYTES = 16 * 1024 };

/* The key of RFC 6455, section 1.3, and its answer: fixed, so that neither side of the rig needs SHA-1. */
static const char request_format[] = "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n";
static const char deflate_offer[] = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
static const char deflate_answer[] = "permessage-deflate";
static const char events_request_format[] = "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n\r\n";
static const char accept_value[] = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

struct receipt {
    struct connection *connection;
    const struct protocol *protocol;
    struct totals *totals;
    struct tally *tally;
    uint64_t now;
};

static void fail(struct connection *c, struct totals *totals, const char *reason)
{
    static unsigned warnings;
    if (c->state != STATE_LIVE)
        totals->failed++;
    if (warnings++ < 5)
        warnx("connection: %s", reason);
    connection_close(c, totals);
}

void connection_close(struct connection *c, struct totals *totals)
{
    if (c->state == STATE_NEW || c->state == STATE_ENDED)
        return;
    if (c->state == STATE_LIVE) {
        totals->live--;
        totals->ended++;
    }
    /* Reset instead of FIN: thousands of TIME_WAIT would take the next run's ports. */
    struct linger reset = {.l_onoff = 1};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (c->tls != NULL)
        transport_free_tls(c->tls);
    c->tls = NULL;
    close(c->fd);
    free(c->held);
    c->held = NULL;
    inflater_free(&c->inflater);
    c->fd = -1;
    c->state = STATE_ENDED;
}

bool connection_open(struct connection *c, const struct protocol *protocol)
{
    int one = 1;
    c->opened_ns = now_ns();
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        err(1, "socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (c->kind == KIND_SLOW)
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &protocol->slow_receive_buffer_bytes, sizeof(int));
    c->state = STATE_CONNECTING;
    return connect(c->fd, (const struct sockaddr *)&protocol->address, sizeof protocol->address) == 0 || errno == EINPROGRESS;
}

static void send_request(struct connection *c, const struct protocol *protocol, struct totals *totals)
{
    char request[8192];
    int length = protocol->sse
                     ? snprintf(request, sizeof request, events_request_format, c->path, protocol->host)
                     : snprintf(request, sizeof request, request_format, c->path, protocol->host, protocol->deflate ? deflate_offer : "");
    c->state = STATE_HANDSHAKE;
    if (length >= (int)sizeof request || transport_write(c->fd, c->tls, request, (size_t)length) != length)
        fail(c, totals, "the handshake could not be sent");
}

void connection_writable(struct connection *c, const struct protocol *protocol, struct totals *totals)
{
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) {
        fail(c, totals, strerror(error));
    } else if (protocol->tls) {
        c->tls = transport_begin_tls(c->fd);
        c->state = STATE_SECURING;
        connection_secure(c, protocol, totals);
    } else {
        send_request(c, protocol, totals);
    }
}

void connection_secure(struct connection *c, const struct protocol *protocol, struct totals *totals)
{
    switch (transport_handshake(c->tls)) {
    case TLS_DONE:
        totals->resumed += transport_resumed(c->tls);
        send_request(c, protocol, totals);
        break;
    case TLS_WANTS_READ:
        break;
    case TLS_WANTS_WRITE: /* what a client sends in it fits any socket's buffer */
    case TLS_FAILED:
        fail(c, totals, "the TLS handshake failed");
        break;
    }
}

/* A client's frames must be masked; the mask 0 is as good as any and changes nothing. */
static bool send_frame(struct connection *c, uint8_t opcode, const char *payload, size_t length)
{
    size_t head = 0;
    uint8_t *frame = malloc(length + 14);
    if (frame == NULL)
        err(1, "frame");
    frame[head++] = FINAL | opcode;
    if (length < 126) {
        frame[head++] = (uint8_t)(MASKED | length);
    } else if (length < 65536) {
        frame[head++] = MASKED | 126;
        frame[head++] = (uint8_t)(length >> 8);
        frame[head++] = (uint8_t)length;
    } else {
        frame[head++] = MASKED | 127;
        for (int shift = 56; shift >= 0; shift -= 8)
            frame[head++] = (uint8_t)((uint64_t)length >> shift);
    }
    memset(frame + head, 0, 4);
    head += 4;
    memcpy(frame + head, payload, length);
    bool whole = transport_write(c->fd, c->tls, frame, head + length) == (ssize_t)(head + length);
    free(frame);
    return whole;
}

static void become_live(struct connection *c, struct totals *totals)
{
    c->state = STATE_LIVE;
    totals->live++;
    histogram_add(&totals->handshake, now_ns() - c->opened_ns);
    if (c->kind == KIND_DRAIN) {
        free(c->held);
        c->held = NULL;
        c->held_length = c->held_capacity = 0;
        inflater_free(&c->inflater);
    }
}

uint64_t received_between(struct received before, struct received after)
{
    uint64_t frames = after.inflated_frames - before.inflated_frames, uninflated = after.uninflated_frames - before.uninflated_frames;
    double messages_per_frame = frames ? (double)(after.inflated_messages - before.inflated_messages) / (double)frames : 1;
    return after.messages - before.messages + (uint64_t)((double)uninflated * messages_per_frame + 0.5);
}

static void hold(struct connection *c, const char *at, size_t length)
{
    if (c->held_length + length > c->held_capacity) {
        c->held_capacity = 2 * (c->held_length + length);
        c->held = realloc(c->held, c->held_capacity);
        if (c->held == NULL)
            err(1, "message");
    }
    memcpy(c->held + c->held_length, at, length);
    c->held_length += length;
}

/* A server that numbers its messages must account for every one of them by these numbers. */
static bool follows(struct receipt *r, const struct update *update)
{
    uint64_t *last = &r->connection->sequences[r->protocol->topics[update->topic].stream];
    bool known = *last != SEQUENCE_UNKNOWN;
    if (known && update->previous > *last)
        r->tally->lost += update->previous - *last;
    if (known && update->previous < *last)
        r->tally->out_of_order++;
    r->tally->merged += update->sequence - 1 - update->previous;
    *last = update->sequence;
    return known || update->previous < update->sequence - 1;
}

static void on_update(void *context, const struct update *update)
{
    struct receipt *r = context;
    struct connection *c = r->connection;
    if (update->topic >= r->protocol->topic_count) {
        r->tally->malformed++;
        return;
    }
    if (update->snapshot) {
        r->tally->snapshots++;
        return;
    }
    r->tally->updates++;
    struct track *track = &c->tracks[update->topic];
    if (track->next == COUNTER_UNKNOWN)
        track->next = update->counter;
    uint64_t missed = update->counter >= track->next ? update->counter - track->next : 0;
    bool accounted = update->numbered && follows(r, update);
    if (update->counter >= track->next) {
        if (!accounted)
            r->tally->lost += missed;
        track->recent = (missed < 63 ? track->recent << (missed + 1) : 0) | 1;
        track->next = update->counter + 1;
    } else {
        uint64_t age = track->next - 1 - update->counter;
        if (age < 64 && !(track->recent >> age & 1)) {
            track->recent |= UINT64_C(1) << age; /* counted as lost when it was passed over */
            r->tally->out_of_order++;
            r->tally->lost -= !accounted && r->tally->lost > 0;
        } else {
            r->tally->duplicates++;
        }
    }
    if (update->t_ns >= r->protocol->measure_start_ns && update->t_ns < r->protocol->measure_end_ns) {
        uint64_t latency = r->now - update->t_ns;
        uint64_t *worst = &r->totals->worst_ns[(update->t_ns - r->protocol->measure_start_ns) / 1000000000u];
        if (c->kind == KIND_SAMPLE && latency > *worst)
            *worst = latency;
        histogram_add(&r->tally->latency, latency);
        histogram_add(&r->tally->age, latency + missed * r->protocol->topic_period_ns);
    }
}

static void on_gap(void *context)
{
    struct receipt *r = context;
    r->tally->gaps++;
    /* Which stream it is about does not matter here: what follows on any of them is believed. */
    for (uint32_t t = 0; t < r->protocol->topic_count; t++) {
        r->connection->sequences[t] = SEQUENCE_UNKNOWN;
        r->connection->tracks[t].next = COUNTER_UNKNOWN;
    }
}

static void on_error(void *context)
{
    ((struct receipt *)context)->tally->errors++;
}

static bool contains(const char *at, size_t length, const char *word)
{
    return memmem(at, length, word, strlen(word)) != NULL;
}

static void on_text(struct receipt *r, const char *at, size_t length)
{
    const struct scan_visitor visitor = {.context = r, .on_update = on_update, .on_gap = on_gap, .on_error = on_error};
    if (scan_json(at, at + length, &visitor) == NULL)
        r->tally->malformed++;
}

/* Takes the complete lines and messages off what is held; the rest waits for the next frame. */
static void on_nats(struct receipt *r)
{
    struct connection *c = r->connection;
    size_t done = 0;
    for (;;) {
        const char *at = c->held + done, *line_end = memmem(at, c->held_length - done, "\r\n", 2);
        if (line_end == NULL)
            break;
        size_t next = (size_t)(line_end + 2 - c->held);
        if (memcmp(at, "MSG ", 4) == 0) {
            const char *size = memrchr(at, ' ', (size_t)(line_end - at));
            size_t length = strtoul(size, NULL, 10);
            if (next + length + 2 > c->held_length)
                break;
            on_text(r, c->held + next, length);
            next += length + 2;
        } else if (c->state == STATE_SUBSCRIBING && memcmp(at, r->protocol->ack, strlen(r->protocol->ack)) == 0) {
            if (++c->acks == r->protocol->acks) {
                become_live(c, r->totals);
                if (c->held == NULL)
                    return;
            }
        } else if (memcmp(at, "-ERR", 4) == 0) {
            r->tally->errors++;
        }
        done = next;
    }
    memmove(c->held, c->held + done, c->held_length - done);
    c->held_length -= done;
}

static uint64_t count_markers(const char *at, size_t length)
{
    uint64_t count = 0;
    /* In stretches of 255 the counters fit bytes, which lets the compiler compare 16 to 64 bytes at once. */
    while (length > 0) {
        size_t stretch = length < 255 ? length : 255;
        uint8_t found = 0;
        for (size_t i = 0; i < stretch; i++)
            found = (uint8_t)(found + (at[i] == MARKER));
        count += found;
        at += stretch;
        length -= stretch;
    }
    return count;
}

static void on_compressed(struct receipt *r)
{
    struct connection *c = r->connection;
    size_t length;
    const char *text = inflater_text(&c->inflater, c->held, c->held_length, &length);
    c->held_length = 0;
    if (text == NULL) {
        r->tally->malformed++;
        return;
    }
    uint64_t messages = count_markers(text, length);
    r->totals->received.messages += messages;
    if (c->state == STATE_LIVE) {
        r->totals->received.inflated_messages += messages;
        r->totals->received.inflated_frames++;
    }
    if (c->kind != KIND_DRAIN)
        on_text(r, text, length);
    bool acknowledges = c->state == STATE_SUBSCRIBING && contains(text, length, r->protocol->ack);
    if (acknowledges && ++c->acks == r->protocol->acks)
        become_live(c, r->totals);
}

static void on_message(struct receipt *r)
{
    struct connection *c = r->connection;
    if (c->compressed) {
        on_compressed(r);
        return;
    }
    if (r->protocol->nats) {
        on_nats(r);
        return;
    }
    if (c->kind != KIND_DRAIN)
        on_text(r, c->held, c->held_length);
    bool acknowledges = c->state == STATE_SUBSCRIBING && contains(c->held, c->held_length, r->protocol->ack);
    c->held_length = 0;
    if (acknowledges && ++c->acks == r->protocol->acks)
        become_live(c, r->totals);
}

static void on_frame_end(struct receipt *r)
{
    struct connection *c = r->connection;
    struct totals *totals = r->totals;
    c->in_frame = false;
    c->head_length = 0;
    if (c->opcode == OPCODE_PING) {
        totals->pings++;
        if (!send_frame(c, OPCODE_PONG, (const char *)c->control, c->control_length))
            fail(c, totals, "a pong could not be sent");
    } else if (c->opcode == OPCODE_CLOSE) {
        fail(c, totals, "closed by the server");
    } else if (c->opcode != OPCODE_PONG) {
        totals->frames++;
        if (c->held != NULL && c->final)
            on_message(r);
        else if (c->compressed && c->final)
            totals->received.uninflated_frames++;
    }
}

static void on_payload(struct connection *c, struct totals *totals, const char *at, size_t length)
{
    if (c->opcode >= OPCODE_CLOSE) {
        memcpy(c->control + c->control_length, at, length);
        c->control_length = (uint8_t)(c->control_length + length);
        return;
    }
    if (!c->compressed)
        totals->received.messages += count_markers(at, length);
    if (c->state == STATE_SUBSCRIBING || c->kind != KIND_DRAIN)
        hold(c, at, length);
}

/* Returns how many bytes it took; the header is complete once in_frame is set. */
static size_t take_head(struct connection *c, const struct protocol *protocol, struct totals *totals, const char *at, size_t length)
{
    size_t taken = 0;
    while (taken < length) {
        c->head[c->head_length++] = (uint8_t)at[taken++];
        if (c->head_length < 2)
            continue;
        uint8_t code = c->head[1] & 0x7f;
        size_t extra = code == 126 ? 2 : code == 127 ? 8 : 0;
        if (c->head_length < 2 + extra)
            continue;
        c->frame_left = extra ? 0 : code;
        for (size_t i = 0; i < extra; i++)
            c->frame_left = c->frame_left << 8 | c->head[2 + i];
        c->opcode = c->head[0] & 0x0f ? c->head[0] & 0x0f : OPCODE_TEXT; /* 0 continues a message */
        c->final = (c->head[0] & FINAL) != 0;
        if (c->head[0] & 0x0f && c->opcode < OPCODE_CLOSE)
            c->compressed = (c->head[0] & COMPRESSED) != 0;
        c->in_frame = true;
        c->control_length = 0;
        if (c->head[1] & MASKED || (c->head[0] & COMPRESSED && !protocol->deflate) || (c->opcode >= OPCODE_CLOSE && c->frame_left > sizeof c->control))
            fail(c, totals, "the server broke the WebSocket protocol");
        break;
    }
    return taken;
}

static void on_upgraded(struct connection *c, const struct protocol *protocol, struct totals *totals)
{
    c->state = STATE_SUBSCRIBING;
    c->held_length = 0;
    for (uint32_t i = 0; i < c->send_count; i++) {
        if (!send_frame(c, protocol->nats ? OPCODE_BINARY : OPCODE_TEXT, c->sends[i], strlen(c->sends[i]))) {
            fail(c, totals, "a subscription could not be sent");
            return;
        }
    }
    if (protocol->acks == 0)
        become_live(c, totals);
}

static size_t take_handshake(struct connection *c, const struct protocol *protocol, struct totals *totals, const char *at, size_t length)
{
    size_t before = c->held_length;
    hold(c, at, length);
    const char *end = memmem(c->held, c->held_length, "\r\n\r\n", 4);
    if (end == NULL) {
        if (c->held_length > HANDSHAKE_LIMIT_BYTES)
            fail(c, totals, "no end of the handshake");
        return length;
    }
    size_t answer = (size_t)(end + 4 - c->held);
    bool agreed = protocol->sse ? memcmp(c->held, "HTTP/1.1 200", 12) == 0
                                : memcmp(c->held, "HTTP/1.1 101", 12) == 0 && contains(c->held, answer, accept_value);
    if (agreed && protocol->deflate && !contains(c->held, answer, deflate_answer)) {
        fail(c, totals, "the server does not compress");
    } else if (!agreed) {
        char line[100];
        snprintf(line, sizeof line, "handshake refused: %.*s", (int)strcspn(c->held, "\r"), c->held);
        fail(c, totals, line);
    } else {
        on_upgraded(c, protocol, totals);
    }
    return answer - before;
}

/* Markers count in data only: a cursor may contain the byte. */
static void count_events(struct connection *c, struct totals *totals, const char *at, size_t length)
{
    const char *end = at + length;
    while (at < end) {
        if (c->line == '\0' && *at == '\n') {
            totals->frames++;
            at++;
            continue;
        }
        if (c->line == '\0')
            c->line = *at;
        const char *line_end = memchr(at, '\n', (size_t)(end - at)), *stop = line_end ? line_end : end;
        if (c->line == 'd')
            totals->received.messages += count_markers(at, (size_t)(stop - at));
        if (line_end != NULL)
            c->line = '\0';
        at = line_end ? line_end + 1 : end;
    }
}

static void on_event(struct receipt *r, const char *at, const char *end)
{
    static const char field[] = "data: ";
    struct connection *c = r->connection;
    size_t head = sizeof field - 1, length = (size_t)((const char *)memchr(at, '\n', (size_t)(end - at) + 1) - at);
    if (length < head || memcmp(at, field, head) != 0)
        return;
    if (c->kind != KIND_DRAIN)
        on_text(r, at + head, length - head);
    bool acknowledges = c->state == STATE_SUBSCRIBING && contains(at, length, r->protocol->ack);
    if (acknowledges && ++c->acks == r->protocol->acks)
        become_live(c, r->totals);
}

static void on_events(struct receipt *r, const char *at, size_t length)
{
    struct connection *c = r->connection;
    count_events(c, r->totals, at, length);
    if (c->state == STATE_LIVE && c->kind == KIND_DRAIN)
        return;
    hold(c, at, length);
    size_t done = 0;
    const char *end;
    while (c->held != NULL && (end = memmem(c->held + done, c->held_length - done, "\n\n", 2)) != NULL) {
        const char *event = c->held + done;
        done = (size_t)(end + 2 - c->held);
        on_event(r, event, end);
    }
    if (c->held != NULL) {
        memmove(c->held, c->held + done, c->held_length - done);
        c->held_length -= done;
    }
}

static void feed(struct receipt *r, const char *at, size_t length)
{
    struct connection *c = r->connection;
    struct totals *totals = r->totals;
    while (length > 0 && c->state != STATE_ENDED) {
        size_t taken;
        if (c->state == STATE_HANDSHAKE) {
            taken = take_handshake(c, r->protocol, totals, at, length);
        } else if (r->protocol->sse) {
            taken = length;
            on_events(r, at, length);
        } else if (!c->in_frame) {
            taken = take_head(c, r->protocol, totals, at, length);
            if (c->in_frame && c->frame_left == 0 && c->state != STATE_ENDED)
                on_frame_end(r);
        } else {
            taken = c->frame_left < length ? (size_t)c->frame_left : length;
            on_payload(c, totals, at, taken);
            c->frame_left -= taken;
            if (c->frame_left == 0)
                on_frame_end(r);
        }
        at += taken;
        length -= taken;
    }
}

void connection_readable(struct connection *c, const struct protocol *protocol, struct totals *totals, uint64_t now)
{
    static char chunk[CHUNK_BYTES];
    struct receipt receipt = {.connection = c, .protocol = protocol, .totals = totals, .tally = &totals->tallies[c->kind], .now = now};
    ssize_t n;
    do {
        n = transport_read(c->fd, c->tls, chunk, sizeof chunk);
        if (n > 0) {
            totals->bytes += (uint64_t)n;
            feed(&receipt, chunk, (size_t)n);
        }
        /* TLS returns one record at a time. */
    } while ((n == CHUNK_BYTES || (c->tls != NULL && n > 0)) && c->state != STATE_ENDED);
    if (c->state == STATE_ENDED)
        return;
    if (n == 0)
        fail(c, totals, "end of stream");
    else if (n < 0 && errno != EAGAIN && errno != EINTR)
        fail(c, totals, strerror(errno));
}
