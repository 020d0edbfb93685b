#include "inflater.h"

#include <err.h>
#include <stdlib.h>
#include <zlib.h>

enum { FIRST_TEXT_BYTES = 4096 };

struct inflater {
    z_stream stream;
    char *text;
    size_t capacity;
};

static struct inflater *made(void)
{
    struct inflater *inflater = calloc(1, sizeof *inflater);
    if (inflater == NULL || inflateInit2(&inflater->stream, -MAX_WBITS) != Z_OK)
        err(1, "inflater");
    return inflater;
}

/* Appends to the text from `from` on; returns its new length, or 0 if the input is corrupt. */
static size_t append(struct inflater *inflater, size_t from, const char *at, size_t length)
{
    z_stream *stream = &inflater->stream;
    stream->next_in = (unsigned char *)at;
    stream->avail_in = (unsigned)length;
    for (;;) {
        if (from == inflater->capacity) {
            inflater->capacity = inflater->capacity ? 2 * inflater->capacity : FIRST_TEXT_BYTES;
            inflater->text = realloc(inflater->text, inflater->capacity);
            if (inflater->text == NULL)
                err(1, "inflater");
        }
        stream->next_out = (unsigned char *)inflater->text + from;
        stream->avail_out = (unsigned)(inflater->capacity - from);
        int outcome = inflate(stream, Z_SYNC_FLUSH);
        from = (size_t)((char *)stream->next_out - inflater->text);
        if (outcome == Z_STREAM_END) /* a sender may end its stream with each message (BFINAL) */
            outcome = inflateReset(stream);
        if (outcome != Z_OK && outcome != Z_BUF_ERROR)
            return 0;
        if (stream->avail_out > 0 && stream->avail_in == 0)
            return from;
        if (outcome == Z_BUF_ERROR && stream->avail_out > 0)
            return 0;
    }
}

const char *inflater_text(struct inflater **inflater, const char *payload, size_t length, size_t *text_length)
{
    static const char flush_end[] = {0, 0, (char)0xff, (char)0xff}; /* not sent: RFC 7692, 7.2.1 */
    if (*inflater == NULL)
        *inflater = made();
    size_t payload_text = append(*inflater, 0, payload, length);
    *text_length = payload_text == 0 ? 0 : append(*inflater, payload_text, flush_end, sizeof flush_end);
    return *text_length == 0 ? NULL : (*inflater)->text;
}

void inflater_free(struct inflater **inflater)
{
    if (*inflater == NULL)
        return;
    inflateEnd(&(*inflater)->stream);
    free((*inflater)->text);
    free(*inflater);
    *inflater = NULL;
}
