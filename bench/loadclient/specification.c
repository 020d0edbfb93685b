#define _GNU_SOURCE
#include "specification.h"

#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *grown(void *array, uint64_t count, size_t item)
{
    /* Doubles whenever count reaches a power of two. */
    if (count != 0 && (count & (count - 1)) != 0)
        return array;
    array = realloc(array, (count ? 2 * count : 1) * item);
    if (array == NULL)
        err(1, "specification");
    return array;
}

static char *unescaped(const char *field)
{
    char *text = strdup(field), *to = text;
    if (text == NULL)
        err(1, "specification");
    for (const char *from = field; *from; from++) {
        if (*from == '\\' && from[1] != '\0') {
            from++;
            *to++ = *from == 'r' ? '\r' : *from == 'n' ? '\n' : *from;
        } else {
            *to++ = *from;
        }
    }
    *to = '\0';
    return text;
}

static FILE *open_for_reading(const char *path)
{
    FILE *file = fopen(path, "r");
    if (file == NULL)
        err(1, "%s", path);
    return file;
}

struct publication_topic *read_topics(const char *path, uint32_t *count)
{
    FILE *file = open_for_reading(path);
    struct publication_topic *topics = NULL;
    char *line = NULL;
    size_t capacity = 0;
    *count = 0;
    while (getline(&line, &capacity, file) > 0) {
        char *rest = line, *channel, *stream;
        line[strcspn(line, "\n")] = '\0';
        channel = strsep(&rest, "\t");
        stream = strsep(&rest, "\t");
        if (rest == NULL || strtoul(stream, NULL, 10) > *count)
            errx(1, "%s: line %u is not a channel, a stream and a message", path, *count + 1);
        topics = grown(topics, *count, sizeof *topics);
        topics[(*count)++] = (struct publication_topic){
            .channel = unescaped(channel), .stream = (uint32_t)strtoul(stream, NULL, 10), .head = unescaped(rest)};
    }
    free(line);
    fclose(file);
    return topics;
}

struct scheduled_publication *read_schedule(const char *path, uint64_t *count, uint32_t topic_count)
{
    FILE *file = open_for_reading(path);
    struct scheduled_publication *schedule = NULL;
    char *line = NULL;
    size_t capacity = 0;
    *count = 0;
    while (getline(&line, &capacity, file) > 0) {
        char *rest = line, *at_ns, *topic;
        line[strcspn(line, "\n")] = '\0';
        at_ns = strsep(&rest, "\t");
        topic = strsep(&rest, "\t");
        if (rest == NULL || strtoul(topic, NULL, 10) >= topic_count)
            errx(1, "%s: line %lu is not a time, a topic and a message", path, *count + 1);
        schedule = grown(schedule, *count, sizeof *schedule);
        schedule[(*count)++] = (struct scheduled_publication){
            .at_ns = strtoull(at_ns, NULL, 10), .topic = (uint32_t)strtoul(topic, NULL, 10), .head = unescaped(rest)};
    }
    free(line);
    fclose(file);
    return schedule;
}

struct connection *read_connections(const char *path, uint32_t *count, uint32_t topic_count)
{
    FILE *file = open_for_reading(path);
    struct connection *connections = NULL;
    char *line = NULL;
    size_t capacity = 0;
    *count = 0;
    while (getline(&line, &capacity, file) > 0) {
        char *rest = line, *field;
        struct connection c = {.fd = -1};
        line[strcspn(line, "\n")] = '\0';
        c.path = unescaped(strsep(&rest, "\t"));
        if ((field = strsep(&rest, "\t")) != NULL) {
            for (char *number; (number = strsep(&field, ",")) != NULL;) {
                if (*number == '\0')
                    continue;
                c.topics = grown(c.topics, c.topic_count, sizeof *c.topics);
                c.topics[c.topic_count] = (uint32_t)strtoul(number, NULL, 10);
                if (c.topics[c.topic_count++] >= topic_count)
                    errx(1, "%s: line %u names topic %s of %u", path, *count + 1, number, topic_count);
            }
        }
        while ((field = strsep(&rest, "\t")) != NULL) {
            c.sends = grown(c.sends, c.send_count, sizeof *c.sends);
            c.sends[c.send_count++] = unescaped(field);
        }
        connections = grown(connections, *count, sizeof *connections);
        connections[(*count)++] = c;
    }
    free(line);
    fclose(file);
    return connections;
}
