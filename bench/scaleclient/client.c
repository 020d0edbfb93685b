#define _GNU_SOURCE
#include "client.h"

#include "../loadclient/clock.h"
#include "../loadclient/scan.h"

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { OPCODE_TEXT = 1, OPCODE_CLOSE = 8, OPCODE_PING = 9, OPCODE_PONG = 10, FINAL = 0x80, MASKED = 0x80 };
enum { CHUNK_BYTES = 256 * 1024, REQUEST_BYTES = 16 * 1024, SHORTEST_RETRY_MS = 500 };

static const char handshake[] = "GET /v1/ws HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
static const char accepted[] = "HTTP/1.1 101";

struct receipt {
    struct world *world;
    struct client *client;
    uint64_t now;
    bool gap; /* the message is one */
};

static void complain(const char *reason)
{
    static unsigned warnings;
    if (warnings++ < 5)
        warnx("client: %s", reason);
}

/* Lets the client come back later: for what is no fault of the server's. */
static void leave(struct world *world, struct client *c, uint32_t after_ms)
{
    uint64_t now = now_ns();
    struct counts *counts = &world->counts;
    if (c->state == STATE_LIVE)
        counts->live--;
    else if (c->state != STATE_CLOSING)
        counts->opening--;
    if (c->left_ns == 0)
        c->left_ns = now;
    close(c->fd);
    free(c->held);
    c->held = NULL;
    c->held_length = 0;
    c->fd = -1;
    c->state = STATE_WAITING;
    counts->waiting++;
    world->due_ns[c->number] = now + UINT64_C(1000000) * after_ms;
}

static uint32_t some_time_ms(void)
{
    return SHORTEST_RETRY_MS + (uint32_t)random() % (2 * SHORTEST_RETRY_MS);
}

static void cut(struct world *world, struct client *c, const char *reason)
{
    if (c->state == STATE_CLOSING) {
        leave(world, c, c->retry_after_ms ? c->retry_after_ms : some_time_ms());
        return;
    }
    if (c->state == STATE_LIVE || c->state == STATE_ASKING) {
        world->counts.cut++;
        complain(reason);
    } else {
        world->counts.refused++;
    }
    c->returning = c->session_id[0] != '\0';
    leave(world, c, c->retry_after_ms ? c->retry_after_ms : some_time_ms());
}

void client_open(struct world *world, struct client *c)
{
    int one = 1;
    world->counts.waiting--;
    world->counts.opening++;
    c->state = STATE_CONNECTING;
    c->retry_after_ms = 0;
    c->opened_ns = now_ns();
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        err(1, "socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    /* One address has 28,000 ports to one destination. The port is chosen by connect, which knows both ends. */
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    struct sockaddr_in source = {.sin_family = AF_INET,
                                 .sin_addr.s_addr = htonl(world->first_source + c->number % world->sources)};
    if (bind(c->fd, (struct sockaddr *)&source, sizeof source) != 0)
        err(1, "bind");
    if (connect(c->fd, (struct sockaddr *)&world->server, sizeof world->server) != 0 && errno != EINPROGRESS) {
        cut(world, c, strerror(errno));
        return;
    }
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
    if (epoll_ctl(world->poll, EPOLL_CTL_ADD, c->fd, &event) != 0)
        err(1, "epoll_ctl");
}

void client_writable(struct world *world, struct client *c)
{
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0 || send(c->fd, handshake, sizeof handshake - 1, MSG_NOSIGNAL) != sizeof handshake - 1) {
        cut(world, c, strerror(error ? error : errno));
        return;
    }
    c->state = STATE_HANDSHAKE;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(world->poll, EPOLL_CTL_MOD, c->fd, &event) != 0)
        err(1, "epoll_ctl");
}

/* A client's frames must be masked; the mask 0 is as good as any and changes nothing. */
static bool send_frame(struct client *c, uint8_t opcode, const char *payload, size_t length)
{
    uint8_t frame[REQUEST_BYTES + 8];
    size_t head = 0;
    frame[head++] = FINAL | opcode;
    if (length < 126) {
        frame[head++] = (uint8_t)(MASKED | length);
    } else {
        frame[head++] = MASKED | 126;
        frame[head++] = (uint8_t)(length >> 8);
        frame[head++] = (uint8_t)length;
    }
    memset(frame + head, 0, 4);
    head += 4;
    memcpy(frame + head, payload, length);
    return send(c->fd, frame, head + length, MSG_NOSIGNAL) == (ssize_t)(head + length);
}

static void ask(struct world *world, struct client *c)
{
    static char text[REQUEST_BYTES];
    const char *comma = "";
    size_t n;
    c->state = STATE_ASKING;
    if (c->returning) {
        n = (size_t)snprintf(text, sizeof text, "{\"type\":\"reconnect\",\"session_id\":\"%s\",\"positions\":{", c->session_id);
        for (uint32_t i = 0; i < c->holding_count; i++, comma = ",")
            n += (size_t)snprintf(text + n, sizeof text - n, "%s\"stock:T%05u\":{\"epoch\":\"%s\",\"sequence\":%lu}", comma,
                                  c->holdings[i].topic, world->epochs[c->holdings[i].topic], c->holdings[i].sequence);
        n += (size_t)snprintf(text + n, sizeof text - n, "}}");
    } else {
        n = (size_t)snprintf(text, sizeof text, "{\"type\":\"subscribe\",\"subscription_type\":\"stock\",\"kinds\":[\"price\"],\"targets\":[");
        for (uint32_t i = 0; i < c->holding_count; i++, comma = ",")
            n += (size_t)snprintf(text + n, sizeof text - n, "%s\"T%05u\"", comma, c->holdings[i].topic);
        n += (size_t)snprintf(text + n, sizeof text - n, "]}");
    }
    if (!send_frame(c, OPCODE_TEXT, text, n))
        cut(world, c, "a request could not be sent");
}

static struct holding *holding_of(struct client *c, uint32_t topic)
{
    for (uint32_t i = 0; i < c->holding_count; i++)
        if (c->holdings[i].topic == topic)
            return &c->holdings[i];
    return NULL;
}

static void on_update(void *context, const struct update *update)
{
    struct receipt *r = context;
    struct counts *counts = &r->world->counts;
    struct holding *holding = holding_of(r->client, update->topic);
    if (holding == NULL || !update->numbered) {
        counts->malformed++;
        return;
    }
    if (update->snapshot) {
        counts->snapshots++;
        return;
    }
    counts->updates++;
    if (update->sequence <= holding->sequence) {
        counts->repeated++;
        return;
    }
    if (update->previous > holding->sequence)
        counts->lost += update->previous - holding->sequence;
    counts->merged += update->sequence - 1 - update->previous;
    holding->sequence = update->sequence;
    if (update->t_ns < r->client->live_ns)
        counts->replayed++;
    else if (update->t_ns >= r->world->window_ns)
        histogram_add(&counts->latency, r->now - update->t_ns);
}

static void on_gap(void *context)
{
    struct receipt *r = context;
    r->world->counts.gaps++;
    r->gap = true;
}

static void on_error(void *context)
{
    ((struct receipt *)context)->world->counts.errors++;
}

static const char *after(const char *at, size_t length, const char *word)
{
    const char *found = memmem(at, length, word, strlen(word));
    return found ? found + strlen(word) : NULL;
}

/* Copies the characters up to the quotation mark. */
static void copy_text(char *to, size_t capacity, const char *from, const char *end)
{
    const char *stop = from ? memchr(from, '"', (size_t)(end - from)) : NULL;
    size_t length = stop ? (size_t)(stop - from) : 0;
    if (length >= capacity)
        length = 0;
    memcpy(to, from, length);
    to[length] = '\0';
}

/* Takes the positions that the answer to subscribe names: the next message of each topic follows them. */
static void take_positions(struct world *world, struct client *c, const char *at, size_t length)
{
    const char *end = at + length;
    for (uint32_t i = 0; i < c->holding_count; i++) {
        char key[32];
        snprintf(key, sizeof key, "\"T%05u\":{\"epoch\":\"", c->holdings[i].topic);
        const char *epoch = after(at, length, key), *sequence;
        if (epoch == NULL || (sequence = after(epoch, (size_t)(end - epoch), "\"sequence\":")) == NULL) {
            world->counts.malformed++;
            continue;
        }
        copy_text(world->epochs[c->holdings[i].topic], sizeof *world->epochs, epoch, end);
        c->holdings[i].sequence = strtoul(sequence, NULL, 10);
    }
}

static void become_live(struct world *world, struct client *c, uint64_t now)
{
    struct counts *counts = &world->counts;
    c->state = STATE_LIVE;
    c->live_ns = now;
    counts->opening--;
    counts->live++;
    histogram_add(&counts->handshake, now - c->opened_ns);
    if (c->left_ns != 0)
        histogram_add(&counts->away, now - c->left_ns);
    c->left_ns = 0;
}

static void on_answer(struct receipt *r, const char *at, size_t length)
{
    struct world *world = r->world;
    struct client *c = r->client;
    const char *end = at + length;
    if (after(at, length, "\"type\":\"connected\"")) {
        if (!c->returning)
            copy_text(c->session_id, sizeof c->session_id, after(at, length, "\"session_id\":\""), end);
    } else if (after(at, length, "\"type\":\"subscribed\"")) {
        if (!c->returning)
            take_positions(world, c, at, length);
        become_live(world, c, r->now);
    } else if (after(at, length, "\"type\":\"reconnected\"")) {
        copy_text(c->session_id, sizeof c->session_id, after(at, length, "\"session_id\":\""), end);
        if (!after(at, length, "\"recovered\":true"))
            world->counts.incomplete++;
        world->counts.returned++;
        become_live(world, c, r->now);
    } else if (after(at, length, "SESSION_RESTORATION_FAILED")) {
        world->counts.unrestored++;
        c->returning = false;
        ask(world, c);
    }
}

/* A gap names the position that the topic's next message follows. */
static void take_gap(struct receipt *r, const char *at, size_t length)
{
    static unsigned shown;
    const char *target = after(at, length, "\"target\":\"T"), *epoch = after(at, length, "\"epoch\":\"");
    const char *sequence = after(at, length, "\"sequence\":");
    struct holding *holding = target ? holding_of(r->client, (uint32_t)strtoul(target, NULL, 10)) : NULL;
    r->gap = false;
    if (shown++ < 3)
        warnx("client: %.*s", (int)length, at);
    if (holding == NULL || epoch == NULL || sequence == NULL) {
        r->world->counts.malformed++;
        return;
    }
    copy_text(r->world->epochs[holding->topic], sizeof *r->world->epochs, epoch, at + length);
    holding->sequence = strtoul(sequence, NULL, 10);
}

static void on_text(struct receipt *r, const char *at, size_t length)
{
    const struct scan_visitor visitor = {.context = r, .on_update = on_update, .on_gap = on_gap, .on_error = on_error};
    static const char shutdown[] = "\"type\":\"server_shutdown\"";
    r->world->counts.frames++;
    if (r->client->state == STATE_ASKING)
        on_answer(r, at, length);
    const char *retry = after(at, length < 200 ? length : 200, shutdown) ? after(at, length, "\"retry_after_ms\":") : NULL;
    if (retry != NULL)
        r->client->retry_after_ms = (uint32_t)strtoul(retry, NULL, 10);
    if (scan_json(at, at + length, &visitor) == NULL)
        r->world->counts.malformed++;
    if (r->gap)
        take_gap(r, at, length);
}

static void on_close(struct world *world, struct client *c, const char *payload, size_t length)
{
    bool going_away = length >= 2 && (uint8_t)payload[0] == 1001 >> 8 && (uint8_t)payload[1] == (1001 & 0xff);
    send_frame(c, OPCODE_CLOSE, payload, length);
    if (c->state != STATE_LIVE) {
        cut(world, c, "closed before it was live");
        return;
    }
    if (going_away)
        world->counts.dismissed++;
    else
        world->counts.cut++;
    world->counts.live--;
    c->left_ns = now_ns();
    c->state = STATE_CLOSING;
    c->returning = true;
}

/* Returns how many bytes the frame at the beginning has, 0 if not all of them are there. */
static size_t take_frame(struct receipt *r, const char *at, size_t length)
{
    if (length < 2)
        return 0;
    const uint8_t *bytes = (const uint8_t *)at;
    size_t head = 2, payload = bytes[1] & 0x7f;
    if (payload >= 126) {
        size_t extra = payload == 126 ? 2 : 8;
        if (length < 2 + extra)
            return 0;
        payload = 0;
        for (size_t i = 0; i < extra; i++)
            payload = payload << 8 | bytes[2 + i];
        head += extra;
    }
    if (length < head + payload)
        return 0;
    switch (bytes[0] & 0x0f) {
    case OPCODE_TEXT:
        on_text(r, at + head, payload);
        break;
    case OPCODE_PING:
        send_frame(r->client, OPCODE_PONG, at + head, payload);
        break;
    case OPCODE_CLOSE:
        on_close(r->world, r->client, at + head, payload);
        break;
    default:
        r->world->counts.malformed++;
    }
    return head + payload;
}

/* Returns how many bytes the handshake's answer has, 0 if not all of them are there. */
static size_t take_handshake(struct receipt *r, const char *at, size_t length)
{
    const char *end = after(at, length, "\r\n\r\n");
    if (end == NULL)
        return 0;
    if (memcmp(at, accepted, sizeof accepted - 1) != 0)
        cut(r->world, r->client, "the handshake was refused");
    else
        ask(r->world, r->client);
    return (size_t)(end - at);
}

static void feed(struct receipt *r, const char *at, size_t length)
{
    struct client *c = r->client;
    while (length > 0 && c->state != STATE_WAITING) {
        size_t taken = c->state == STATE_HANDSHAKE ? take_handshake(r, at, length) : take_frame(r, at, length);
        if (taken == 0)
            break;
        at += taken;
        length -= taken;
    }
    if (c->state == STATE_WAITING || length == 0)
        return;
    c->held = malloc(length);
    if (c->held == NULL)
        err(1, "frame");
    memcpy(c->held, at, length);
    c->held_length = (uint32_t)length;
}

void client_readable(struct world *world, struct client *c)
{
    static char chunk[2 * CHUNK_BYTES];
    struct receipt receipt = {.world = world, .client = c, .now = now_ns()};
    size_t held = c->held_length;
    if (held > CHUNK_BYTES) {
        world->counts.malformed++;
        cut(world, c, "a frame is too long");
        return;
    }
    ssize_t n = recv(c->fd, chunk + held, CHUNK_BYTES, 0);
    if (n > 0) {
        world->counts.bytes += (uint64_t)n;
        if (held > 0)
            memcpy(chunk, c->held, held);
        free(c->held);
        c->held = NULL;
        c->held_length = 0;
        feed(&receipt, chunk, held + (size_t)n);
    } else if (n == 0) {
        cut(world, c, "end of stream");
    } else if (errno != EAGAIN && errno != EINTR) {
        cut(world, c, strerror(errno));
    }
}
