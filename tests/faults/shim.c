/* Counts the calls that change a disk, over all threads, and ends the process by SIGKILL at one of them.
 * Writes to one file that follow upon each other count as one.
 *
 * strike(N, H)  before the Nth call from now on; of a write, after the first half of it where H is not 0
 * FAULT_COUNT   a file that gets the number of calls when the process ends by itself
 *
 * strace -e inject=...:when=N counts for each thread and each kind of call alone; here the order is one.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;
static atomic_int last = -1; /* the file that the last call wrote to */
static long at;
static int half;

void strike(long nth, int first_half) {
    atomic_store(&calls, 0);
    at = nth;
    half = first_half;
}

__attribute__((destructor)) static void end(void) {
    FILE *file = getenv("FAULT_COUNT") ? fopen(getenv("FAULT_COUNT"), "w") : NULL;
    if (file) fprintf(file, "%ld", atomic_load(&calls)), fclose(file);
}

static int mine(int fd) {
    if (atomic_exchange(&last, fd) == fd && fd != -1) return 0;
    return atomic_fetch_add(&calls, 1) + 1 == at;
}

static void die(void) { for (;;) kill(getpid(), SIGKILL); }

static int is_file(int fd) {
    struct stat about;
    return fstat(fd, &about) == 0 && S_ISREG(about.st_mode);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define COUNTED(type, name, parameters, arguments) \
    type name parameters { if (mine(-1)) die(); return REAL(name) arguments; }
#define WRITES(type, name, parameters, arguments, first_half) \
    type name parameters { \
        if (is_file(fd) && mine(fd)) { if (half) (void)!REAL(name) first_half; die(); } \
        return REAL(name) arguments; \
    }

WRITES(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), (fd, data, size / 2))
WRITES(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t to), (fd, data, size, to), (fd, data, size / 2, to))
WRITES(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t to), (fd, data, size, to), (fd, data, size / 2, to))
WRITES(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), (fd, parts, count / 2))
WRITES(ssize_t, copy_file_range, (int from, off64_t *at_from, int fd, off64_t *to, size_t size, unsigned flags),
       (from, at_from, fd, to, size, flags), (from, at_from, fd, to, size / 2, flags))
WRITES(ssize_t, sendfile, (int fd, int from, off_t *at_from, size_t size), (fd, from, at_from, size), (fd, from, at_from, size / 2))
WRITES(ssize_t, sendfile64, (int fd, int from, off64_t *at_from, size_t size), (fd, from, at_from, size), (fd, from, at_from, size / 2))
COUNTED(int, ftruncate, (int fd, off_t size), (fd, size))
COUNTED(int, ftruncate64, (int fd, off64_t size), (fd, size))
COUNTED(int, fsync, (int fd), (fd))
COUNTED(int, fdatasync, (int fd), (fd))
COUNTED(int, rename, (const char *from, const char *to), (from, to))
COUNTED(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to))
COUNTED(int, renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags))
COUNTED(int, link, (const char *from, const char *to), (from, to))
COUNTED(int, linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags))
COUNTED(int, symlink, (const char *to, const char *path), (to, path))
COUNTED(int, unlink, (const char *path), (path))
COUNTED(int, unlinkat, (int a, const char *path, int flags), (a, path, flags))
COUNTED(int, rmdir, (const char *path), (path))
COUNTED(int, mkdir, (const char *path, mode_t mode), (path, mode))
COUNTED(int, mkdirat, (int a, const char *path, mode_t mode), (a, path, mode))
