/* crungo-isolate: sets a spawner apart from its caller, and starts it.
 *
 *     crungo-isolate PROGRAM [ARG...]
 *
 * The process leaves the caller's descriptors (but for 0 to 3), directory, file mode mask and mount namespace. In the new
 * namespace crungo-forks, which is beside this program, is mounted read-only upon itself: it is what every process of a
 * container is forked from, and a program inside that reaches it through /proc/self/exe, or another's, finds a file that
 * cannot be written (CVE-2019-5736). libcrun's own answer, a copy in memory, costs more each time. It has to be mounted before
 * it is started: a process keeps what it was started from. A program of its own does this because an interpreter, started
 * for this alone, takes fifteen times as long.
 *
 * A failure is told on descriptor 3, the control socket, in the form of runtime/wire.py.
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CONTROL_FD 3
#define CGROUPS "/sys/fs/cgroup"
#define UNIFIED CGROUPS "/unified"

static void
append (char *packet, size_t *length, const void *data, size_t size)
{
  memcpy (packet + *length, data, size);
  *length += size;
}

/* {"event": "died", "message": …} in Python's marshal format: what the engine takes for a spawner's last words. */
static _Noreturn void
fail (const char *what, const char *path)
{
  static const char before[] = "\1{z\5eventz\4diedz\7messageu";
  char text[PATH_MAX + 256], packet[sizeof before + sizeof text + 8];
  size_t length = 0;
  const char *reason = strerror (errno);
  int written = snprintf (text, sizeof text, "%s%s%s: %s", what, path ? " " : "", path ? path : "", reason);
  uint32_t size = written < (int) sizeof text ? written : (int) sizeof text - 1;
  uint8_t little[4] = { size & 255, size >> 8 & 255, size >> 16 & 255, size >> 24 & 255 };

  append (packet, &length, before, sizeof before - 1);
  append (packet, &length, little, sizeof little);
  append (packet, &length, text, size);
  append (packet, &length, "0", 1);
  ssize_t ignored = send (CONTROL_FD, packet, length, MSG_NOSIGNAL);
  (void) ignored;
  _exit (1);
}

static void
mount_or_fail (const char *source, const char *target, const char *type, unsigned long flags, const char *data)
{
  if (mount (source, target, type, flags, data) < 0)
    fail ("mount", target);
}

/* Whether the host has cgroup v1 and, beside it, a v2 tree with controllers of its own. */
static int
is_hybrid (void)
{
  char content[256];
  int fd = open (UNIFIED "/cgroup.controllers", O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return 0;
  ssize_t count = read (fd, content, sizeof content);
  close (fd);
  return count > 0 && content[0] != '\n';
}

static int
is_mount (const char *path)
{
  struct stat above, own;

  return stat (CGROUPS, &above) == 0 && lstat (path, &own) == 0 && S_ISDIR (own.st_mode) && above.st_dev != own.st_dev;
}

/* Make a hybrid layout, whose v2 tree libcrun refuses when it has controllers, look like plain v1 in here.
 *
 * Unmounting the v2 tree is not enough: libcrun would take the empty directory below it, which is the host's, for a
 * hierarchy, and make directories and files in it. So the v1 trees move to a tmpfs of ours without such a directory. */
static void
make_cgroups_v1 (void)
{
  char old[PATH_MAX], new[PATH_MAX], link[PATH_MAX];
  struct dirent *entry;

  if (umount2 (UNIFIED, MNT_DETACH) < 0)
    fail ("unmount", UNIFIED);
  mount_or_fail ("tmpfs", UNIFIED, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755");
  DIR *folder = opendir (CGROUPS);
  if (folder == NULL)
    fail ("open", CGROUPS);
  while ((entry = readdir (folder)) != NULL)
    {
      if (entry->d_name[0] == '.' || strcmp (entry->d_name, "unified") == 0)
        continue;
      snprintf (old, sizeof old, CGROUPS "/%s", entry->d_name);
      snprintf (new, sizeof new, UNIFIED "/%s", entry->d_name);
      ssize_t size = readlink (old, link, sizeof link - 1);
      if (size >= 0) /* cpu -> cpu,cpuacct */
        {
          link[size] = '\0';
          if (symlink (link, new) < 0)
            fail ("link", new);
        }
      else if (is_mount (old))
        {
          if (mkdir (new, 0755) < 0)
            fail ("make", new);
          mount_or_fail (old, new, NULL, MS_MOVE, NULL);
        }
    }
  closedir (folder);
  mount_or_fail (UNIFIED, CGROUPS, NULL, MS_MOVE, NULL);
}

static void
protect_sibling (const char *program, const char *name)
{
  char path[PATH_MAX];
  const char *slash = strrchr (program, '/');

  snprintf (path, sizeof path, "%.*s%s", slash ? (int) (slash + 1 - program) : 0, program, name);
  mount_or_fail (path, path, NULL, MS_BIND, NULL);
  mount_or_fail ("none", path, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL);
}

int
main (int argc, char **argv)
{
  if (argc < 2)
    {
      errno = EINVAL;
      fail ("usage: crungo-isolate PROGRAM [ARG...]", NULL);
    }
  if (syscall (SYS_close_range, CONTROL_FD + 1, ~0U, 0) < 0)
    fail ("close descriptors", NULL);
  if (chdir ("/") < 0)
    fail ("change directory", "/");
  umask (022);
  /* What the host mounts later is seen in here, and what is mounted here is not seen there. */
  if (unshare (CLONE_NEWNS) < 0)
    fail ("unshare mounts", NULL);
  mount_or_fail ("none", "/", NULL, MS_REC | MS_SLAVE, NULL);
  if (is_hybrid ())
    make_cgroups_v1 ();
  protect_sibling (argv[0], "crungo-forks");
  execv (argv[1], argv + 1);
  fail ("start", argv[1]);
}
