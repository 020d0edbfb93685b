/* One message to many sockets, as fast as C can. Both return how many sockets took all of it. */

#include <stddef.h>
#include <sys/socket.h>
#include <unistd.h>

int send_to_all(const int *sockets, int count, const char *message, size_t length)
{
    int whole = 0;
    for (int i = 0; i < count; i++)
        whole += send(sockets[i], message, length, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)length;
    return whole;
}

int write_to_all(const int *sockets, int count, const char *message, size_t length)
{
    int whole = 0;
    for (int i = 0; i < count; i++)
        whole += write(sockets[i], message, length) == (ssize_t)length;
    return whole;
}
