#include "transport.h"

#include <err.h>
#include <errno.h>
#include <sys/socket.h>

#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>

/* SSL * under another name, so that the header needs no OpenSSL. */
static SSL *of(const struct tls *tls)
{
    return (SSL *)(void *)tls;
}

static SSL_CTX *context;
static SSL_SESSION *newest;

static int on_session(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    SSL_SESSION_free(newest);
    newest = session;
    return 1; /* the reference is ours */
}

void transport_prepare_tls(bool resumes)
{
    context = SSL_CTX_new(TLS_client_method());
    if (context == NULL)
        errx(1, "no TLS context");
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_read_ahead(context, 1); /* one read for the records that have come, not two for each */
    if (resumes) {
        SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(context, on_session);
    }
}

struct tls *transport_begin_tls(int fd)
{
    SSL *ssl = SSL_new(context);
    if (ssl == NULL || SSL_set_fd(ssl, fd) != 1)
        errx(1, "no TLS connection");
    if (newest != NULL)
        SSL_set_session(ssl, newest);
    SSL_set_connect_state(ssl);
    return (struct tls *)(void *)ssl;
}

enum tls_progress transport_handshake(struct tls *tls)
{
    ERR_clear_error();
    int done = SSL_do_handshake(of(tls));
    if (done == 1)
        return TLS_DONE;
    switch (SSL_get_error(of(tls), done)) {
    case SSL_ERROR_WANT_READ: return TLS_WANTS_READ;
    case SSL_ERROR_WANT_WRITE: return TLS_WANTS_WRITE;
    default: return TLS_FAILED;
    }
}

bool transport_resumed(const struct tls *tls)
{
    return SSL_session_reused(of(tls)) == 1;
}

void transport_free_tls(struct tls *tls)
{
    SSL_free(of(tls));
}

static ssize_t result(struct tls *tls, int done)
{
    if (done > 0)
        return done;
    int saved = errno;
    switch (SSL_get_error(of(tls), done)) {
    case SSL_ERROR_ZERO_RETURN: return 0;
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE: errno = EAGAIN; return -1;
    case SSL_ERROR_SYSCALL:
        if (saved == 0)
            return 0;
        errno = saved;
        return -1;
    default: errno = EPROTO; return -1;
    }
}

static ssize_t tls_read(struct tls *tls, void *at, size_t length)
{
    ERR_clear_error();
    errno = 0;
    return result(tls, SSL_read(of(tls), at, (int)length));
}

static ssize_t tls_write(struct tls *tls, const void *at, size_t length)
{
    ERR_clear_error();
    errno = 0;
    return result(tls, SSL_write(of(tls), at, (int)length));
}
#else
static _Noreturn void absent(void)
{
    errx(2, "this load client was built without TLS");
}

void transport_prepare_tls(bool resumes)
{
    (void)resumes;
    absent();
}

struct tls *transport_begin_tls(int fd)
{
    (void)fd;
    absent();
}

enum tls_progress transport_handshake(struct tls *tls)
{
    (void)tls;
    absent();
}

bool transport_resumed(const struct tls *tls)
{
    (void)tls;
    absent();
}

void transport_free_tls(struct tls *tls)
{
    (void)tls;
    absent();
}

static ssize_t tls_read(struct tls *tls, void *at, size_t length)
{
    (void)tls, (void)at, (void)length;
    absent();
}

static ssize_t tls_write(struct tls *tls, const void *at, size_t length)
{
    (void)tls, (void)at, (void)length;
    absent();
}
#endif

ssize_t transport_read(int fd, struct tls *tls, void *at, size_t length)
{
    return tls == NULL ? recv(fd, at, length, 0) : tls_read(tls, at, length);
}

ssize_t transport_write(int fd, struct tls *tls, const void *at, size_t length)
{
    return tls == NULL ? send(fd, at, length, MSG_NOSIGNAL) : tls_write(tls, at, length);
}
