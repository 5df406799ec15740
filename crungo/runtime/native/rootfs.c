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

/* The options of the mount, and the descriptors that they name.

   Layers are named by descriptor, `fd/12`, relative to /proc/self: mount(2) takes one page of options, which full paths of
   some forty layers would already overflow, and a name like this holds neither `:` nor `,`.  */
struct options
{
  char text[4096]; /* a page, all that mount(2) takes */
  size_t length;
  int fds[2048]; /* more than the text has room for */
  size_t n_fds;
};

static int
add_directory (struct options *options, const char *before, const char *path)
{
  const size_t room = sizeof (options->text) - sizeof (",volatile") - options->length;
  int fd = open (path, O_PATH | O_DIRECTORY | O_CLOEXEC);
  size_t n;

  if (fd < 0)
    return -1;
  options->fds[options->n_fds++] = fd;
  n = (size_t) snprintf (options->text + options->length, room, "%sfd/%d", before, fd);
  if (n < room)
    {
      options->length += n;
      return 0;
    }
  errno = E2BIG;
  return -1;
}

static int
add_directories (struct options *options, const char *const *layers, size_t n_layers)
{
  for (size_t i = n_layers; i-- > 0;)
    if (add_directory (options, i == n_layers - 1 ? "lowerdir=" : ":", layers[i]) < 0)
      return -1;
  if (add_directory (options, ",upperdir=", "upper") < 0)
    return -1;
  return add_directory (options, ",workdir=", "work");
}

/* `volatile` leaves out every sync (kernel document filesystems/overlayfs): the upper directory dies with the container,
   and without it the kernel would write the whole file system back when the overlay is unmounted. Kernels before 5.10 do
   not know it; any other reason shows up again in the second try.  */
static int
mount_options (struct options *options, const char *target)
{
  char *end = options->text + options->length;

  strcpy (end, ",volatile");
  if (mount ("overlay", target, "overlay", 0, options->text) == 0)
    return 0;
  *end = '\0';
  return mount ("overlay", target, "overlay", 0, options->text);
}

static int
mount_overlay (const char *const *layers, size_t n_layers, const char *directory)
{
  struct options options = {};
  char target[4096];
  int here = open (".", O_PATH | O_DIRECTORY | O_CLOEXEC);
  int status;

  if (here < 0 || mkdir ("work", 0755) < 0 || make_upper (layers[n_layers - 1]) < 0
      || add_directories (&options, layers, n_layers) < 0)
    return -1;
  if (snprintf (target, sizeof (target), "%s/rootfs", directory) >= (int) sizeof (target))
    {
      errno = ENAMETOOLONG;
      return -1;
    }
  if (chdir ("/proc/self") < 0)
    return -1;
  status = mount_options (&options, target);
  if (status == 0)
    status = fchdir (here);
  for (size_t i = 0; i < options.n_fds; i++)
    close (options.fds[i]);
  close (here);
  return status;
}

/* What to do about it.  */
static const char *
hint_for (int number)
{
  switch (number)
    {
    case E2BIG:
      return "the image has more layers than a mount can name: build it with fewer";
    case EMFILE:
      return "it takes an open file for each layer of the image: raise the limit (ulimit -Hn, or LimitNOFILE= of a service)";
    case ENFILE:
      return "the host has as many files open as it may: sysctl fs.file-max";
    case ENODEV:
      return "the kernel has no overlay file system: load its module (modprobe overlay)";
    case ENOSPC:
    case EDQUOT:
      return "the store is full: `crungo system prune` removes what nothing uses";
    case EINVAL:
    case EOPNOTSUPP:
      return "the store must be on a file system that can hold an overlay's upper directory (ext4, xfs, tmpfs)";
    default:
      return "";
    }
}

int
crungo_mount_overlay (const char *const *layers, size_t n_layers, const char *directory, struct crungo_failure *why)
{
  if (mount_overlay (layers, n_layers, directory) == 0)
    return 0;
  snprintf (why->hint, sizeof (why->hint), "%s", hint_for (errno));
  return crungo_fail (why, CRUNGO_FAILURE_HOST, "mount the container's root: %s", strerror (errno));
}

int
crungo_mount_directory (const char *source, struct crungo_failure *why)
{
  if (mount (source, "rootfs", NULL, MS_BIND | MS_REC, NULL) == 0)
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
        return crungo_fail (why, CRUNGO_FAILURE_CONTAINER, "root file system: /%s cannot be made: %s", names[i],
                            strerror (errno));
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

/* All of an open file, in memory that grows with what is read: some files of /proc tell no size.  */
static char *
read_all (int fd, size_t *size)
{
  size_t room = 4096;
  char *content = malloc (room);

  /* Nothing where a read would wait for news, as of some files of /proc.  */
  for (ssize_t n = 1; content != NULL && n > 0; *size += n > 0 ? (size_t) n : 0)
    {
      if (*size == room)
        {
          char *more = realloc (content, room *= 4);

          if (more == NULL)
            free (content);
          content = more;
        }
      n = content == NULL || *size > CRUNGO_FILE_LIMIT ? 0 : read (fd, content + *size, room - *size);
    }
  return content;
}

char *
crungo_read_file (int root, const char *path, size_t *size, struct crungo_failure *why)
{
  int fd = open_regular (root, path);
  char *content;

  *size = 0;
  content = fd < 0 ? calloc (1, 1) : read_all (fd, size);
  if (fd >= 0)
    close (fd);
  if (content == NULL)
    crungo_fail_errno (why, path);
  if (content == NULL || *size <= CRUNGO_FILE_LIMIT)
    return content;
  free (content);
  crungo_fail (why, CRUNGO_FAILURE_CONTAINER, "/%s of the image is larger than %d MiB", path, CRUNGO_FILE_LIMIT >> 20);
  return NULL;
}
