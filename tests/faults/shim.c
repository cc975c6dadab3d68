/* Preloaded into a process: calls under a folder fail as those of a bad disk do, and the clock of the day jumps.

   FAULT_PATH   files whose absolute path begins so
   FAULT_CALL   which call fails: open, read, write, fsync or rename; all are counted where it is not set
   FAULT_ERRNO  with this error
   FAULT_FROM   from this call of a process on, counted from 1
   FAULT_TIMES  so many calls fail, and then all is well again
   FAULT_LOG    a file that gets a line for each of these calls, failed or not
   CLOCK_AT     when CLOCK_MONOTONIC shows so many seconds,
   CLOCK_BY     the time of day jumps by so many */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static atomic_long count;

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

/* Whether this call on an absolute path is to fail; errno is set then. */
static int path_fails(const char *call, const char *path) {
    const char *folder = getenv("FAULT_PATH"), *which = getenv("FAULT_CALL"), *log = getenv("FAULT_LOG");
    if (!folder || !path || strncmp(path, folder, strlen(folder)) || (which && strcmp(which, call))) return 0;
    long now = ++count, from = number("FAULT_FROM", 0);
    if (log) {
        int file = NEXT(open)(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (file >= 0) {
            dprintf(file, "%ld %s %s\n", now, call, path);
            close(file);
        }
    }
    if (!from || now < from || now >= from + number("FAULT_TIMES", 1)) return 0;
    errno = (int)number("FAULT_ERRNO", EIO);
    return 1;
}

static int file_fails(const char *call, int file) {
    char link[64], path[4096];
    if (!getenv("FAULT_PATH")) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return path_fails(call, path);
}

static int name_fails(const char *call, int folder, const char *name) {
    char path[8192], here[4096];
    if (!getenv("FAULT_PATH") || name[0] == '/') return path_fails(call, name);
    if (folder != AT_FDCWD || !getcwd(here, sizeof here)) return 0;
    snprintf(path, sizeof path, "%s/%s", here, name);
    return path_fails(call, path);
}

#define MODE(last)                                                                                                     \
    va_list more;                                                                                                      \
    va_start(more, last);                                                                                              \
    mode_t mode = (last & (O_CREAT | O_TMPFILE)) ? va_arg(more, mode_t) : 0;                                           \
    va_end(more);
#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        MODE(flags)                                                                                                    \
        return name_fails("open", AT_FDCWD, path) ? -1 : NEXT(name)(path, flags, mode);                                \
    }
#define OPENAT(name)                                                                                                   \
    int name(int folder, const char *path, int flags, ...) {                                                           \
        MODE(flags)                                                                                                    \
        return name_fails("open", folder, path) ? -1 : NEXT(name)(folder, path, flags, mode);                          \
    }
#define FOPEN(name)                                                                                                    \
    FILE *name(const char *path, const char *mode) {                                                                   \
        return name_fails("open", AT_FDCWD, path) ? NULL : NEXT(name)(path, mode);                                     \
    }
#define ON_FILE(result, name, call, arguments, ...)                                                                    \
    result name arguments { return file_fails(call, file) ? -1 : NEXT(name)(__VA_ARGS__); }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)
ON_FILE(ssize_t, read, "read", (int file, void *to, size_t size), file, to, size)
ON_FILE(ssize_t, readv, "read", (int file, const struct iovec *to, int n), file, to, n)
ON_FILE(ssize_t, pread, "read", (int file, void *to, size_t size, off_t at), file, to, size, at)
ON_FILE(ssize_t, pread64, "read", (int file, void *to, size_t size, off64_t at), file, to, size, at)
ON_FILE(ssize_t, write, "write", (int file, const void *from, size_t size), file, from, size)
ON_FILE(ssize_t, writev, "write", (int file, const struct iovec *from, int n), file, from, n)
ON_FILE(ssize_t, pwrite, "write", (int file, const void *from, size_t size, off_t at), file, from, size, at)
ON_FILE(ssize_t, pwrite64, "write", (int file, const void *from, size_t size, off64_t at), file, from, size, at)
ON_FILE(int, fsync, "fsync", (int file), file)
ON_FILE(int, fdatasync, "fsync", (int file), file)

int rename(const char *from, const char *to) {
    return name_fails("rename", AT_FDCWD, to) ? -1 : NEXT(rename)(from, to);
}

int renameat(int folder, const char *from, int other, const char *to) {
    return name_fails("rename", other, to) ? -1 : NEXT(renameat)(folder, from, other, to);
}

static long jump(void) {
    const char *at = getenv("CLOCK_AT");
    struct timespec now;
    if (!at || NEXT(clock_gettime)(CLOCK_MONOTONIC, &now)) return 0;
    return now.tv_sec + now.tv_nsec / 1e9 < atof(at) ? 0 : number("CLOCK_BY", 0);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = NEXT(clock_gettime)(clock, time);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += jump();
    return failed;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    int failed = NEXT(gettimeofday)(time, zone);
    if (!failed) time->tv_sec += jump();
    return failed;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}
