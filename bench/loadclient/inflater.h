#ifndef INFLATER_H
#define INFLATER_H
#include <stddef.h>

/* The receiver's side of permessage-deflate for one connection: it keeps the window from message to
 * message, so it can read senders with context takeover and without. */
struct inflater;

/* Returns the text of a compressed message, valid until the next call, or NULL if it is corrupt.
 * Makes the inflater if there is none yet. */
const char *inflater_text(struct inflater **inflater, const char *payload, size_t length, size_t *text_length);
void inflater_free(struct inflater **inflater);
#endif
