/* A link of some megabytes a second: preloaded before libc, it holds back the thread that has written to a TCP socket.
 *
 * SLOW_LINK_MB_S: the rate. Short messages, which are latency, pass as they are.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { LARGE_BYTES = 16384 };

static ssize_t held_back(int socket, ssize_t sent) {
    struct sockaddr_storage peer;
    socklen_t length = sizeof peer;
    const char *rate = getenv("SLOW_LINK_MB_S");
    if (sent < LARGE_BYTES || !rate || getpeername(socket, (struct sockaddr *)&peer, &length)) return sent;
    if (peer.ss_family != AF_INET && peer.ss_family != AF_INET6) return sent;
    double seconds = sent / (atof(rate) * 1e6);
    struct timespec pause = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    nanosleep(&pause, NULL);
    return sent;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int socket, const void *bytes, size_t length) {
    return held_back(socket, NEXT(write)(socket, bytes, length));
}

ssize_t writev(int socket, const struct iovec *parts, int number) {
    return held_back(socket, NEXT(writev)(socket, parts, number));
}

ssize_t send(int socket, const void *bytes, size_t length, int flags) {
    return held_back(socket, NEXT(send)(socket, bytes, length, flags));
}

ssize_t sendmsg(int socket, const struct msghdr *message, int flags) {
    return held_back(socket, NEXT(sendmsg)(socket, message, flags));
}
