// Writes down, under LD_PRELOAD, what a program writes to the file RECORDED and when it flushes it, into the file RECORD: for
// each call its kind ('W', 'Z' for zeros, 'S' for a flush), the place and the length, 8 bytes each, and the bytes.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int recorded(int fd) {
    char link[32], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len < 0) return 0;
    path[len] = 0;
    return strcmp(path, getenv("RECORDED")) == 0;
}

static void record(char kind, int64_t at, int64_t len, const void *bytes) {
    static int (*real_open)(const char *, int, ...);
    static ssize_t (*real_write)(int, const void *, size_t);
    static int out = -1;
    if (!real_open) real_open = dlsym(RTLD_NEXT, "open");
    if (!real_write) real_write = dlsym(RTLD_NEXT, "write");
    if (out < 0) out = real_open(getenv("RECORD"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    int64_t head[3] = {kind, at, len};
    if (real_write(out, head, sizeof head) != sizeof head) abort();
    if (bytes && real_write(out, bytes, (size_t)len) != len) abort();
}

ssize_t write(int fd, const void *bytes, size_t len) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (recorded(fd)) record('W', lseek(fd, 0, SEEK_CUR), (int64_t)len, bytes);
    return real(fd, bytes, len);
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at) {
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    if (recorded(fd)) record('W', at, (int64_t)len, bytes);
    return real(fd, bytes, len, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t len, off_t at) { return pwrite64(fd, bytes, len, at); }

int fallocate64(int fd, int mode, off64_t at, off64_t len) {
    static int (*real)(int, int, off64_t, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "fallocate64");
    if (recorded(fd)) record('Z', at, len, 0);
    return real(fd, mode, at, len);
}

int fallocate(int fd, int mode, off_t at, off_t len) { return fallocate64(fd, mode, at, len); }

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    if (recorded(fd)) record('S', 0, 0, 0);
    return real(fd);
}
