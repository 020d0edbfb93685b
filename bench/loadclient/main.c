/* A WebSocket load client: opens connections, subscribes, publishes at a given rate from a process of its
 * own, and prints what arrived, how late, and what it cost itself. One thread; bounded in time and count.
 *
 * Most connections only drain: they are read in sweeps, so that a read takes whatever frames have come
 * since the last one and the client is not what limits the server. The sweeps are as frequent as the load
 * allows, since the kernel acknowledges what is read: a server that waits for acknowledgements (Nagle)
 * would otherwise be charged for less than it does. A sample, and the slow ones, are read at once and
 * parsed in full. Prints JSON lines: events as they happen, then {"event":"result",...}. */
#define _GNU_SOURCE
#include "clock.h"
#include "connection.h"
#include "publisher.h"
#include "scan.h"
#include "specification.h"

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { EVENTS_AT_ONCE = 32, DRAIN_IDLE_NS = 500000000, CONNECT_LIMIT_SECONDS = 120 };

struct options {
    struct protocol protocol;
    struct publisher_options publish;
    const char *topics_path, *connections_path, *schedule_path, *host;
    int port;
    double connect_rate, settle_seconds, warmup_seconds, seconds, drain_seconds, slow_seconds, storm_after_seconds, sweep_ms;
    uint32_t sample, slow, storm, in_flight;
    bool tls_resumes;
};

enum phase { PHASE_CONNECT, PHASE_SETTLE, PHASE_WARM_UP, PHASE_MEASURE, PHASE_DRAIN, PHASE_DONE };

struct client {
    struct options o;
    struct connection *connections;
    uint32_t count, base_count, next, ready; /* next to open; base ones that are live or have failed */
    int fast, lazy;                          /* epoll sets: read at once, read in sweeps */
    enum phase phase;
    struct publisher publisher;
    struct totals totals;
    uint64_t started_ns, connected_ns, phase_end_ns, last_message_ns, next_sweep_ns, longest_turn_ns, storm_ready_ns;
    struct received received_at_measure, received_at_end;
    uint64_t frames_at_measure, bytes_at_measure, cpu_at_measure_ns, cpu_used_ns, measured_ns, waiting_at_measure_ns, waited_ns;
    uint64_t per_second[MAX_SECONDS];
    uint64_t storm_came; /* of the storm, when measuring ended */
    uint64_t expected; /* deliveries, once the publisher has finished */
    bool expected_known, slow_stopped;
};

static uint64_t cpu_ns(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (uint64_t)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000000u
           + (uint64_t)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1000u;
}

/* How long this process could have run and had no core. */
static uint64_t waiting_ns(void)
{
    unsigned long ran, waited = 0;
    FILE *file = fopen("/proc/self/schedstat", "r");
    if (file != NULL) {
        if (fscanf(file, "%lu %lu", &ran, &waited) != 2)
            waited = 0;
        fclose(file);
    }
    return waited;
}

static void watch(int set, int operation, struct connection *c, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(set, operation, c->fd, &event) != 0)
        err(1, "epoll_ctl");
}

/* Messages so far. */
static uint64_t received(const struct client *client)
{
    return received_between((struct received){0}, client->totals.received);
}

static uint32_t opening(const struct client *client)
{
    return client->next - (uint32_t)(client->totals.live + client->totals.ended + client->totals.failed);
}

static void open_next(struct client *client)
{
    struct connection *c = &client->connections[client->next++];
    c->base = client->phase == PHASE_CONNECT;
    if (c->kind != KIND_DRAIN) {
        c->tracks = calloc(client->o.protocol.topic_count, sizeof *c->tracks);
        c->sequences = calloc(client->o.protocol.topic_count, sizeof *c->sequences);
        if (c->tracks == NULL || c->sequences == NULL)
            err(1, "tracks");
        for (uint32_t t = 0; t < client->o.protocol.topic_count; t++)
            c->tracks[t].next = c->base ? 0 : COUNTER_UNKNOWN;
    }
    if (!connection_open(c, &client->o.protocol)) {
        warn("connect");
        client->totals.failed++;
        connection_close(c, &client->totals);
        return;
    }
    watch(client->fast, EPOLL_CTL_ADD, c, EPOLLOUT);
}

static void open_due(struct client *client, uint64_t now)
{
    uint32_t limit = client->phase == PHASE_CONNECT ? client->base_count : client->count;
    if (client->phase == PHASE_MEASURE && now < client->o.protocol.measure_start_ns + (uint64_t)(1e9 * client->o.storm_after_seconds))
        limit = client->base_count;
    if (client->phase != PHASE_CONNECT && client->phase != PHASE_MEASURE)
        return;
    if (client->o.connect_rate > 0 && client->phase == PHASE_CONNECT) {
        double due = 1 + client->o.connect_rate * (double)(now - client->started_ns) / 1e9;
        if (due < limit)
            limit = (uint32_t)due;
    }
    while (client->next < limit && opening(client) < client->o.in_flight)
        open_next(client);
}

static void handle(struct client *client, struct connection *c, uint32_t events, uint64_t now)
{
    enum connection_state before = c->state;
    if (before == STATE_ENDED)
        return;
    if (before == STATE_CONNECTING) {
        connection_writable(c, &client->o.protocol, &client->totals);
        if (c->state == STATE_HANDSHAKE || c->state == STATE_SECURING)
            watch(client->fast, EPOLL_CTL_MOD, c, EPOLLIN);
    } else if (before == STATE_SECURING) {
        connection_secure(c, &client->o.protocol, &client->totals);
    } else if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        connection_readable(c, &client->o.protocol, &client->totals, now);
    }
    if (c->state == STATE_LIVE && before != STATE_LIVE && c->kind == KIND_DRAIN) {
        watch(client->fast, EPOLL_CTL_DEL, c, 0);
        watch(client->lazy, EPOLL_CTL_ADD, c, EPOLLIN | EPOLLET);
    }
}

/* One turn over what is ready in a set; returns how many connections were. */
static int turn(struct client *client, int set, int timeout_ms)
{
    struct epoll_event events[EVENTS_AT_ONCE];
    int n = epoll_wait(set, events, EVENTS_AT_ONCE, timeout_ms);
    uint64_t begin = now_ns(), before = received(client), frames = client->totals.frames;
    for (int i = 0; i < n; i++)
        handle(client, events[i].data.ptr, events[i].events, set == client->fast ? now_ns() : begin);
    uint64_t now = now_ns(), after = received(client);
    if (client->totals.frames > frames)
        client->last_message_ns = now;
    if (client->phase == PHASE_MEASURE && now < client->phase_end_ns) {
        client->received_at_end = client->totals.received;
        /* The mean of a frame may have decreased. */
        client->per_second[(now - client->o.protocol.measure_start_ns) / 1000000000u] += after > before ? after - before : 0;
        if (now - begin > client->longest_turn_ns)
            client->longest_turn_ns = now - begin;
    }
    return n;
}

static void sweep(struct client *client)
{
    for (uint32_t seen = 0; seen < client->count;) {
        int n = turn(client, client->lazy, 0);
        if (n <= 0)
            break;
        seen += (uint32_t)n;
        turn(client, client->fast, 0); /* the sample must not wait for the rest */
    }
}

static void stop_slow(struct client *client, bool stop)
{
    client->slow_stopped = stop;
    for (uint32_t i = 0; i < client->count; i++) {
        struct connection *c = &client->connections[i];
        if (c->kind == KIND_SLOW && c->state == STATE_LIVE)
            watch(client->fast, stop ? EPOLL_CTL_DEL : EPOLL_CTL_ADD, c, EPOLLIN);
    }
}

static void say(const struct client *client, const char *event)
{
    printf("{\"event\":\"%s\",\"live\":%lu,\"failed\":%lu,\"messages\":%lu}\n", event, client->totals.live,
           client->totals.failed, received(client));
    fflush(stdout);
}

static void resume_slow(struct client *client)
{
    say(client, "resuming"); /* now the server holds the most for them */
    stop_slow(client, false);
}

static uint64_t published_of(const struct client *client, uint32_t topic)
{
    if (client->publisher.report == NULL)
        return 0;
    return client->publisher.report->per_topic[topic];
}

static uint64_t expected_messages(const struct client *client)
{
    uint64_t expected = 0;
    for (uint32_t i = 0; i < client->count; i++)
        for (uint32_t t = 0; t < client->connections[i].topic_count && client->connections[i].state == STATE_LIVE; t++)
            expected += published_of(client, client->connections[i].topics[t]);
    return expected;
}

static void begin_measuring(struct client *client, uint64_t now)
{
    client->phase = PHASE_MEASURE;
    client->o.protocol.measure_start_ns = now;
    client->phase_end_ns = client->o.protocol.measure_end_ns = now + (uint64_t)(1e9 * client->o.seconds);
    client->received_at_measure = client->received_at_end = client->totals.received;
    client->frames_at_measure = client->totals.frames;
    client->bytes_at_measure = client->totals.bytes;
    client->cpu_at_measure_ns = cpu_ns();
    client->waiting_at_measure_ns = waiting_ns();
    if (client->o.slow > 0)
        stop_slow(client, true);
    say(client, "measuring");
}

static bool publisher_finished(const struct client *client)
{
    return client->publisher.report == NULL || __atomic_load_n(&client->publisher.report->finished, __ATOMIC_ACQUIRE)
           || waitpid(client->publisher.pid, NULL, WNOHANG) != 0;
}

static void advance(struct client *client, uint64_t now)
{
    switch (client->phase) {
    case PHASE_CONNECT:
        if (client->totals.live + client->totals.ended + client->totals.failed >= client->base_count || now > client->phase_end_ns) {
            client->connected_ns = now;
            client->phase = PHASE_SETTLE;
            client->phase_end_ns = now + (uint64_t)(1e9 * client->o.settle_seconds);
            say(client, "connected");
        }
        break;
    case PHASE_SETTLE:
        if (now >= client->phase_end_ns) {
            client->phase = PHASE_WARM_UP;
            client->phase_end_ns = now + (uint64_t)(1e9 * client->o.warmup_seconds);
            if (client->publisher.report != NULL)
                publisher_start(&client->publisher);
        }
        break;
    case PHASE_WARM_UP:
        if (now >= client->phase_end_ns)
            begin_measuring(client, now);
        break;
    case PHASE_MEASURE:
        if (client->slow_stopped && now >= client->o.protocol.measure_start_ns + (uint64_t)(1e9 * client->o.slow_seconds))
            resume_slow(client);
        if (client->storm_ready_ns == 0 && client->o.storm > 0 && client->next == client->count && opening(client) == 0)
            client->storm_ready_ns = now;
        if (now >= client->phase_end_ns) {
            client->measured_ns = now - client->o.protocol.measure_start_ns;
            client->cpu_used_ns = cpu_ns() - client->cpu_at_measure_ns;
            client->waited_ns = waiting_ns() - client->waiting_at_measure_ns;
            client->phase = PHASE_DRAIN;
            client->storm_came = client->totals.live > client->base_count ? client->totals.live - client->base_count : 0;
            client->phase_end_ns = now + (uint64_t)(1e9 * client->o.drain_seconds);
            if (client->slow_stopped)
                resume_slow(client);
        }
        break;
    case PHASE_DRAIN:
        if (!client->expected_known && publisher_finished(client)) {
            client->expected = expected_messages(client);
            client->expected_known = true;
        }
        if (now >= client->phase_end_ns
            || (client->expected_known && (now > client->last_message_ns + DRAIN_IDLE_NS || received(client) >= client->expected))) {
            client->phase = PHASE_DONE;
            say(client, "drained");
        }
        break;
    case PHASE_DONE:
        break;
    }
}

static void print_latency(const char *name, const struct histogram *h)
{
    printf("\"%s\":{\"count\":%lu,\"p50\":%.4f,\"p90\":%.4f,\"p99\":%.4f,\"p99.9\":%.4f,\"max\":%.4f}", name, h->count,
           (double)histogram_percentile(h, 0.5) / 1e6, (double)histogram_percentile(h, 0.9) / 1e6,
           (double)histogram_percentile(h, 0.99) / 1e6, (double)histogram_percentile(h, 0.999) / 1e6, (double)h->max / 1e6);
}

static void print_tally(struct client *client, const char *name, enum connection_kind kind)
{
    const struct tally *t = &client->totals.tallies[kind];
    uint64_t connections = 0, undelivered = 0;
    for (uint32_t i = 0; i < client->count; i++) {
        const struct connection *c = &client->connections[i];
        if (c->kind != kind || c->tracks == NULL)
            continue;
        connections++;
        for (uint32_t k = 0; k < c->topic_count; k++) {
            uint64_t next = c->tracks[c->topics[k]].next;
            undelivered += next == COUNTER_UNKNOWN ? 0 : published_of(client, c->topics[k]) - next;
        }
    }
    printf("\"%s\":{\"connections\":%lu,\"updates\":%lu,\"lost\":%lu,\"undelivered\":%lu,\"merged\":%lu,\"duplicates\":%lu,"
           "\"out_of_order\":%lu,\"snapshots\":%lu,\"gaps\":%lu,\"errors\":%lu,\"malformed\":%lu,",
           name, connections, t->updates, t->lost, undelivered, t->merged, t->duplicates, t->out_of_order, t->snapshots,
           t->gaps, t->errors, t->malformed);
    print_latency("latency_ms", &t->latency);
    printf(",");
    print_latency("age_ms", &t->age);
    printf("},");
}

static void print_result(struct client *client)
{
    const struct totals *t = &client->totals;
    double connect_seconds = (double)(client->connected_ns - client->started_ns) / 1e9;
    printf("{\"event\":\"result\",\"connections\":%u,\"live\":%lu,\"failed\":%lu,\"ended\":%lu,\"tls_resumed\":%lu,", client->count, t->live, t->failed, t->ended, t->resumed);
    printf("\"connect_seconds\":%.4f,\"connects_per_second\":%.1f,", connect_seconds, client->base_count / connect_seconds);
    print_latency("handshake_ms", &t->handshake);
    printf(",\"seconds\":%.4f,\"delivered_per_second\":%.1f,", (double)client->measured_ns / 1e9,
           (double)received_between(client->received_at_measure, client->received_at_end) / ((double)client->measured_ns / 1e9));
    printf("\"messages\":%lu,\"expected\":%lu,\"messages_measured\":%lu,\"frames_measured\":%lu,\"bytes_measured\":%lu,\"pings\":%lu,", received(client),
           expected_messages(client), received_between(client->received_at_measure, t->received), t->frames - client->frames_at_measure,
           t->bytes - client->bytes_at_measure, t->pings);
    print_tally(client, "sample", KIND_SAMPLE);
    print_tally(client, "slow", KIND_SLOW);
    if (client->o.storm > 0) {
        uint64_t until = client->storm_ready_ns ? client->storm_ready_ns : client->o.protocol.measure_end_ns;
        double storm_seconds = (double)(until - client->o.protocol.measure_start_ns) / 1e9 - client->o.storm_after_seconds;
        uint64_t came = client->storm_ready_ns ? client->o.storm : client->storm_came;
        printf("\"storm_connects_per_second\":%.1f,\"storm_finished\":%s,", (double)came / storm_seconds,
               client->storm_ready_ns ? "true" : "false");
    }
    printf("\"per_second\":[");
    for (int i = 0; i < (int)client->o.seconds && i < MAX_SECONDS; i++)
        printf("%s%lu", i ? "," : "", client->per_second[i]);
    printf("],\"worst_ms_per_second\":[");
    for (int i = 0; i < (int)client->o.seconds && i < MAX_SECONDS; i++)
        printf("%s%.3f", i ? "," : "", (double)t->worst_ns[i] / 1e6);
    printf("],\"client_cpu_seconds\":%.4f,\"client_cpu_share\":%.4f,\"client_waiting_share\":%.4f,\"client_longest_turn_ms\":%.4f", (double)client->cpu_used_ns / 1e9,
           client->measured_ns ? (double)client->cpu_used_ns / (double)client->measured_ns : 0,
           client->measured_ns ? (double)client->waited_ns / (double)client->measured_ns : 0, (double)client->longest_turn_ns / 1e6);
    const struct publisher_report *p = client->publisher.report;
    if (p != NULL)
        printf(",\"published\":%lu,\"published_per_second\":%.1f,\"publish_errors\":%lu,\"publisher_late_ms\":%.4f,\"publisher_cpu_seconds\":%.4f",
               p->published, p->elapsed_ns ? 1e9 * (double)p->published / (double)p->elapsed_ns : 0, p->errors, (double)p->max_late_ns / 1e6,
               (double)p->cpu_ns / 1e9);
    printf("}\n");
    fflush(stdout);
}

static void run(struct client *client)
{
    client->started_ns = now_ns();
    client->phase_end_ns = client->started_ns + CONNECT_LIMIT_SECONDS * UINT64_C(1000000000);
    while (client->phase != PHASE_DONE) {
        uint64_t now = now_ns();
        advance(client, now);
        open_due(client, now);
        if (now >= client->next_sweep_ns) {
            sweep(client);
            /* At most half the time: the busier it is, the more frames each read takes. */
            uint64_t end = now_ns(), pause = (uint64_t)(1e6 * client->o.sweep_ms);
            client->next_sweep_ns = end + (end - now > pause ? end - now : pause);
        }
        now = now_ns();
        bool due = now >= client->next_sweep_ns;
        int wait_ms = due ? 0 : (int)((client->next_sweep_ns - now) / 1000000u) + 1;
        turn(client, client->fast, client->phase == PHASE_CONNECT && wait_ms > 1 ? 1 : wait_ms);
    }
}

/* Spread evenly, so that the sample stands for early and late places in the server's order. */
static void assign_kind(struct client *client, uint32_t wanted, enum connection_kind kind)
{
    for (uint32_t i = 0; i < wanted && client->base_count > 0; i++) {
        uint32_t at = (uint32_t)((uint64_t)i * client->base_count / wanted);
        while (client->connections[at % client->base_count].kind != KIND_DRAIN)
            at++;
        client->connections[at % client->base_count].kind = (uint8_t)kind;
    }
}

static void prepare(struct client *client)
{
    struct options *o = &client->o;
    o->publish.topics = read_topics(o->topics_path, &o->publish.topic_count);
    o->protocol.topics = o->publish.topics;
    o->protocol.topic_count = o->publish.topic_count;
    if (o->schedule_path != NULL)
        o->publish.schedule = read_schedule(o->schedule_path, &o->publish.schedule_count, o->publish.topic_count);
    else if (o->publish.rate_per_second > 0)
        o->protocol.topic_period_ns = (uint64_t)(1e9 * o->publish.topic_count / o->publish.rate_per_second);
    client->connections = read_connections(o->connections_path, &client->count, o->publish.topic_count);
    if (o->storm > client->count || o->sample + o->slow > client->count - o->storm)
        errx(2, "more storm, sample and slow connections than connections");
    client->base_count = client->count - o->storm;
    assign_kind(client, o->slow, KIND_SLOW);
    assign_kind(client, o->sample, KIND_SAMPLE);
    o->protocol.host = o->host;
    if (o->protocol.tls)
        transport_prepare_tls(o->tls_resumes);
    o->protocol.address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)o->port)};
    if (inet_pton(AF_INET, o->host, &o->protocol.address.sin_addr) != 1)
        errx(2, "%s is not an IPv4 address", o->host);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (client->count + 32 > files.rlim_cur)
        errx(2, "%u connections need a higher limit of open files than %lu", client->count, (unsigned long)files.rlim_cur);
    o->publish.seconds = o->warmup_seconds + o->seconds;
    if (publisher_total(&o->publish) > 0)
        client->publisher = publisher_fork(&o->publish);
    client->fast = epoll_create1(0);
    client->lazy = epoll_create1(0);
}

static enum publish_protocol publish_protocol_of(const char *name)
{
    if (strcmp(name, "redis") == 0)
        return PUBLISH_REDIS;
    if (strcmp(name, "nats") == 0)
        return PUBLISH_NATS;
    if (strcmp(name, "http") == 0)
        return PUBLISH_HTTP;
    errx(2, "--publish-protocol is redis, nats or http");
}

static void parse(struct options *o, int argc, char **argv)
{
    static const struct option names[] = {
        {"host", 1, NULL, 'h'}, {"port", 1, NULL, 'p'}, {"topics", 1, NULL, 't'}, {"connections", 1, NULL, 'c'},
        {"schedule", 1, NULL, 'T'},
        {"ack", 1, NULL, 'a'}, {"acks", 1, NULL, 'A'}, {"nats", 0, NULL, 'n'}, {"deflate", 0, NULL, 'z'}, {"tls", 0, NULL, 'L'}, {"tls-resume", 0, NULL, 'R'}, {"sse", 0, NULL, 'E'}, {"sample", 1, NULL, 's'},
        {"slow", 1, NULL, 'w'}, {"slow-seconds", 1, NULL, 'W'}, {"slow-receive-buffer-bytes", 1, NULL, 'B'},
        {"storm", 1, NULL, 'x'}, {"storm-after-seconds", 1, NULL, 'X'}, {"in-flight", 1, NULL, 'f'},
        {"connect-rate", 1, NULL, 'C'}, {"settle-seconds", 1, NULL, 'e'}, {"warmup-seconds", 1, NULL, 'u'},
        {"seconds", 1, NULL, 'd'}, {"drain-seconds", 1, NULL, 'D'}, {"sweep-ms", 1, NULL, 'S'}, {"rate", 1, NULL, 'r'},
        {"payload-bytes", 1, NULL, 'b'}, {"publish-host", 1, NULL, 'H'}, {"publish-port", 1, NULL, 'P'},
        {"publish-protocol", 1, NULL, 'o'}, {"publish-path", 1, NULL, 'O'}, {NULL, 0, NULL, 0}};
    for (int option; (option = getopt_long_only(argc, argv, "", names, NULL)) != -1;) {
        switch (option) {
        case 'h': o->host = optarg; break;
        case 'p': o->port = atoi(optarg); break;
        case 't': o->topics_path = optarg; break;
        case 'T': o->schedule_path = optarg; break;
        case 'c': o->connections_path = optarg; break;
        case 'a': o->protocol.ack = optarg; break;
        case 'A': o->protocol.acks = (uint32_t)atoi(optarg); break;
        case 'n': o->protocol.nats = true; break;
        case 'z': o->protocol.deflate = true; break;
        case 'L': o->protocol.tls = true; break;
        case 'R': o->tls_resumes = true; break;
        case 'E': o->protocol.sse = true; break;
        case 's': o->sample = (uint32_t)atoi(optarg); break;
        case 'w': o->slow = (uint32_t)atoi(optarg); break;
        case 'W': o->slow_seconds = atof(optarg); break;
        case 'B': o->protocol.slow_receive_buffer_bytes = atoi(optarg); break;
        case 'x': o->storm = (uint32_t)atoi(optarg); break;
        case 'X': o->storm_after_seconds = atof(optarg); break;
        case 'f': o->in_flight = (uint32_t)atoi(optarg); break;
        case 'C': o->connect_rate = atof(optarg); break;
        case 'e': o->settle_seconds = atof(optarg); break;
        case 'u': o->warmup_seconds = atof(optarg); break;
        case 'd': o->seconds = atof(optarg); break;
        case 'D': o->drain_seconds = atof(optarg); break;
        case 'S': o->sweep_ms = atof(optarg); break;
        case 'r': o->publish.rate_per_second = atof(optarg); break;
        case 'b': o->publish.payload_bytes = (size_t)atol(optarg); break;
        case 'H': o->publish.host = optarg; break;
        case 'P': o->publish.port = atoi(optarg); break;
        case 'o': o->publish.protocol = publish_protocol_of(optarg); break;
        case 'O': o->publish.http_path = optarg; break;
        default: exit(2);
        }
    }
    if (o->topics_path == NULL || o->connections_path == NULL || o->port == 0)
        errx(2, "--topics, --connections and --port are needed");
    if (o->seconds > MAX_SECONDS || o->seconds <= 0)
        errx(2, "--seconds is more than 0 and at most %d", MAX_SECONDS);
}

int main(int argc, char **argv)
{
    static struct client client = {
        .o = {.host = "127.0.0.1", .in_flight = 100, .settle_seconds = 0.5, .warmup_seconds = 0.5, .seconds = 5,
              .drain_seconds = 5, .slow_seconds = 3, .sweep_ms = 2,
              .protocol = {.ack = "", .slow_receive_buffer_bytes = 16384},
              .publish = {.host = "127.0.0.1", .port = 6379, .http_path = "/", .payload_bytes = 165}}};
    signal(SIGPIPE, SIG_IGN);
    parse(&client.o, argc, argv);
    prepare(&client);
    run(&client);
    print_result(&client);
    if (client.publisher.report != NULL)
        kill(client.publisher.pid, SIGTERM);
    return 0;
}
