/* Many WebSocket clients of streamer that come back when they are dismissed, and check every message.
 *
 * Each of them keeps the sequence of every topic that it holds: a message must follow it, also across a
 * reconnect, which names the session and these positions. It is told on stdin what to do, a line each, and
 * answers with a line of JSON:
 *
 *   window            latencies are measured from now on
 *   status            all counts
 *   check PUBLISHED   how far the clients are behind so many publications, over all topics, which take turns
 *
 * The end of stdin ends it. */
#define _GNU_SOURCE
#include "client.h"

#include "../loadclient/clock.h"

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

enum { EVENTS_AT_ONCE = 64, TICK_MS = 10 };

struct options {
    const char *clients_path, *host, *source;
    int port;
    uint32_t in_flight, topics, sources;
};

static void fail_to_read(const char *path, uint32_t line)
{
    errx(2, "%s: line %u is not a list of topics", path, line);
}

/* One line for each client: its topics, comma separated. */
static void read_clients(struct world *world, const char *path)
{
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t size = 0, capacity = 0;
    if (file == NULL)
        err(1, "%s", path);
    while (getline(&line, &size, file) > 0) {
        if (world->client_count == capacity) {
            capacity = capacity ? 2 * capacity : 1024;
            world->clients = realloc(world->clients, capacity * sizeof *world->clients);
            if (world->clients == NULL)
                err(1, "clients");
        }
        struct client c = {.fd = -1, .state = STATE_WAITING, .number = world->client_count};
        uint32_t count = 1;
        for (const char *p = line; *p; p++)
            count += *p == ',';
        c.holdings = calloc(count, sizeof *c.holdings);
        if (c.holdings == NULL)
            err(1, "topics");
        for (char *rest = line, *number; (number = strsep(&rest, ",\n")) != NULL && *number;) {
            c.holdings[c.holding_count].topic = (uint32_t)strtoul(number, NULL, 10);
            if (c.holdings[c.holding_count++].topic >= world->topic_count)
                fail_to_read(path, world->client_count + 1);
        }
        if (c.holding_count == 0)
            fail_to_read(path, world->client_count + 1);
        world->clients[world->client_count++] = c;
    }
    free(line);
    fclose(file);
    world->due_ns = calloc(world->client_count, sizeof *world->due_ns);
    world->epochs = calloc(world->topic_count, sizeof *world->epochs);
    if (world->due_ns == NULL || world->epochs == NULL)
        err(1, "clients");
    world->counts.waiting = world->client_count;
}

static void open_due(struct world *world, uint32_t in_flight)
{
    static uint32_t next; /* goes round, so that none has to wait for the first ones again and again */
    uint64_t now = now_ns();
    for (uint32_t seen = 0; seen < world->client_count && world->counts.waiting > 0 && world->counts.opening < in_flight; seen++) {
        if (next >= world->client_count)
            next = 0;
        struct client *c = &world->clients[next++];
        if (c->state == STATE_WAITING && world->due_ns[c->number] <= now)
            client_open(world, c);
    }
}

static void print_histogram(const char *name, const struct histogram *h)
{
    printf(",\"%s\":{\"count\":%lu,\"p50\":%.3f,\"p99\":%.3f,\"p99.9\":%.3f,\"max\":%.3f,\"buckets\":[", name, h->count,
           (double)histogram_percentile(h, 0.5) / 1e6, (double)histogram_percentile(h, 0.99) / 1e6,
           (double)histogram_percentile(h, 0.999) / 1e6, (double)h->max / 1e6);
    const char *comma = "";
    for (int i = 0; i < HISTOGRAM_BUCKETS; i++) {
        if (h->buckets[i] == 0)
            continue;
        printf("%s[%d,%lu]", comma, i, h->buckets[i]);
        comma = ",";
    }
    printf("]}");
}

static void print_status(const struct world *world)
{
    const struct counts *n = &world->counts;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    printf("{\"live\":%lu,\"opening\":%lu,\"waiting\":%lu,\"updates\":%lu,\"frames\":%lu,\"bytes\":%lu,\"merged\":%lu,"
           "\"snapshots\":%lu,\"replayed\":%lu,\"lost\":%lu,\"repeated\":%lu,\"gaps\":%lu,\"errors\":%lu,\"malformed\":%lu,"
           "\"unrestored\":%lu,\"incomplete\":%lu,\"refused\":%lu,\"cut\":%lu,\"dismissed\":%lu,\"returned\":%lu,\"cpu_seconds\":%.3f",
           n->live, n->opening, n->waiting, n->updates, n->frames, n->bytes, n->merged, n->snapshots, n->replayed, n->lost,
           n->repeated, n->gaps, n->errors, n->malformed, n->unrestored, n->incomplete, n->refused, n->cut, n->dismissed,
           n->returned,
           (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
    print_histogram("latency_ms", &n->latency);
    print_histogram("handshake_ms", &n->handshake);
    print_histogram("away_ms", &n->away);
    printf("}\n");
}

static void print_check(const struct world *world, uint64_t published)
{
    uint64_t behind = 0, ahead = 0, clients_behind = 0;
    for (uint32_t i = 0; i < world->client_count; i++) {
        const struct client *c = &world->clients[i];
        uint64_t before = behind;
        for (uint32_t k = 0; k < c->holding_count; k++) {
            uint32_t topic = c->holdings[k].topic;
            uint64_t of_topic = published / world->topic_count + (topic < published % world->topic_count);
            if (c->holdings[k].sequence < of_topic)
                behind += of_topic - c->holdings[k].sequence;
            else
                ahead += c->holdings[k].sequence - of_topic;
        }
        clients_behind += behind > before;
    }
    printf("{\"behind\":%lu,\"ahead\":%lu,\"clients_behind\":%lu}\n", behind, ahead, clients_behind);
}

static void obey(struct world *world, const char *command)
{
    if (strcmp(command, "window") == 0) {
        world->window_ns = now_ns();
        memset(&world->counts.latency, 0, sizeof world->counts.latency);
        memset(&world->counts.handshake, 0, sizeof world->counts.handshake);
        memset(&world->counts.away, 0, sizeof world->counts.away);
        printf("{}\n");
    } else if (strcmp(command, "status") == 0) {
        print_status(world);
    } else if (strncmp(command, "check ", 6) == 0) {
        print_check(world, strtoul(command + 6, NULL, 10));
    } else {
        errx(2, "unknown command %s", command);
    }
    fflush(stdout);
}

/* Returns false at the end of stdin. */
static bool read_commands(struct world *world)
{
    static char held[4096];
    static size_t length;
    ssize_t n = read(STDIN_FILENO, held + length, sizeof held - 1 - length);
    if (n <= 0)
        return n < 0 && errno == EAGAIN;
    length += (size_t)n;
    char *end;
    while ((end = memchr(held, '\n', length)) != NULL) {
        *end = '\0';
        obey(world, held);
        length -= (size_t)(end + 1 - held);
        memmove(held, end + 1, length);
    }
    return true;
}

static void run(struct world *world, const struct options *o)
{
    struct epoll_event events[EVENTS_AT_ONCE], input = {.events = EPOLLIN};
    if (epoll_ctl(world->poll, EPOLL_CTL_ADD, STDIN_FILENO, &input) != 0)
        err(1, "stdin");
    uint64_t next_tick = 0;
    for (;;) {
        if (world->counts.waiting > 0 && now_ns() >= next_tick) {
            open_due(world, o->in_flight);
            next_tick = now_ns() + TICK_MS * UINT64_C(1000000);
        }
        int n = epoll_wait(world->poll, events, EVENTS_AT_ONCE, TICK_MS);
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            if (c == NULL) {
                if (!read_commands(world))
                    return;
            } else if (c->state == STATE_CONNECTING) {
                client_writable(world, c);
            } else if (c->fd >= 0) {
                client_readable(world, c);
            }
        }
    }
}

static struct options parse(int argc, char **argv)
{
    static const struct option names[] = {{"clients", 1, NULL, 'c'}, {"topics", 1, NULL, 't'}, {"host", 1, NULL, 'h'},
                                          {"port", 1, NULL, 'p'},    {"source", 1, NULL, 's'}, {"sources", 1, NULL, 'S'},
                                          {"in-flight", 1, NULL, 'f'}, {NULL, 0, NULL, 0}};
    struct options o = {.host = "127.0.0.1", .source = "127.0.0.1", .sources = 1, .in_flight = 100};
    for (int option; (option = getopt_long_only(argc, argv, "", names, NULL)) != -1;) {
        switch (option) {
        case 'c': o.clients_path = optarg; break;
        case 't': o.topics = (uint32_t)atoi(optarg); break;
        case 'h': o.host = optarg; break;
        case 'p': o.port = atoi(optarg); break;
        case 's': o.source = optarg; break;
        case 'S': o.sources = (uint32_t)atoi(optarg); break;
        case 'f': o.in_flight = (uint32_t)atoi(optarg); break;
        default: exit(2);
        }
    }
    if (o.clients_path == NULL || o.port == 0 || o.topics == 0 || o.sources == 0)
        errx(2, "--clients, --port, --topics and --sources are needed");
    return o;
}

int main(int argc, char **argv)
{
    static struct world world;
    struct options o = parse(argc, argv);
    struct in_addr source;
    struct rlimit files;
    signal(SIGPIPE, SIG_IGN);
    srandom((unsigned)getpid());
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    world.topic_count = o.topics;
    world.sources = o.sources;
    world.server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)o.port)};
    if (inet_pton(AF_INET, o.host, &world.server.sin_addr) != 1 || inet_pton(AF_INET, o.source, &source) != 1)
        errx(2, "--host and --source are IPv4 addresses");
    world.first_source = ntohl(source.s_addr);
    read_clients(&world, o.clients_path);
    if (world.client_count + 32 > files.rlim_cur)
        errx(2, "%u clients need a higher limit of open files than %lu", world.client_count, (unsigned long)files.rlim_cur);
    world.poll = epoll_create1(0);
    run(&world, &o);
    return 0;
}
