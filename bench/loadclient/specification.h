#ifndef SPECIFICATION_H
#define SPECIFICATION_H
#include "connection.h"
#include "publisher.h"

/* The files that the driver writes. One line each, fields divided by tabs; \\, \r and \n stand for
 * backslash, carriage return and line feed.
 *
 *   topics:       channel <TAB> stream index <TAB> message without its closing brace
 *   schedule:     nanoseconds from the start <TAB> topic index <TAB> message without its closing brace
 *   connections:  request path <TAB> topic indexes, comma separated <TAB> first text to send <TAB> ...
 */
struct publication_topic *read_topics(const char *path, uint32_t *count);
struct scheduled_publication *read_schedule(const char *path, uint64_t *count, uint32_t topic_count);
struct connection *read_connections(const char *path, uint32_t *count, uint32_t topic_count);
#endif
