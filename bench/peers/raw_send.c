/* The raw loop: subscribes to all of Redis and calls send() once for each frame and client: what a
 * server that writes each message by itself could reach at best. Clients name their channels in the
 * path: /sub/CHANNEL,CHANNEL...  A client whose socket is full is cut off.
 *
 *     raw_send REDIS_PORT PORT */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <search.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { INBOX_BYTES = 1 << 22, REQUEST_BYTES = 16384, EVENTS = 64, MAX_CHANNELS = 100000 };

struct channel {
    int *clients;
    size_t count, capacity;
};

/* The answer to the sample key of RFC 6455, section 1.3, the only one that the load client sends. */
static const char upgraded[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                               "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static struct channel *channel_named(char *name)
{
    ENTRY *found = hsearch((ENTRY){.key = name}, FIND);
    if (found != NULL)
        return found->data;
    struct channel *channel = calloc(1, sizeof *channel);
    if (channel == NULL || hsearch((ENTRY){.key = strdup(name), .data = channel}, ENTER) == NULL)
        errx(1, "too many channels");
    return channel;
}

static void subscribe(int fd, char *name)
{
    struct channel *channel = channel_named(name);
    if (channel->count == channel->capacity) {
        channel->capacity = channel->capacity ? 2 * channel->capacity : 16;
        channel->clients = realloc(channel->clients, channel->capacity * sizeof *channel->clients);
        if (channel->clients == NULL)
            err(1, "subscribe");
    }
    channel->clients[channel->count++] = fd;
}

static void fan_out(const struct channel *channel, const char *payload, size_t length)
{
    static char frame[INBOX_BYTES];
    size_t head = 0;
    frame[head++] = (char)0x81;
    if (length < 126) {
        frame[head++] = (char)length;
    } else if (length < 65536) {
        frame[head++] = 126;
        frame[head++] = (char)(length >> 8);
        frame[head++] = (char)length;
    } else {
        frame[head++] = 127;
        for (int shift = 56; shift >= 0; shift -= 8)
            frame[head++] = (char)((uint64_t)length >> shift);
    }
    memcpy(frame + head, payload, length);
    for (size_t i = 0; i < channel->count; i++)
        if (send(channel->clients[i], frame, head + length, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)(head + length))
            shutdown(channel->clients[i], SHUT_RDWR);
}

static void on_client(int fd)
{
    char request[REQUEST_BYTES];
    ssize_t n = recv(fd, request, sizeof request - 1, MSG_DONTWAIT);
    if (n <= 0 || strncmp(request, "GET /sub/", 9) != 0) /* pongs and the like need no answer */
        return;
    request[n] = '\0';
    send(fd, upgraded, sizeof upgraded - 1, MSG_NOSIGNAL);
    char *names = request + 9, *name;
    names[strcspn(names, " ")] = '\0';
    while ((name = strsep(&names, ",")) != NULL)
        subscribe(fd, name);
}

/* Reads "<sign>number\r\n" at *at; false if it is not whole yet. */
static int take_number(char **at, char *end, char sign, size_t *number)
{
    char *line_end = memmem(*at, (size_t)(end - *at), "\r\n", 2);
    if (line_end == NULL)
        return 0;
    if (**at != sign)
        errx(1, "Redis said %.40s", *at);
    *number = strtoul(*at + 1, NULL, 10);
    *at = line_end + 2;
    return 1;
}

/* Takes one push of PSUBSCRIBE off the inbox; returns where the next begins, or NULL. */
static char *take_push(char *at, char *end)
{
    size_t fields, length[4];
    char *field[4];
    if (!take_number(&at, end, '*', &fields))
        return NULL;
    for (size_t i = 0; i < fields; i++) {
        if (fields == 3 && i == 2) /* the acknowledgement ends with a count */
            return take_number(&at, end, ':', &length[i]) ? at : NULL;
        if (!take_number(&at, end, '$', &length[i]) || at + length[i] + 2 > end)
            return NULL;
        field[i] = at;
        at += length[i] + 2;
    }
    field[2][length[2]] = '\0';
    fan_out(channel_named(field[2]), field[3], length[3]);
    return at;
}

static void on_redis(int fd)
{
    static char inbox[INBOX_BYTES];
    static size_t held;
    ssize_t n = recv(fd, inbox + held, sizeof inbox - held, 0);
    if (n <= 0)
        errx(1, "Redis has gone");
    held += (size_t)n;
    char *at = inbox;
    for (char *next; (next = take_push(at, inbox + held)) != NULL;)
        at = next;
    held -= (size_t)(at - inbox);
    memmove(inbox, at, held);
}

static int connected_redis(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    static const char command[] = "PSUBSCRIBE *\r\n";
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0 || send(fd, command, sizeof command - 1, 0) < 0)
        err(1, "Redis");
    return fd;
}

static int listening(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 4096) != 0)
        err(1, "port %d", port);
    return fd;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        errx(2, "usage: raw_send REDIS_PORT PORT");
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    hcreate(MAX_CHANNELS);
    int redis = connected_redis(atoi(argv[1])), listener = listening(atoi(argv[2])), set = epoll_create1(0);
    epoll_ctl(set, EPOLL_CTL_ADD, redis, &(struct epoll_event){.events = EPOLLIN, .data.fd = redis});
    epoll_ctl(set, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN, .data.fd = listener});
    for (;;) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(set, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd, one = 1;
            if (fd == redis) {
                on_redis(fd);
            } else if (fd != listener) {
                on_client(fd);
            } else if ((fd = accept(listener, NULL, NULL)) >= 0) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                epoll_ctl(set, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN | EPOLLET, .data.fd = fd});
            }
        }
    }
}
