/* attempt DIRECTORY CALL: is locked into the directory as an unpacker is, and makes one call. Its blob is descriptor 9. */
#define _GNU_SOURCE
#include "unpack.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define BLOB_FD 9

static const struct
{
  const char *name;
  long number, arguments[5];
} calls[] = {
  { "fork", SYS_clone, { 17 } }, /* SIGCHLD */
  { "execve", SYS_execve },
  { "execveat", SYS_execveat },
  { "kill", SYS_kill, { 1 } },
  { "tkill", SYS_tkill, { 1 } },
  { "tgkill", SYS_tgkill, { 1, 1 } },
  { "pidfd_open", SYS_pidfd_open, { 1 } },
  { "chroot", SYS_chroot },
  { "socket", SYS_socket, { 2, 1 } },
  { "connect", SYS_connect },
  { "unshare", SYS_unshare },
  { "mount", SYS_mount },
  { "open_tree", SYS_open_tree },
  { "ptrace", SYS_ptrace },
  { "setrlimit", SYS_prlimit64 },
  { "open_by_handle_at", SYS_open_by_handle_at },
  { "F_SETOWN", SYS_fcntl, { 0, F_SETOWN } },
  { "F_DUPFD", SYS_fcntl, { BLOB_FD, F_DUPFD } },
  { "F_DUPFD_CLOEXEC", SYS_fcntl, { BLOB_FD, F_DUPFD_CLOEXEC } },
  { "dup", SYS_dup, { BLOB_FD } },
  { "fchmod", SYS_fchmod, { BLOB_FD, 0600 } },
  { "fchown", SYS_fchown, { BLOB_FD, 0, 0 } },
  { "fchownat", SYS_fchownat, { BLOB_FD, (long) "", 0, 0, AT_EMPTY_PATH } },
  { "fsetxattr", SYS_fsetxattr, { BLOB_FD, (long) "user.x", (long) "", 0, 0 } },
  { "futimens", SYS_utimensat, { BLOB_FD, 0, 0, 0 } },
  { "madvise", SYS_madvise, { 0, 4096, 100 } }, /* MADV_HWPOISON, of nothing */
  { "unknown", 9999 },
#ifdef SYS_vfork
  { "vfork", SYS_vfork },
#endif
};

static void *
nothing (void *context)
{
  return context;
}

static int
open_device (void)
{
  if (mknod ("null", S_IFCHR | 0666, makedev (1, 3)) < 0)
    return errno;
  return open ("null", O_RDONLY) < 0 ? errno : 0;
}

/* How much more memory can be had, in MiB, of a kind that is not a process's own; at most 1000. */
static int
share_memory (void)
{
  int size = 0;

  while (size < 1000 && mmap (NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
    size++;
  return size;
}

/* How many more files can be opened, at most 1000. */
static int
open_files (void)
{
  int count = 0;

  while (count < 1000 && open ("/", O_PATH) >= 0)
    count++;
  return count;
}

/* Whether a directory that is open has a parent other than itself. */
static int
look_out (void)
{
  struct stat own, above;

  for (int fd = 0; fd < 1024; fd++)
    if (fstat (fd, &own) == 0 && S_ISDIR (own.st_mode)
        && (fstatat (fd, "..", &above, 0) < 0 || above.st_ino != own.st_ino || above.st_dev != own.st_dev))
      return 1;
  return 0;
}

int
main (int argc, char **argv)
{
  pthread_t thread;
  int directory = argc == 3 ? open (argv[1], O_RDONLY | O_DIRECTORY) : -1;
  const char *call = argv[argc - 1];

  if (directory < 0 || dup2 (open (argv[0], O_RDONLY), BLOB_FD) < 0 || crungo_unpack_prepare () < 0
      || crungo_unpack_confine (directory, 0) < 0 || crungo_unpack_filter (BLOB_FD) != 0)
    {
      perror (argv[0]);
      return 100;
    }
  for (size_t i = 0; i < sizeof (calls) / sizeof (calls[0]); i++)
    if (strcmp (call, calls[i].name) == 0)
      {
        const long *arguments = calls[i].arguments;
        syscall (calls[i].number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], 0);
        return 0;
      }
#ifdef __x86_64__
  if (strcmp (call, "i386") == 0) /* the number of its own mkdir, 39 */
    {
      long result = 39;
      __asm__ volatile ("int $0x80" : "+a"(result) : "b"(0), "c"(0) : "memory");
      return 0;
    }
#endif
  if (strcmp (call, "mkdir") == 0)
    return mkdirat (AT_FDCWD, "fine", 0755) == 0 ? 0 : errno;
  if (strcmp (call, "thread") == 0)
    return pthread_create (&thread, NULL, nothing, NULL) == 0 && pthread_join (thread, NULL) == 0 ? 0 : 1;
  if (strcmp (call, "abort") == 0)
    abort ();
  if (strcmp (call, "device") == 0)
    return open_device ();
  if (strcmp (call, "memory") == 0)
    return share_memory () < 400 ? 0 : 1;
  if (strcmp (call, "files") == 0)
    return open_files () < 64 ? 0 : 1;
  if (strcmp (call, "descriptors") == 0)
    return look_out ();
  return 100;
}
