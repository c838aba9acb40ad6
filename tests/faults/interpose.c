/* Stand between a program and the file system: fail, shorten, log or die at chosen operations on files below a folder.

Loaded by LD_PRELOAD; does nothing until armed through fault_arm. Operations that change files are counted from 1: creating
or truncating by open, write, pwrite, ftruncate, fsync, fdatasync, rename, unlink, mkdir, rmdir. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { OFF, FAIL_ONCE, FAIL_FROM, SHORTEN, KILL, TEAR, COUNT };

static char root[PATH_MAX];
static volatile int mode = OFF, with_errno = EIO, without_locks = 0;
static volatile long at = 0, count = 0;
static int log_handle = -1;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

void fault_arm(const char* folder, int new_mode, long operation, int error, int log_to) {
    snprintf(root, sizeof root, "%s", folder);
    at = operation;
    with_errno = error;
    log_handle = log_to;
    __atomic_store_n(&count, 0, __ATOMIC_SEQ_CST);
    mode = new_mode;
}

void fault_take_locks(void) { without_locks = 1; }

long fault_count(void) { return __atomic_load_n(&count, __ATOMIC_SEQ_CST); }

__attribute__((constructor)) static void start(void) { without_locks = getenv("FAULT_WITHOUT_LOCKS") != NULL; }

static int is_below(const char* path) {
    size_t length = strlen(root);
    return length && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static int path_of(int handle, char* path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

static int absolute(int folder, const char* name, char* path) {
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return 1;
    }
    if (folder == AT_FDCWD) {
        if (!getcwd(path, PATH_MAX)) return 0;
    } else if (!path_of(folder, path)) {
        return 0;
    }
    size_t length = strlen(path);
    snprintf(path + length, PATH_MAX - length, "/%s", name);
    return 1;
}

/* Appends to the log: one line of facts, then `size` bytes. */
static void note(const char* what, const char* path, const char* other, long offset, const void* data, size_t size) {
    if (log_handle < 0) return;
    char line[2 * PATH_MAX + 100];
    int length = snprintf(line, sizeof line, "%s\t%s\t%s\t%ld\t%zu\n", what, path, other, offset, size);
    struct iovec parts[2] = {{line, (size_t)length}, {(void*)data, size}};
    if (writev(log_handle, parts, data ? 2 : 1) < 0) abort();
}

/* Counts an operation. Returns 0 to go on, 1 to fail with errno set, 2 to do half of it. */
static int turn(const char* path, int is_write) {
    if (mode == OFF || !is_below(path)) return 0;
    long number = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (mode == KILL && number == at) raise(SIGKILL);
    if (mode == TEAR && number == at) {
        if (is_write) return 2;
        raise(SIGKILL);
    }
    if (mode == SHORTEN && is_write && (at == 0 || number == at)) return 2;
    if ((mode == FAIL_ONCE && number == at) || (mode == FAIL_FROM && number >= at)) {
        errno = with_errno;
        return 1;
    }
    return 0;
}

static int turn_of_handle(int handle, int is_write, char* path) {
    path[0] = 0;
    if (mode == OFF || !path_of(handle, path)) return 0;
    return turn(path, is_write);
}

static size_t half_of(int what, size_t size) { return what == 2 && size > 1 ? size / 2 : size; }

static void after_half(int what) {
    if (what == 2 && mode == TEAR) raise(SIGKILL);
}

ssize_t write(int handle, const void* data, size_t size) {
    REAL(write);
    char path[PATH_MAX];
    int what = turn_of_handle(handle, 1, path);
    if (what == 1) return -1;
    off_t offset = mode != OFF && log_handle >= 0 ? lseek(handle, 0, SEEK_CUR) : 0;
    int appends = mode != OFF && log_handle >= 0 && fcntl(handle, F_GETFL) & O_APPEND;
    if (appends) offset = lseek(handle, 0, SEEK_END);
    ssize_t done = real(handle, data, half_of(what, size));
    if (mode != OFF && done > 0 && is_below(path)) note("write", path, "", offset, data, (size_t)done);
    after_half(what);
    return done;
}

/* The C library's own buffers are passed by, for their writes cannot be seen: NumPy writes arrays this way. */
size_t fwrite(const void* data, size_t size, size_t items, FILE* stream) {
    REAL(fwrite);
    char path[PATH_MAX];
    if (mode == OFF || !path_of(fileno(stream), path) || !is_below(path)) return real(data, size, items, stream);
    fflush(stream);
    size_t done = 0;
    while (done < size * items) {
        ssize_t more = write(fileno(stream), (const char*)data + done, size * items - done);
        if (more < 0) break;
        done += (size_t)more;
    }
    fseeko(stream, lseek(fileno(stream), 0, SEEK_CUR), SEEK_SET);
    return size ? done / size : 0;
}

static ssize_t write_at(int handle, const void* data, size_t size, off_t offset) {
    static ssize_t (*real)(int, const void*, size_t, off_t);
    if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, "pwrite64");
    char path[PATH_MAX];
    int what = turn_of_handle(handle, 1, path);
    if (what == 1) return -1;
    ssize_t done = real(handle, data, half_of(what, size), offset);
    if (mode != OFF && done > 0 && is_below(path)) note("write", path, "", offset, data, (size_t)done);
    after_half(what);
    return done;
}

ssize_t pwrite(int handle, const void* data, size_t size, off_t offset) { return write_at(handle, data, size, offset); }
ssize_t pwrite64(int handle, const void* data, size_t size, off_t offset) { return write_at(handle, data, size, offset); }

int fsync(int handle) {
    REAL(fsync);
    char path[PATH_MAX];
    if (turn_of_handle(handle, 0, path) == 1) return -1;
    int result = real(handle);
    if (mode != OFF && !result && is_below(path)) note("sync", path, "", 0, NULL, 0);
    return result;
}

int fdatasync(int handle) {
    REAL(fdatasync);
    char path[PATH_MAX];
    if (turn_of_handle(handle, 0, path) == 1) return -1;
    int result = real(handle);
    if (mode != OFF && !result && is_below(path)) note("sync", path, "", 0, NULL, 0);
    return result;
}

static int truncate_handle(int handle, off_t size) {
    static int (*real)(int, off_t);
    if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, "ftruncate64");
    char path[PATH_MAX];
    if (turn_of_handle(handle, 0, path) == 1) return -1;
    int result = real(handle, size);
    if (mode != OFF && !result && is_below(path)) note("truncate", path, "", size, NULL, 0);
    return result;
}

int ftruncate(int handle, off_t size) { return truncate_handle(handle, size); }
int ftruncate64(int handle, off_t size) { return truncate_handle(handle, size); }

static int rename_at(int from, const char* old, int to, const char* new) {
    static int (*real)(int, const char*, int, const char*);
    if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, "renameat");
    char path[PATH_MAX], target[PATH_MAX];
    int is_known = mode != OFF && absolute(from, old, path) && absolute(to, new, target);
    if (is_known && turn(target, 0) == 1) return -1;
    int result = real(from, old, to, new);
    if (is_known && !result && is_below(target)) note("rename", path, target, 0, NULL, 0);
    return result;
}

int rename(const char* old, const char* new) { return rename_at(AT_FDCWD, old, AT_FDCWD, new); }
int renameat(int from, const char* old, int to, const char* new) { return rename_at(from, old, to, new); }

int unlinkat(int folder, const char* name, int flags) {
    REAL(unlinkat);
    char path[PATH_MAX];
    int is_known = mode != OFF && absolute(folder, name, path);
    if (is_known && turn(path, 0) == 1) return -1;
    int result = real(folder, name, flags);
    if (is_known && !result && is_below(path)) note(flags & AT_REMOVEDIR ? "rmdir" : "unlink", path, "", 0, NULL, 0);
    return result;
}

int unlink(const char* name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char* name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdir(const char* name, mode_t bits) {
    REAL(mkdir);
    char path[PATH_MAX];
    int is_known = mode != OFF && absolute(AT_FDCWD, name, path);
    if (is_known && turn(path, 0) == 1) return -1;
    int result = real(name, bits);
    if (is_known && !result && is_below(path)) note("mkdir", path, "", 0, NULL, 0);
    return result;
}

static int open_at(int folder, const char* name, int flags, mode_t bits) {
    static int (*real)(int, const char*, int, ...);
    if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, "openat64");
    char path[PATH_MAX];
    struct stat status;
    int changes = 0;
    if (mode != OFF && flags & (O_CREAT | O_TRUNC) && absolute(folder, name, path) && is_below(path)) {
        changes = flags & O_TRUNC || stat(path, &status) != 0;
        if (changes && turn(path, 0) == 1) return -1;
    }
    int handle = real(folder, name, flags, bits);
    if (changes && handle >= 0) note("create", path, "", 0, NULL, 0);
    return handle;
}

#define BITS(flags, last, bits) \
    mode_t bits = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
        va_list list; \
        va_start(list, last); \
        bits = va_arg(list, mode_t); \
        va_end(list); \
    }

int open(const char* name, int flags, ...) {
    BITS(flags, flags, bits)
    return open_at(AT_FDCWD, name, flags, bits);
}

int open64(const char* name, int flags, ...) {
    BITS(flags, flags, bits)
    return open_at(AT_FDCWD, name, flags, bits);
}

int openat(int folder, const char* name, int flags, ...) {
    BITS(flags, flags, bits)
    return open_at(folder, name, flags, bits);
}

int openat64(int folder, const char* name, int flags, ...) {
    BITS(flags, flags, bits)
    return open_at(folder, name, flags, bits);
}

int flock(int handle, int operation) {
    REAL(flock);
    if (without_locks) {
        errno = ENOLCK;
        return -1;
    }
    return real(handle, operation);
}

static int control(int handle, int command, void* argument) {
    static int (*real)(int, int, ...);
    if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, "fcntl64");
    int locks = command == F_SETLK || command == F_SETLKW || command == F_GETLK || command == F_OFD_SETLK;
    if (without_locks && locks) {
        errno = ENOLCK;
        return -1;
    }
    return real(handle, command, argument);
}

int fcntl(int handle, int command, ...) {
    va_list list;
    va_start(list, command);
    void* argument = va_arg(list, void*);
    va_end(list);
    return control(handle, command, argument);
}

int fcntl64(int handle, int command, ...) {
    va_list list;
    va_start(list, command);
    void* argument = va_arg(list, void*);
    va_end(list);
    return control(handle, command, argument);
}
