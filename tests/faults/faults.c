// Preloaded into a run: counts the system calls on its output, and lets the n-th of them fail or be the last.
//
// A file counts if its path contains the text given to faults_arm(). What is written and synced can be recorded, so that
// any state that a power cut may leave can be put together afterwards. A name that contains "hang" is never opened.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { NOTHING, KILL_BEFORE, KILL_AFTER, FAIL, SHORT, STOP };
enum { FILES = 4096 };

static char watched[4096];           // text in the paths that count; empty: none
static char open_files[FILES];       // by descriptor
static long number, at;              // calls so far; the call that is disturbed
static int action, code, only_sync;  // what happens there; errno; whether only syncs count
static FILE *record;
static long clock_step;  // seconds by which the clock of the wall goes back at each look
static long clock_shift;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

void faults_arm(const char *text, long call, int what, int error, int sync_only, const char *recording) {
  snprintf(watched, sizeof watched, "%s", text);
  number = 0, at = call, action = what, code = error, only_sync = sync_only;
  if (recording && *recording) record = fopen(recording, "wbe");
}

// Processes that a run starts itself are armed by their environment: text, call, action, errno, with commas between.
__attribute__((constructor)) static void arm_by_environment(void) {
  const char *order = getenv("FAULTS_ARM");
  char text[256];
  long call;
  int what, error;
  if (order && sscanf(order, "%255[^,],%ld,%d,%d", text, &call, &what, &error) == 4)
    faults_arm(text, call, what, error, 0, "");
}

long faults_count(void) { return number; }
void faults_clock(long step) { clock_step = step; }

static int watching(const char *path) { return *watched && path && strstr(path, watched) != NULL; }
static int counts(int descriptor) { return descriptor >= 0 && descriptor < FILES && open_files[descriptor]; }

// Whether this call is the one, and what happens to it.
static int turn(int is_sync) {
  if (only_sync && !is_sync) return NOTHING;
  pthread_mutex_lock(&lock);
  int mine = ++number == at;
  pthread_mutex_unlock(&lock);
  if (!mine) return NOTHING;
  if (action == KILL_BEFORE) kill(getpid(), SIGKILL), pause();
  if (action == STOP) kill(getpid(), SIGSTOP);
  return action;
}

static void after(int what) {
  if (what == KILL_AFTER) kill(getpid(), SIGKILL), pause();
}

// A record: kind, position, length as int64, then that many bytes. Kinds: w write, s sync, r rename, d sync of the folder; S and D
// are syncs that failed.
static void note(char kind, int64_t position, const void *data, int64_t length) {
  if (!record) return;
  pthread_mutex_lock(&lock);
  int64_t head[3] = {kind, position, length};
  fwrite(head, sizeof head, 1, record);
  if (length) fwrite(data, 1, length, record);
  fflush(record);
  pthread_mutex_unlock(&lock);
}

static int opened(int descriptor, const char *path) {
  if (descriptor >= 0 && descriptor < FILES) open_files[descriptor] = watching(path) ? 1 : 0;
  return descriptor;
}

static void maybe_hang(const char *path) {
  const char *last = path ? strrchr(path, '/') : NULL;
  if (last && strncmp(last, "/hang", 5) == 0)
    for (;;) pause();
}

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } \
    maybe_hang(path); \
    int what = (flags & (O_WRONLY | O_RDWR)) && watching(path) ? turn(0) : NOTHING; \
    if (what == FAIL) return errno = code, -1; \
    int descriptor = opened(real(path, flags, mode), path); \
    after(what); \
    return descriptor; \
  }
OPEN(open)
OPEN(open64)

int close(int descriptor) {
  REAL(close);
  if (descriptor >= 0 && descriptor < FILES) open_files[descriptor] = 0;
  return real(descriptor);
}

ssize_t write(int descriptor, const void *data, size_t size) {
  REAL(write);
  if (!counts(descriptor)) return real(descriptor, data, size);
  int what = turn(0);
  if (what == FAIL) return errno = code, -1;
  if (what == SHORT && size > 1) size /= 2;
  int64_t position = lseek(descriptor, 0, SEEK_CUR);
  ssize_t written = real(descriptor, data, size);
  if (written > 0) note('w', position, data, written);
  after(what);
  return written;
}

#define PWRITE(name, offset_type) \
  ssize_t name(int descriptor, const void *data, size_t size, offset_type position) { \
    REAL(name); \
    if (!counts(descriptor)) return real(descriptor, data, size, position); \
    int what = turn(0); \
    if (what == FAIL) return errno = code, -1; \
    if (what == SHORT && size > 1) size /= 2; \
    ssize_t written = real(descriptor, data, size, position); \
    if (written > 0) note('w', position, data, written); \
    after(what); \
    return written; \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
  REAL(copy_file_range);
  if (!counts(out)) return real(in, from, out, to, size, flags);
  int what = turn(0);
  if (what == FAIL) return errno = code, -1;
  if (what == SHORT && size > 1) size /= 2;
  int64_t position = to ? *to : lseek(out, 0, SEEK_CUR);
  ssize_t copied = real(in, from, out, to, size, flags);
  if (copied > 0 && record) {
    void *data = malloc(copied);
    if (pread(out, data, copied, position) == copied) note('w', position, data, copied);
    free(data);
  }
  after(what);
  return copied;
}

#define SYNC(name) \
  int name(int descriptor) { \
    REAL(name); \
    struct stat about; \
    int folder = fstat(descriptor, &about) == 0 && S_ISDIR(about.st_mode); \
    if (!counts(descriptor) && !(folder && *watched)) return real(descriptor); \
    int what = turn(1); \
    if (what == FAIL) return note(folder ? 'D' : 'S', 0, NULL, 0), errno = code, -1; \
    int result = real(descriptor); \
    if (result == 0) note(folder ? 'd' : 's', 0, NULL, 0); \
    after(what); \
    return result; \
  }
SYNC(fsync)
SYNC(fdatasync)

#define TRUNCATE(name, size_type) \
  int name(int descriptor, size_type size) { \
    REAL(name); \
    int what = counts(descriptor) ? turn(0) : NOTHING; \
    if (what == FAIL) return errno = code, -1; \
    int result = real(descriptor, size); \
    after(what); \
    return result; \
  }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

int fallocate(int descriptor, int mode, off_t position, off_t size) {
  REAL(fallocate);
  int what = counts(descriptor) ? turn(0) : NOTHING;
  if (what == FAIL) return errno = code, -1;
  int result = real(descriptor, mode, position, size);
  after(what);
  return result;
}

int rename(const char *from, const char *to) {
  REAL(rename);
  int what = watching(to) ? turn(0) : NOTHING;
  if (what == FAIL) return errno = code, -1;
  int result = real(from, to);
  if (result == 0 && watching(to)) note('r', 0, NULL, 0);
  after(what);
  return result;
}

int clock_gettime(clockid_t which, struct timespec *now) {
  REAL(clock_gettime);
  int result = real(which, now);
  if (clock_step && which == CLOCK_REALTIME) now->tv_sec -= clock_shift += clock_step;
  return result;
}
