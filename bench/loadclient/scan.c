#include "scan.h"

#include <stddef.h>
#include <string.h>

enum { MAX_DEPTH = 32 };

struct text {
    const char *at;
    size_t length;
};

static bool text_is(struct text text, const char *word)
{
    return text.length == strlen(word) && memcmp(text.at, word, text.length) == 0;
}

static const char *skip_space(const char *at, const char *end)
{
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t'))
        at++;
    return at;
}

static const char *scan_string(const char *at, const char *end, struct text *text)
{
    if (at >= end || *at != '"')
        return NULL;
    text->at = ++at;
    for (; at < end && *at != '"'; at++)
        if (*at == '\\')
            at++;
    if (at >= end)
        return NULL;
    text->length = (size_t)(at - text->at);
    return at + 1;
}

/* Numbers, true, false and null: whatever ends at the next delimiter. */
static const char *scan_scalar(const char *at, const char *end)
{
    const char *start = at;
    while (at < end && strchr(",]} \n\r\t", *at) == NULL)
        at++;
    return at == start ? NULL : at;
}

static const char *scan_number(const char *at, const char *end, uint64_t *number)
{
    if (at >= end || *at < '0' || *at > '9')
        return NULL;
    for (*number = 0; at < end && *at >= '0' && *at <= '9'; at++)
        *number = *number * 10 + (uint64_t)(*at - '0');
    return at;
}

static const char *scan_marker(const char *at, const char *end, struct update *update)
{
    uint64_t numbers[3] = {0};
    for (int i = 0; i < 3; i++) {
        at = skip_space(at, end);
        if (at >= end || *at++ != (i ? ',' : '['))
            return NULL;
        at = scan_number(skip_space(at, end), end, &numbers[i]);
        if (at == NULL)
            return NULL;
    }
    update->topic = (uint32_t)numbers[0];
    update->counter = numbers[1];
    update->t_ns = numbers[2];
    at = skip_space(at, end);
    return at < end && *at == ']' ? at + 1 : NULL;
}

static const char *scan_value(const char *at, const char *end, const struct scan_visitor *visitor, int depth);

static const char *scan_object(const char *at, const char *end, const struct scan_visitor *visitor, int depth)
{
    struct update update = {0};
    bool marked = false, merged = false;
    struct text type = {0};
    at = skip_space(at + 1, end);
    if (at < end && *at == '}')
        return at + 1;
    for (;;) {
        struct text key;
        at = scan_string(skip_space(at, end), end, &key);
        if (at == NULL)
            return NULL;
        at = skip_space(at, end);
        if (at >= end || *at++ != ':')
            return NULL;
        at = skip_space(at, end);
        if (key.length == 1 && *key.at == MARKER) {
            at = scan_marker(at, end, &update);
            marked = true;
        } else if (text_is(key, "type")) {
            at = scan_string(at, end, &type);
        } else if (text_is(key, "previous")) {
            at = scan_number(at, end, &update.previous);
            merged = true;
        } else if (text_is(key, "sequence")) {
            at = scan_number(at, end, &update.sequence);
            update.numbered = true;
        } else {
            if (text_is(key, "snapshot") && at < end && *at == 't')
                update.snapshot = true;
            at = scan_value(at, end, visitor, depth);
        }
        if (at == NULL)
            return NULL;
        at = skip_space(at, end);
        if (at >= end)
            return NULL;
        if (*at == '}')
            break;
        if (*at++ != ',')
            return NULL;
    }
    if (!merged)
        update.previous = update.sequence - 1;
    if (marked)
        visitor->on_update(visitor->context, &update);
    else if (type.at != NULL && text_is(type, "gap"))
        visitor->on_gap(visitor->context);
    else if (type.at != NULL && text_is(type, "error"))
        visitor->on_error(visitor->context);
    return at + 1;
}

static const char *scan_array(const char *at, const char *end, const struct scan_visitor *visitor, int depth)
{
    at = skip_space(at + 1, end);
    if (at < end && *at == ']')
        return at + 1;
    for (;;) {
        at = scan_value(skip_space(at, end), end, visitor, depth);
        if (at == NULL)
            return NULL;
        at = skip_space(at, end);
        if (at >= end)
            return NULL;
        if (*at == ']')
            return at + 1;
        if (*at++ != ',')
            return NULL;
    }
}

static const char *scan_value(const char *at, const char *end, const struct scan_visitor *visitor, int depth)
{
    struct text ignored;
    if (at >= end || depth == MAX_DEPTH)
        return NULL;
    switch (*at) {
    case '{':
        return scan_object(at, end, visitor, depth + 1);
    case '[':
        return scan_array(at, end, visitor, depth + 1);
    case '"':
        return scan_string(at, end, &ignored);
    default:
        return scan_scalar(at, end);
    }
}

const char *scan_json(const char *at, const char *end, const struct scan_visitor *visitor)
{
    return scan_value(skip_space(at, end), end, visitor, 0);
}
