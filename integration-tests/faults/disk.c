// A disk on its bad days, for the storage node alone: loaded with LD_PRELOAD, it makes calls on files short, interrupts
// them, and makes flushes slow, as POSIX allows a file system to (pread, pwrite, write: "may transfer fewer bytes"; EINTR).
// What it did is counted in the file that CUSTODY_FAULTS names, one byte for each kind: so a test sees that it was there.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static int in_node;
static atomic_int met[4];
static __thread uint64_t state;

__attribute__((constructor)) static void start(void) {
    char comm[16] = "";
    FILE *file = fopen("/proc/self/comm", "r");
    if (file) {
        if (!fgets(comm, sizeof comm, file)) comm[0] = 0;
        fclose(file);
    }
    in_node = strncmp(comm, "custody-node", 12) == 0;
}

static uint64_t below(uint64_t n) {
    if (!state) state = (uint64_t)(uintptr_t)&state ^ 0x9E3779B97F4A7C15u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % n;
}

static void note(char kind) {
    if (atomic_exchange(&met[kind - 'a'], 1)) return;
    int kept = errno;
    const char *path = getenv("CUSTODY_FAULTS");
    int fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    if (fd >= 0) {
        ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
        real(fd, &kind, 1);
        close(fd);
    }
    errno = kept;
}

// How many bytes of a call are done; -1 for an interrupted one.
static ssize_t allowed(size_t len, char kind) {
    if (!in_node || len < 2) return (ssize_t)len;
    uint64_t fate = below(8);
    if (fate == 0) {
        note('d');
        errno = EINTR;
        return -1;
    }
    if (fate > 3) return (ssize_t)len;
    note(kind);
    return (ssize_t)(1 + below(len - 1));
}

ssize_t pread64(int fd, void *buf, size_t len, off64_t at) {
    static ssize_t (*real)(int, void *, size_t, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "pread64");
    ssize_t now = allowed(len, 'a');
    return now < 0 ? -1 : real(fd, buf, (size_t)now, at);
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t at) {
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    ssize_t now = allowed(len, 'b');
    return now < 0 ? -1 : real(fd, buf, (size_t)now, at);
}

ssize_t write(int fd, const void *buf, size_t len) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    struct stat file;
    // Of files alone: the rest is not the disk's.
    if (!in_node || fstat(fd, &file) != 0 || !S_ISREG(file.st_mode)) return real(fd, buf, len);
    ssize_t now = allowed(len, 'b');
    return now < 0 ? -1 : real(fd, buf, (size_t)now);
}

static void slowly(void) {
    if (in_node && below(8) == 0) {
        note('c');
        usleep((useconds_t)(1000 * (5 + below(40))));
    }
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    slowly();
    return real(fd);
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    slowly();
    return real(fd);
}
