#define _GNU_SOURCE
#include "rootfs.h"
#include "syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

/* No `..`, link or magic link leaves the root (openat2(2)).  */
static int
open_inside (int root, const char *path, uint64_t flags)
{
  return crungo_openat2 (root, path, flags | O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
}

/* The merged root has the attributes of the upper directory: make them the image's.  */
static int
make_upper (const char *layer)
{
  struct stat info;

  if (stat (layer, &info) < 0 || mkdir ("upper", 0755) < 0)
    return -1;
  if (chown ("upper", info.st_uid, info.st_gid) < 0)
    return -1;
  return chmod ("upper", info.st_mode & 07777);
}

/* Layers are named by descriptor, `fd/12`, relative to /proc/self: mount(2) takes one page of options, which full paths
   of some forty layers would already overflow, and a name like this holds neither `:` nor `,`.  */
static int
name_descriptor (const char *path, char **at, char *end, const char *before)
{
  int fd = open (path, O_PATH | O_DIRECTORY | O_CLOEXEC); /* closed by the caller */
  int n = snprintf (*at, (size_t) (end - *at), "%sfd/%d", before, fd);

  if (fd < 0)
    return -1;
  *at += n;
  if (*at < end)
    return 0;
  errno = E2BIG;
  return -1;
}

static int
mount_overlay (const char *const *layers, size_t n_layers, const char *directory)
{
  char options[4096]; /* a page, all that mount(2) takes */
  char target[4096];
  char *at = options;
  char *end = options + sizeof (options) - sizeof (",volatile");
  int here = open (".", O_PATH | O_DIRECTORY | O_CLOEXEC);

  if (here < 0 || mkdir ("rootfs", 0755) < 0 || mkdir ("work", 0755) < 0 || make_upper (layers[n_layers - 1]) < 0)
    return -1;
  for (size_t i = n_layers; i-- > 0;)
    if (name_descriptor (layers[i], &at, end, i == n_layers - 1 ? "lowerdir=" : ":") < 0)
      return -1;
  if (name_descriptor ("upper", &at, end, ",upperdir=") < 0 || name_descriptor ("work", &at, end, ",workdir=") < 0)
    return -1;
  if (snprintf (target, sizeof (target), "%s/rootfs", directory) >= (int) sizeof (target))
    {
      errno = ENAMETOOLONG;
      return -1;
    }
  if (chdir ("/proc/self") < 0)
    return -1;
  /* `volatile` leaves out every sync (kernel document filesystems/overlayfs): the upper directory dies with the
     container, and without it the kernel would write the whole file system back when the overlay is unmounted. Kernels
     before 5.10 do not know it; any other reason shows up again in the second try.  */
  strcpy (at, ",volatile");
  if (mount ("overlay", target, "overlay", 0, options) < 0)
    {
      *at = '\0';
      if (mount ("overlay", target, "overlay", 0, options) < 0)
        return -1;
    }
  return fchdir (here);
}

int
crungo_mount_overlay (const char *const *layers, size_t n_layers, const char *directory, struct crungo_failure *why)
{
  if (mount_overlay (layers, n_layers, directory) == 0)
    return 0;
  snprintf (why->hint, sizeof (why->hint),
            "the store must be on a file system that can hold an overlay's upper directory (ext4, xfs, tmpfs)");
  return crungo_fail (why, CRUNGO_FAILURE_HOST, "mount the container's root: %s", strerror (errno));
}

int
crungo_mount_directory (const char *source, struct crungo_failure *why)
{
  if (mkdir ("rootfs", 0755) == 0 && mount (source, "rootfs", NULL, MS_BIND | MS_REC, NULL) == 0)
    return 0;
  return crungo_fail (why, CRUNGO_FAILURE_CONTAINER, "root file system %s: %s", source, strerror (errno));
}

int
crungo_require_directories (int root, bool repair, struct crungo_failure *why)
{
  static const char *const names[] = { "dev", "proc", "sys" };

  for (size_t i = 0; i < sizeof (names) / sizeof (*names); i++)
    {
      struct stat info;
      bool found = fstatat (root, names[i], &info, AT_SYMLINK_NOFOLLOW) == 0;

      if (! found && errno != ENOENT)
        return crungo_fail_errno (why, names[i]);
      if (found && S_ISDIR (info.st_mode))
        continue;
      if (found && ! repair)
        return crungo_fail (why, CRUNGO_FAILURE_CONTAINER, "root file system: /%s is not a directory", names[i]);
      if ((found && unlinkat (root, names[i], 0) < 0) || mkdirat (root, names[i], 0755) < 0)
        return crungo_fail_errno (why, names[i]);
    }
  return 0;
}

int
crungo_remove_dead_link (int root, const char *name, struct crungo_failure *why)
{
  char path[256];
  int etc, fd, status = 0;

  snprintf (path, sizeof (path), "etc/%s", name);
  fd = open_inside (root, path, O_PATH);
  if (fd >= 0)
    return close (fd);
  etc = open_inside (root, "etc", O_PATH | O_DIRECTORY);
  if (etc < 0)
    return 0; /* libcrun makes it, or says why it cannot */
  if (unlinkat (etc, name, 0) < 0 && errno != ENOENT)
    status = crungo_fail_errno (why, path);
  close (etc);
  return status;
}

/* A descriptor to read a regular file by, or -1 where there is none.

   An image may hold a FIFO or a device of that name. To open a device is to act on it (a watchdog starts), and no limit
   on devices holds here: so it is looked at first, and what was looked at is what is opened.  */
static int
open_regular (int root, const char *path)
{
  char link[64];
  struct stat info;
  int found = open_inside (root, path, O_PATH);
  int fd = -1;

  if (found < 0)
    return -1;
  snprintf (link, sizeof (link), "/proc/self/fd/%d", found);
  if (fstat (found, &info) == 0 && S_ISREG (info.st_mode))
    fd = open (link, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  close (found);
  return fd;
}

char *
crungo_read_file (int root, const char *path, size_t *size, struct crungo_failure *why)
{
  int fd = open_regular (root, path);
  char *content = malloc (CRUNGO_FILE_LIMIT + 1); /* memory that is not touched costs nothing */
  ssize_t n = 0;

  *size = 0;
  if (content == NULL)
    crungo_fail_errno (why, path);
  /* Nothing where a read would wait for news, as of some files of /proc.  */
  while (fd >= 0 && content != NULL && *size <= CRUNGO_FILE_LIMIT
         && (n = read (fd, content + *size, CRUNGO_FILE_LIMIT + 1 - *size)) > 0)
    *size += (size_t) n;
  if (fd >= 0)
    close (fd);
  if (content == NULL || *size <= CRUNGO_FILE_LIMIT)
    return content;
  free (content);
  crungo_fail (why, CRUNGO_FAILURE_CONTAINER, "/%s of the image is larger than %d MiB", path, CRUNGO_FILE_LIMIT >> 20);
  return NULL;
}
