/* The tree that is being unpacked: finding, making and clearing directories without ever leaving its root.

   Invariant: every descriptor here is of a directory below the root, reached without the kernel following any symbolic
   link. Links of the archive are followed by hand, component by component, with the root as "/" and as the top of "..",
   so that confinement holds even where the process is not in a chroot. Nobody else changes the tree meanwhile. */
#ifndef CRUNGO_UNPACK_TREE_H
#define CRUNGO_UNPACK_TREE_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#define TREE_PATH 4096 /* PATH_MAX: a path with its final NUL */
#define TREE_CACHE 16
#define TREE_LINKS 40 /* MAXSYMLINKS of the kernel */
#define TREE_STEPS 4096 /* components of a path, and of the links on its way */

struct tree_directory
{
  int fd;          /* O_PATH; -1: the slot is free */
  bool plain;      /* what is created here belongs to 0:0: group 0, not setgid */
  uint64_t used;   /* the clock of the last use */
  size_t length;   /* of path */
  char *path;      /* as the archive says it, cleaned: the key */
  char *canonical; /* the same directory, without symbolic links on the way */
};

struct tree
{
  int root;
  const char *opaque; /* the extended attribute that hides what is below a directory */
  bool stale;         /* a directory or link went away: the cache is dropped before it is used again */
  /* Told of each directory that is made because something is to be put into it; below zero stops the work. */
  int (*implied) (void *context, const char *canonical, ino_t inode);
  void *context;
  uint64_t clock;
  struct tree_directory cache[TREE_CACHE];
};

static inline bool
is_whiteout (const struct stat *status)
{
  return S_ISCHR (status->st_mode) && status->st_rdev == makedev (0, 0);
}

/* Open a path without links below the root; "" is the root itself. */
static int
tree_open (const struct tree *tree, const char *path, int flags)
{
  struct open_how how = { .flags = (uint64_t) flags | O_CLOEXEC | O_NOFOLLOW,
                          .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS };

  return (int) syscall (SYS_openat2, tree->root, path[0] ? path : ".", &how, sizeof (how));
}

static void
tree_start (struct tree *tree, int root, bool user_xattrs, int (*implied) (void *, const char *, ino_t), void *context)
{
  memset (tree, 0, sizeof (*tree));
  tree->root = root;
  tree->implied = implied;
  tree->context = context;
  tree->opaque = user_xattrs ? "user.overlay.opaque" : "trusted.overlay.opaque";
  for (int i = 0; i < TREE_CACHE; i++)
    tree->cache[i].fd = -1;
}

static void
drop_directory (struct tree_directory *directory)
{
  if (directory->fd >= 0)
    close (directory->fd);
  free (directory->path);
  free (directory->canonical);
  memset (directory, 0, sizeof (*directory));
  directory->fd = -1;
}

static void
tree_end (struct tree *tree)
{
  for (int i = 0; i < TREE_CACHE; i++)
    drop_directory (&tree->cache[i]);
  tree->stale = false;
}

static int
make_opaque (const struct tree *tree, int parent, const char *name)
{
  int fd = openat (parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0)
    return -1;
  int status = fsetxattr (fd, tree->opaque, "y", 1, 0);
  int saved = errno;
  close (fd);
  errno = saved;
  return status;
}

/* Make a directory. Where the layer's own whiteout is in the way, both hold: what was below is hidden, and the
   directory is there, so it is opaque. `*existed`: a directory was there already, and is kept. */
static int
make_directory (struct tree *tree, int parent, const char *name, mode_t mode, bool *existed)
{
  struct stat status;

  *existed = false;
  if (mkdirat (parent, name, mode) == 0)
    return 0;
  if (errno != EEXIST || fstatat (parent, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
    return -1;
  if (S_ISDIR (status.st_mode))
    {
      *existed = true;
      return 0;
    }
  tree->stale = tree->stale || S_ISLNK (status.st_mode);
  if (unlinkat (parent, name, 0) < 0 || mkdirat (parent, name, mode) < 0)
    return -1;
  return is_whiteout (&status) ? make_opaque (tree, parent, name) : 0;
}

/* Remove the directory `name` and all in it, in bounded stack and descriptors however deep it is. */
static int
remove_directory (int parent, const char *name)
{
  struct level
  {
    struct level *up;
    char name[];
  } *levels = NULL;
  int status = -1;
  int at = openat (parent, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
  const char *next = name;

  while (at >= 0)
    {
      if (next != NULL)
        { /* Down into next. */
          struct level *level = malloc (sizeof (*level) + strlen (next) + 1);
          if (level == NULL)
            break;
          strcpy (level->name, next);
          level->up = levels;
          levels = level;
          int below = openat (at, level->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
          close (at);
          at = below;
          if (at < 0)
            break;
          next = NULL;
        }
      int listed = openat (at, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
      DIR *listing = listed < 0 ? NULL : fdopendir (listed);
      if (listing == NULL)
        {
          if (listed >= 0)
            close (listed);
          break;
        }
      static __thread char below[NAME_MAX + 1];
      struct dirent *item;
      bool failed = false;
      while (! failed && next == NULL && (errno = 0, item = readdir (listing)) != NULL)
        {
          if (strcmp (item->d_name, ".") == 0 || strcmp (item->d_name, "..") == 0)
            continue;
          if (unlinkat (at, item->d_name, 0) == 0)
            continue;
          if (errno == EISDIR)
            next = strcpy (below, item->d_name);
          else
            failed = true;
        }
      failed = failed || (next == NULL && errno != 0);
      int saved = errno;
      closedir (listing);
      errno = saved;
      if (failed)
        break;
      if (next == NULL)
        { /* Empty: up, and away with it. Nobody moves directories meanwhile, so that ".." is where we came from. */
          struct level *level = levels;
          int above = openat (at, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
          close (at);
          at = above;
          if (at < 0 || unlinkat (at, level->name, AT_REMOVEDIR) < 0)
            break;
          levels = level->up;
          free (level);
          if (levels == NULL)
            {
              status = 0;
              break;
            }
        }
    }
  int saved = errno;
  if (at >= 0)
    close (at);
  while (levels != NULL)
    {
      struct level *level = levels;
      levels = level->up;
      free (level);
    }
  errno = saved;
  return status;
}

/* Remove whatever `name` is, so that an entry can take its place. */
static int
clear_way (struct tree *tree, int parent, const char *name)
{
  struct stat status;

  if (fstatat (parent, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
    return -1;
  tree->stale = tree->stale || S_ISDIR (status.st_mode) || S_ISLNK (status.st_mode);
  return S_ISDIR (status.st_mode) ? remove_directory (parent, name) : unlinkat (parent, name, 0);
}

/* Add `path` to the cache with its descriptor, which the cache then owns; NULL on failure. */
static struct tree_directory *
remember (struct tree *tree, const char *path, size_t length, const char *canonical, int fd)
{
  struct tree_directory *slot = &tree->cache[0];
  struct stat status;

  for (int i = 0; i < TREE_CACHE; i++)
    if (tree->cache[i].used < slot->used)
      slot = &tree->cache[i];
  drop_directory (slot);
  slot->fd = fd;
  slot->path = strndup (path, length);
  slot->canonical = strdup (canonical);
  if (slot->path == NULL || slot->canonical == NULL || fstat (fd, &status) < 0)
    {
      drop_directory (slot);
      return NULL;
    }
  slot->length = length;
  slot->plain = status.st_gid == 0 && ! (status.st_mode & S_ISGID);
  slot->used = ++tree->clock;
  return slot;
}

static struct tree_directory *
recall (struct tree *tree, const char *path, size_t length)
{
  for (int i = 0; i < TREE_CACHE; i++)
    {
      struct tree_directory *slot = &tree->cache[i];
      if (slot->fd >= 0 && slot->length == length && memcmp (slot->path, path, length) == 0)
        {
          slot->used = ++tree->clock;
          return slot;
        }
    }
  return NULL;
}

/* Replace the first `skip` bytes of `pending` by `target`; false: too long. */
static bool
put_before (char pending[TREE_PATH], size_t skip, const char *target, size_t length)
{
  size_t rest = strlen (pending + skip);

  if (length + 1 + rest >= TREE_PATH)
    return false;
  memmove (pending + length + 1, pending + skip, rest + 1);
  memcpy (pending, target, length);
  pending[length] = '/';
  return true;
}

/* One component below `fd`: open it, or make it, and then `*made`. Returns a descriptor, and its status. */
static int
enter (struct tree *tree, int fd, const char *name, bool create, struct stat *status, bool *made)
{
  *made = false;
  int next = openat (fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
  if (next >= 0 && fstat (next, status) == 0 && ! is_whiteout (status))
    return next;
  if (next >= 0)
    {
      close (next);
      errno = ENOENT; /* the layer's own whiteout: not there, as far as the layer says */
    }
  bool existed;
  if (errno != ENOENT || ! create || make_directory (tree, fd, name, 0755, &existed) < 0)
    return -1;
  next = openat (fd, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (next < 0)
    return -1;
  /* Above it may be a setgid directory, or one with a default ACL. */
  if (fstat (next, status) < 0 || (status->st_gid != 0 && fchownat (fd, name, 0, 0, AT_SYMLINK_NOFOLLOW) < 0)
      || ((status->st_mode & 07777) != 0755 && fchmodat (fd, name, 0755, 0) < 0))
    {
      close (next);
      return -1;
    }
  *made = true;
  return next;
}

/* Walk a path by hand, following links inside the root and, with `create`, making what is missing (0755, owned by
   0:0). Returns an O_PATH descriptor of a directory and its canonical path. An entry of a kilobyte can ask for this, with
   forty links of a page each on its way: each step costs the same, and their number has a limit. */
static int
walk (struct tree *tree, const char *path, size_t length, bool create, char canonical[TREE_PATH])
{
  char pending[TREE_PATH], target[TREE_PATH];
  int links = 0, steps = 0;
  int fd = tree_open (tree, "", O_PATH | O_DIRECTORY);

  memcpy (pending, path, length);
  pending[length] = '\0';
  canonical[0] = '\0';
  while (fd >= 0 && pending[0] != '\0')
    {
      char *end = strchrnul (pending, '/');
      size_t skip = (size_t) (end - pending) + (*end == '/');
      size_t size = (size_t) (end - pending);
      char name[NAME_MAX + 1];
      struct stat status;
      bool made;
      int next;

      if (size > NAME_MAX || ++steps > TREE_STEPS)
        {
          errno = size > NAME_MAX ? ENAMETOOLONG : ELOOP;
          break;
        }
      memcpy (name, pending, size);
      name[size] = '\0';
      if (size == 0 || strcmp (name, ".") == 0)
        {
          memmove (pending, pending + skip, strlen (pending + skip) + 1);
          continue;
        }
      if (strcmp (name, "..") == 0)
        {
          char *slash = strrchr (canonical, '/');
          /* Below the root, where it is another directory of the tree. */
          next = openat (fd, canonical[0] ? ".." : ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
          *(slash != NULL ? slash : canonical) = '\0';
        }
      else
        {
          size_t used = strlen (canonical);
          next = enter (tree, fd, name, create, &status, &made);
          if (next >= 0 && S_ISLNK (status.st_mode))
            {
              ssize_t got = readlinkat (next, "", target, sizeof (target));
              close (next);
              bool fits = got >= 0 && put_before (pending, skip, target, (size_t) got);
              if (! fits || ++links > TREE_LINKS)
                {
                  errno = got < 0 ? errno : fits ? ELOOP : ENAMETOOLONG;
                  break;
                }
              if (target[0] == '/')
                {
                  canonical[0] = '\0';
                  close (fd);
                  fd = tree_open (tree, "", O_PATH | O_DIRECTORY);
                }
              continue;
            }
          if (next >= 0 && (! S_ISDIR (status.st_mode) || used + size + 2 > TREE_PATH))
            {
              close (next);
              next = -1;
              errno = S_ISDIR (status.st_mode) ? ENAMETOOLONG : ENOTDIR;
            }
          if (next >= 0)
            snprintf (canonical + used, TREE_PATH - used, "%s%s", used ? "/" : "", name);
          if (next >= 0 && made && tree->implied (tree->context, canonical, status.st_ino) < 0)
            {
              close (next);
              next = -1;
            }
        }
      if (next < 0)
        break;
      close (fd);
      fd = next;
      memmove (pending, pending + skip, strlen (pending + skip) + 1);
    }
  if (fd >= 0 && pending[0] != '\0')
    {
      int saved = errno;
      close (fd);
      errno = saved;
      return -1;
    }
  return fd;
}

/* The directory of a cleaned path ("" is the root), made where it is missing if `create`; NULL with errno. It stays
   valid until the tree's next call. */
static struct tree_directory *
tree_directory (struct tree *tree, const char *path, size_t length, bool create)
{
  if (tree->stale)
    tree_end (tree);
  struct tree_directory *found = recall (tree, path, length);
  if (found != NULL)
    return found;

  char canonical[TREE_PATH];
  if (length >= TREE_PATH)
    {
      errno = ENAMETOOLONG;
      return NULL;
    }
  memcpy (canonical, path, length);
  canonical[length] = '\0';
  int fd = tree_open (tree, canonical, O_PATH | O_DIRECTORY);
  if (fd < 0)
    fd = walk (tree, path, length, create, canonical);
  return fd < 0 ? NULL : remember (tree, path, length, canonical, fd);
}

#endif
