/* What all kinds of entries share: how a failure is told, what a name means, and what a file gets beside its content
   (owner, mode, attributes, times). Everything here is a part of unpack.c. */
#ifndef CRUNGO_UNPACK_ENTRY_H
#define CRUNGO_UNPACK_ENTRY_H

#include "unpack.h"
#include "unpack_tree.h"

#include <archive.h>
#include <archive_entry.h>
#include <stdarg.h>

#define TIMES_LIMIT (40u << 20) /* bytes kept for the times of directories; a hostile million of them must not grow us */

struct unpacker
{
  struct tree tree;
  struct archive *archive;
  struct archive_entry *entry; /* the one that is being made */
  struct crungo_unpack_result *result;
  ssize_t (*read) (void *context, const void **block);
  void *context;
  bool user_xattrs;
  bool any_bytes;
  bool default_acl; /* the archive set one: modes given at creation may come out changed */
  char *times;      /* struct directory_time and its name's tail, one after the other */
  size_t times_size, times_room;
  char last_time[TREE_PATH]; /* the name that was added last: the next shares a prefix with it */
};

/* A directory's modification time, to be set when nothing is added to it any more. Its path is the previous record's
   first `shared` bytes and `tail` bytes that follow. */
struct directory_time
{
  uint64_t inode;
  int64_t seconds;
  uint32_t nanoseconds;
  uint16_t shared, tail;
};

/* An entry as it is to be made: its place, and what it gets. */
struct place
{
  struct tree_directory *parent; /* NULL: the entry is the root itself */
  char path[TREE_PATH];
  size_t parent_length;
  const char *name;
};

/* --- failures ---------------------------------------------------------------------------------------------------- */

__attribute__ ((format (printf, 3, 4))) static int
fail (struct unpacker *u, int error, const char *format, ...)
{
  va_list arguments;

  if (u->result->reason[0] != '\0')
    return -1; /* the first failure is the cause */
  va_start (arguments, format);
  vsnprintf (u->result->reason, sizeof (u->result->reason), format, arguments);
  va_end (arguments);
  u->result->error = error;
  return -1;
}

static int
fail_errno (struct unpacker *u, const char *what)
{
  int error = errno;
  return fail (u, error, "%s: %s", what, strerror (error));
}

/* --- names ------------------------------------------------------------------------------------------------------- */

/* Clean a name as docker and umoci do: no leading, doubled or trailing slashes, no "."; ".." takes the component before
   it away, by its letters. One that climbs above the root is refused, as docker refuses it: no honest tool writes it. */
static int
clean (struct unpacker *u, const char *raw, char path[TREE_PATH], const char *kind)
{
  size_t length = 0;

  for (const char *at = raw; *at != '\0';)
    {
      const char *end = strchrnul (at, '/');
      size_t size = (size_t) (end - at);
      if (size == 2 && at[0] == '.' && at[1] == '.')
        {
          if (length == 0)
            return fail (u, 0, "its %s climbs out of the layer", kind);
          while (length > 0 && path[--length] != '/')
            ;
        }
      else if (size > 0 && ! (size == 1 && at[0] == '.'))
        {
          if (length + size + 2 > TREE_PATH)
            return fail (u, 0, "its %s is longer than %d bytes", kind, TREE_PATH - 1);
          if (length > 0)
            path[length++] = '/';
          memcpy (path + length, at, size);
          length += size;
        }
      at = end + (*end == '/');
    }
  path[length] = '\0';
  return 0;
}

static void
split (struct place *place)
{
  char *slash = strrchr (place->path, '/');

  place->parent_length = slash != NULL ? (size_t) (slash - place->path) : 0;
  place->name = slash != NULL ? slash + 1 : place->path;
}

/* Find, or make, the directory that the entry goes into. */
static int
find_parent (struct unpacker *u, struct place *place)
{
  place->parent = tree_directory (&u->tree, place->path, place->parent_length, true);
  if (place->parent == NULL)
    return errno == ENOTDIR ? fail (u, 0, "its parent is not a directory") : fail_errno (u, "its parent directory");
  return 0;
}

/* --- what entries get -------------------------------------------------------------------------------------------- */

static int
owner (struct unpacker *u, struct archive_entry *entry, uid_t *uid, gid_t *gid)
{
  int64_t user = archive_entry_uid (entry), group = archive_entry_gid (entry);

  /* 2^32-1 is no owner: chown(2) reads it as "leave it". */
  if (user < 0 || user >= UINT32_MAX || group < 0 || group >= UINT32_MAX)
    return fail (u, 0, "its owner is out of range");
  *uid = (uid_t) user;
  *gid = (gid_t) group;
  return 0;
}

static struct timespec
modified (struct archive_entry *entry)
{
  struct timespec time = { .tv_sec = archive_entry_mtime (entry), .tv_nsec = archive_entry_mtime_nsec (entry) };

  /* libarchive reads "-1.25" as -1 and +0.25 seconds. */
  if (time.tv_sec < 0 && time.tv_nsec > 0)
    time = (struct timespec) { .tv_sec = time.tv_sec - 1, .tv_nsec = 1000000000 - time.tv_nsec };
  return time;
}

/* The access time is the modification time where the archive has none: layers must not differ by when they came. */
static void
both_times (struct archive_entry *entry, struct timespec times[2])
{
  times[1] = modified (entry);
  times[0] = times[1];
  if (archive_entry_atime_is_set (entry) && archive_entry_atime (entry) > 0)
    times[0] = (struct timespec) { .tv_sec = archive_entry_atime (entry), .tv_nsec = archive_entry_atime_nsec (entry) };
}

/* Attributes that are not the archive's to give: overlay's own, which would let it hide or redirect what lower layers
   have, and security labels, which are the host's policy. */
static bool
dropped (const char *name)
{
  return strncmp (name, "trusted.overlay.", 16) == 0 || strncmp (name, "user.overlay.", 13) == 0
         || strcmp (name, "security.selinux") == 0 || name[0] == '\0';
}

/* Set the entry's extended attributes on `fd`, or where that is negative on `name` (no link followed) in `parent`. */
static int
set_xattrs (struct unpacker *u, struct archive_entry *entry, int fd, int parent, const char *name)
{
  const char *key;
  const void *value;
  size_t size;

  if (archive_entry_xattr_reset (entry) == 0)
    return 0;
  /* There is no lsetxattrat(2) before Linux 6.13: come to the name. Nothing else here uses the working directory. */
  if (fd < 0 && fchdir (parent) < 0)
    return fail_errno (u, "its parent directory");
  while (archive_entry_xattr_next (entry, &key, &value, &size) == ARCHIVE_OK && key != NULL)
    {
      if (dropped (key))
        continue;
      if ((fd >= 0 ? fsetxattr (fd, key, value, size, 0) : lsetxattr (name, key, value, size, 0)) == 0)
        {
          u->default_acl = u->default_acl || strcmp (key, "system.posix_acl_default") == 0;
          continue;
        }
      /* As docker does: what the file system cannot hold, or the kernel forbids on this kind of file or to this user,
         is left out. */
      if (errno == EOPNOTSUPP || (errno == EPERM && (u->user_xattrs || strncmp (key, "user.", 5) == 0)))
        continue;
      return fail (u, errno, "its extended attribute %.64s: %s", key, strerror (errno));
    }
  return 0;
}

/* Owner, mode bits that creation does not give, attributes and times of what is not a file or directory. */
static int
finish_special (struct unpacker *u, struct archive_entry *entry, struct place *place, bool link)
{
  struct timespec times[2];
  uid_t uid = 0;
  gid_t gid = 0;
  mode_t mode = archive_entry_perm (entry);

  if (owner (u, entry, &uid, &gid) < 0)
    return -1;
  if ((uid != 0 || gid != 0 || ! place->parent->plain)
      && fchownat (place->parent->fd, place->name, uid, gid, AT_SYMLINK_NOFOLLOW) < 0)
    return fail_errno (u, "its owner");
  if (! link && ((mode & (S_ISUID | S_ISGID)) || u->default_acl)
      && fchmodat (place->parent->fd, place->name, mode, 0) < 0)
    return fail_errno (u, "its mode");
  if (set_xattrs (u, entry, -1, place->parent->fd, place->name) < 0)
    return -1;
  both_times (entry, times);
  if (utimensat (place->parent->fd, place->name, times, AT_SYMLINK_NOFOLLOW) < 0)
    return fail_errno (u, "its times");
  return 0;
}

/* --- the times of directories ------------------------------------------------------------------------------------ */

/* Keep a directory's time for the end. */
static int
keep_time (struct unpacker *u, struct archive_entry *entry, const char *path, ino_t inode)
{
  struct timespec time = modified (entry);
  struct directory_time record = { .inode = inode, .seconds = time.tv_sec, .nanoseconds = (uint32_t) time.tv_nsec };
  size_t length = strlen (path), shared = 0;

  while (shared < length && path[shared] == u->last_time[shared])
    shared++;
  record.shared = (uint16_t) shared;
  record.tail = (uint16_t) (length - shared);
  size_t need = u->times_size + sizeof (record) + record.tail;
  if (need > TIMES_LIMIT)
    return fail (u, 0, "it is one directory too many");
  if (need > u->times_room)
    {
      size_t room = need + need / 2 + 4096;
      char *grown = realloc (u->times, room);
      if (grown == NULL)
        return fail_errno (u, "remembering it");
      u->times = grown;
      u->times_room = room;
    }
  memcpy (u->times + u->times_size, &record, sizeof (record));
  memcpy (u->times + u->times_size + sizeof (record), path + shared, record.tail);
  memcpy (u->last_time, path, length + 1);
  u->times_size = need;
  return 0;
}

/* A directory that no entry spoke of: it has the time of the entry that it was made for, so that unpacking an archive
   twice gives the same. An entry of its own, should one follow, has the last word. */
static int
keep_implied_time (void *context, const char *path, ino_t inode)
{
  struct unpacker *u = context;

  return keep_time (u, u->entry, path, inode);
}

/* Set the times of directories, in the archive's order, so that the last entry of a name wins. A directory that was
   replaced meanwhile, or is not at its path any more, is another one, and left alone. */
static int
set_kept_times (struct unpacker *u)
{
  char path[TREE_PATH] = "";

  for (size_t at = 0; at < u->times_size;)
    {
      struct directory_time record;
      struct stat status;
      memcpy (&record, u->times + at, sizeof (record));
      memcpy (path + record.shared, u->times + at + sizeof (record), record.tail);
      path[record.shared + record.tail] = '\0';
      at += sizeof (record) + record.tail;

      struct timespec time = { .tv_sec = record.seconds, .tv_nsec = record.nanoseconds };
      int fd = tree_open (&u->tree, path, O_RDONLY | O_DIRECTORY);
      if (fd < 0 && (errno == ENOENT || errno == ENOTDIR || errno == ELOOP))
        continue;
      if (fd < 0 || fstat (fd, &status) < 0
          || (status.st_ino == record.inode && futimens (fd, (struct timespec[2]) { time, time }) < 0))
        {
          snprintf (u->result->name, sizeof (u->result->name), "%s", path);
          fail_errno (u, "its times");
          if (fd >= 0)
            close (fd);
          return -1;
        }
      close (fd);
    }
  return 0;
}

#endif
