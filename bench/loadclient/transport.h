#ifndef TRANSPORT_H
#define TRANSPORT_H
/* The bytes of a connection, plain or under TLS. TLS needs a build with -DWITH_TLS, and OpenSSL. */
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct tls; /* of one connection */

enum tls_progress { TLS_DONE, TLS_WANTS_READ, TLS_WANTS_WRITE, TLS_FAILED };

/* Prepares TLS for all connections; the server's certificate is not verified. With `resumes`, a
 * connection resumes the newest session that any has been given a ticket of. */
void transport_prepare_tls(bool resumes);
struct tls *transport_begin_tls(int fd);
enum tls_progress transport_handshake(struct tls *tls);
/* Whether the handshake resumed an earlier session. */
bool transport_resumed(const struct tls *tls);
void transport_free_tls(struct tls *tls);

/* As recv and send, without flags; `tls` is NULL for a plain connection. Not having read everything
 * that TLS holds decrypted is no reason for epoll to report the socket: read until EAGAIN. */
ssize_t transport_read(int fd, struct tls *tls, void *at, size_t length);
ssize_t transport_write(int fd, struct tls *tls, const void *at, size_t length);
#endif
