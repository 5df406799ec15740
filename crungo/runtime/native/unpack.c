/* The entries of a layer's archive become files.

   The rules are those of the OCI image specification (layer.md), and where it is silent, of the tools that people
   compare with (umoci, docker). Each layer is unpacked alone into its own directory, so that what an archive says
   about lower layers (whiteouts, opaque directories) is written down in overlay's own terms: a 0:0 character device
   hides a name, an extended attribute hides what a directory had.

   Few system calls a file: open, write, utimensat, close, where it belongs to root and has no attributes. */
#define _GNU_SOURCE
#include "unpack.h"
#include "unpack_entry.h"

#include <locale.h>

#define WHITEOUT ".wh."
#define WHITEOUT_META ".wh..wh." /* what aufs kept for itself; only .opq of it means anything */
#define WHITEOUT_OPAQUE ".wh..wh..opq"

/* --- kinds of entries -------------------------------------------------------------------------------------------- */

static int
write_content (struct unpacker *u, struct archive_entry *entry, int fd)
{
  int64_t size = archive_entry_size (entry), end = 0, offset;
  const void *block;
  size_t length;
  int status = ARCHIVE_EOF;

  while (size > 0 && (status = archive_read_data_block (u->archive, &block, &length, &offset)) == ARCHIVE_OK)
    {
      if (offset < 0 || offset > size || (int64_t) length > size - offset)
        return fail (u, 0, "it has data beyond its size");
      for (size_t done = 0; done < length;)
        {
          ssize_t n = pwrite (fd, (const char *) block + done, length - done, offset + (int64_t) done);
          if (n < 0 && errno != EINTR)
            return fail_errno (u, "its content");
          done += n > 0 ? (size_t) n : 0;
        }
      if (length > 0 && offset + (int64_t) length > end)
        end = offset + (int64_t) length;
    }
  if (status != ARCHIVE_EOF)
    return fail (u, 0, "%s", archive_error_string (u->archive) ?: "its content is damaged");
  if (end < size && ftruncate (fd, size) < 0) /* it ends with a hole */
    return fail_errno (u, "its size");
  return 0;
}

static int
make_file (struct unpacker *u, struct archive_entry *entry, struct place *place)
{
  const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  struct tree_directory *parent = place->parent;
  mode_t mode = archive_entry_perm (entry);
  struct timespec times[2];
  uid_t uid = 0;
  gid_t gid = 0;

  if (owner (u, entry, &uid, &gid) < 0)
    return -1;
  int fd = openat (parent->fd, place->name, flags, mode);
  if (fd < 0 && errno == EEXIST && clear_way (&u->tree, parent->fd, place->name) == 0)
    fd = openat (parent->fd, place->name, flags, mode);
  if (fd < 0)
    return fail_errno (u, "creating it");

  int status = write_content (u, entry, fd);
  if (status == 0 && (uid != 0 || gid != 0 || ! parent->plain) && fchown (fd, uid, gid) < 0)
    status = fail_errno (u, "its owner");
  /* chown(2) and write(2) may take setuid and setgid away: the mode comes after both. */
  if (status == 0 && ((mode & (S_ISUID | S_ISGID)) || u->default_acl) && fchmod (fd, mode) < 0)
    status = fail_errno (u, "its mode");
  /* After chown, which removes security.capability. */
  if (status == 0)
    status = set_xattrs (u, entry, fd, -1, NULL);
  both_times (entry, times);
  if (status == 0 && futimens (fd, times) < 0)
    status = fail_errno (u, "its times");
  if (close (fd) < 0 && status == 0)
    status = fail_errno (u, "its content");
  return status;
}

/* Owner, mode, attributes of an open directory, and its time for the end. */
static int
finish_directory (struct unpacker *u, struct archive_entry *entry, const char *canonical, int fd)
{
  struct stat status;
  uid_t uid = 0;
  gid_t gid = 0;

  if (owner (u, entry, &uid, &gid) < 0)
    return -1;
  if (fstat (fd, &status) < 0)
    return fail_errno (u, "its status");
  if ((status.st_uid != uid || status.st_gid != gid) && fchown (fd, uid, gid) < 0)
    return fail_errno (u, "its owner");
  if (((status.st_mode ^ archive_entry_perm (entry)) & 07777 || status.st_uid != uid || status.st_gid != gid)
      && fchmod (fd, archive_entry_perm (entry)) < 0)
    return fail_errno (u, "its mode");
  if (set_xattrs (u, entry, fd, -1, NULL) < 0)
    return -1;
  return keep_time (u, entry, canonical, status.st_ino);
}

static int
finish_opened (struct unpacker *u, struct archive_entry *entry, const char *canonical, int fd)
{
  if (fd < 0)
    return fail_errno (u, "opening it");
  int status = finish_directory (u, entry, canonical, fd);
  close (fd);
  return status;
}

static int
make_directory_entry (struct unpacker *u, struct archive_entry *entry, struct place *place)
{
  struct tree_directory *parent = place->parent;
  char canonical[TREE_PATH];
  bool existed;

  int length = snprintf (canonical, sizeof (canonical), "%s%s%s", parent->canonical, parent->canonical[0] ? "/" : "",
                         place->name);
  if (length >= (int) sizeof (canonical))
    return fail (u, 0, "its place is deeper than %d bytes", TREE_PATH - 1);
  if (make_directory (&u->tree, parent->fd, place->name, archive_entry_perm (entry), &existed) < 0)
    return fail_errno (u, "creating it");
  /* What the cache knows of it may change now: its group, its setgid bit. */
  u->tree.stale = u->tree.stale || existed;
  int fd = openat (parent->fd, place->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  return finish_opened (u, entry, canonical, fd);
}

static int
make_symlink (struct unpacker *u, struct archive_entry *entry, struct place *place)
{
  const char *target = archive_entry_symlink (entry);

  if (target == NULL || target[0] == '\0')
    return fail (u, 0, "it is a symbolic link to nowhere");
  int status = symlinkat (target, place->parent->fd, place->name);
  if (status < 0 && errno == EEXIST && clear_way (&u->tree, place->parent->fd, place->name) == 0)
    status = symlinkat (target, place->parent->fd, place->name);
  return status < 0 ? fail_errno (u, "creating it") : finish_special (u, entry, place, true);
}

/* Devices and pipes. A 0:0 character device is overlay's whiteout and is made as one: archives that carry one come from
   images that hold unpacked layers themselves; docker and podman do the same, and refusing it would refuse those. It
   can hide nothing that a whiteout entry of the same archive could not. */
static int
make_special (struct unpacker *u, struct archive_entry *entry, struct place *place, mode_t type)
{
  int64_t major_ = type == S_IFIFO ? 0 : archive_entry_rdevmajor (entry);
  int64_t minor_ = type == S_IFIFO ? 0 : archive_entry_rdevminor (entry);
  dev_t device = makedev ((unsigned) major_, (unsigned) minor_);
  mode_t mode = type | archive_entry_perm (entry);

  /* The kernel's own limits: 12 and 20 bits (MKDEV). */
  if (major_ < 0 || major_ >= 1 << 12 || minor_ < 0 || minor_ >= 1 << 20)
    return fail (u, 0, "its device number is out of range");
  int status = mknodat (place->parent->fd, place->name, mode, device);
  if (status < 0 && errno == EEXIST && clear_way (&u->tree, place->parent->fd, place->name) == 0)
    status = mknodat (place->parent->fd, place->name, mode, device);
  if (status < 0 && errno == EPERM && type != S_IFIFO)
    return 0; /* the host's root alone makes devices, where they do nothing; docker leaves out what it may not make, too */
  return status < 0 ? fail_errno (u, "creating it") : finish_special (u, entry, place, false);
}

static int
make_hard_link (struct unpacker *u, struct archive_entry *entry, struct place *place)
{
  struct place target;
  struct stat status, taken;

  if (clean (u, archive_entry_hardlink (entry), target.path, "hard link's target") < 0)
    return -1;
  split (&target);
  target.parent = tree_directory (&u->tree, target.path, target.parent_length, false);
  if (target.parent == NULL || fstatat (target.parent->fd, target.name, &status, AT_SYMLINK_NOFOLLOW) < 0
      || is_whiteout (&status))
    return fail (u, 0, "it is a hard link to '%.400s', which the layer does not have before it", target.path);
  if (S_ISDIR (status.st_mode))
    return fail (u, 0, "it is a hard link to '%.400s', which is a directory", target.path);
  if (find_parent (u, place) < 0) /* again: finding the target may have renewed the cache */
    return -1;

  int parent = place->parent->fd;
  int made = linkat (target.parent->fd, target.name, parent, place->name, 0);
  if (made < 0 && errno == EEXIST && fstatat (parent, place->name, &taken, AT_SYMLINK_NOFOLLOW) == 0)
    {
      if (taken.st_ino == status.st_ino && taken.st_dev == status.st_dev)
        return 0; /* a link to itself, or the same link twice */
      if (clear_way (&u->tree, parent, place->name) == 0)
        made = linkat (target.parent->fd, target.name, parent, place->name, 0);
    }
  if (made < 0 && errno == ENOENT) /* it was inside what it replaces */
    return fail (u, 0, "it is a hard link to '%.400s', which it replaces", target.path);
  return made < 0 ? fail_errno (u, "creating the hard link") : 0;
}

/* --- whiteouts --------------------------------------------------------------------------------------------------- */

static int
make_opaque_parent (struct unpacker *u, struct place *place)
{
  if (place->parent->canonical[0] == '\0') /* by whatever name */
    u->result->opaque_root = 1; /* overlay ignores the attribute on a layer's root: the engine stacks accordingly */
  return make_opaque (&u->tree, place->parent->fd, ".") < 0 ? fail_errno (u, "hiding lower layers") : 0;
}

/* Hide `hidden` of lower layers. What this layer has of that name itself stays, wherever in the archive it stands; a
   directory then is opaque. */
static int
make_whiteout (struct unpacker *u, struct place *place, const char *hidden)
{
  struct stat status;
  int parent = place->parent->fd;

  if (hidden[0] == '\0' || strcmp (hidden, ".") == 0 || strcmp (hidden, "..") == 0)
    return fail (u, 0, "it is a whiteout of nothing");
  if (mknodat (parent, hidden, S_IFCHR, makedev (0, 0)) == 0)
    {
      struct timespec times[2]; /* nobody sees them, but unpacking again must give the same */
      both_times (u->entry, times);
      return utimensat (parent, hidden, times, AT_SYMLINK_NOFOLLOW) < 0 ? fail_errno (u, "its times") : 0;
    }
  if (errno != EEXIST || fstatat (parent, hidden, &status, AT_SYMLINK_NOFOLLOW) < 0)
    return fail_errno (u, "creating the whiteout");
  if (S_ISDIR (status.st_mode) && make_opaque (&u->tree, parent, hidden) < 0)
    return fail_errno (u, "hiding lower layers");
  return 0;
}

/* Whether a component before the last one is a whiteout's name: 1 for aufs's own, -1 for others. */
static int
whiteout_on_the_way (const struct place *place)
{
  for (const char *at = place->path; at < place->name; at = strchr (at, '/') + 1)
    {
      if (strncmp (at, WHITEOUT_META, strlen (WHITEOUT_META)) == 0)
        return 1;
      if (strncmp (at, WHITEOUT, strlen (WHITEOUT)) == 0)
        return -1;
    }
  return 0;
}

/* --- the archive ------------------------------------------------------------------------------------------------- */

static int
extract_kind (struct unpacker *u, struct archive_entry *entry, struct place *place, const char *raw)
{
  mode_t type = archive_entry_filetype (entry);

  if (archive_entry_hardlink (entry) != NULL)
    return make_hard_link (u, entry, place);
  /* Old archives have no type for directories, only the slash. */
  if (type == AE_IFREG && archive_entry_size (entry) == 0 && raw[strlen (raw) - 1] == '/')
    type = AE_IFDIR;
  switch (type)
    {
    case AE_IFREG:
      return make_file (u, entry, place);
    case AE_IFDIR:
      return make_directory_entry (u, entry, place);
    case AE_IFLNK:
      return make_symlink (u, entry, place);
    case AE_IFCHR:
      return make_special (u, entry, place, S_IFCHR);
    case AE_IFBLK:
      return make_special (u, entry, place, S_IFBLK);
    case AE_IFIFO:
      return make_special (u, entry, place, S_IFIFO);
    case AE_IFSOCK:
      return 0; /* means nothing without the process that bound it */
    default:
      return fail (u, 0, "it is of an unknown kind");
    }
}

static int
extract (struct unpacker *u, struct archive_entry *entry)
{
  const char *raw = archive_entry_pathname (entry);
  struct place place;

  if (raw == NULL || raw[0] == '\0')
    return fail (u, 0, "an entry has no name");
  snprintf (u->result->name, sizeof (u->result->name), "%s", raw);
  if (clean (u, raw, place.path, "name") < 0)
    return -1;
  split (&place);
  if (place.path[0] == '\0')
    {
      if (archive_entry_hardlink (entry) != NULL || archive_entry_filetype (entry) != AE_IFDIR)
        return fail (u, 0, "it names the layer's root and is not a directory");
      u->tree.stale = true;
      return finish_opened (u, entry, "", tree_open (&u->tree, "", O_RDONLY | O_DIRECTORY));
    }
  int on_the_way = whiteout_on_the_way (&place);
  if (on_the_way < 0)
    return fail (u, 0, "it is inside a whiteout");
  bool meta = strncmp (place.name, WHITEOUT_META, strlen (WHITEOUT_META)) == 0;
  if (on_the_way > 0 || (meta && strcmp (place.name, WHITEOUT_OPAQUE) != 0))
    return 0;
  if (find_parent (u, &place) < 0)
    return -1;
  if (meta)
    return make_opaque_parent (u, &place);
  if (strncmp (place.name, WHITEOUT, strlen (WHITEOUT)) == 0)
    return make_whiteout (u, &place, place.name + strlen (WHITEOUT));
  return extract_kind (u, entry, &place, raw);
}

static ssize_t
next_block (struct archive *archive, void *data, const void **block)
{
  struct unpacker *u = data;

  (void) archive;
  ssize_t length = u->read (u->context, block);
  u->any_bytes = u->any_bytes || length > 0;
  if (length < 0)
    fail (u, 0, "the stream failed"); /* the reader knows why */
  return length;
}

/* Whether a warning is about characters only. Names are bytes here: in the C locale libarchive warns of those that are
   not ASCII and then gives the bytes, which is what is wanted. Other warnings mean that something was ignored. */
static bool
harmless (struct archive *archive)
{
  const char *text = archive_error_string (archive);

  return text != NULL && strstr (text, "converted from") != NULL;
}

/* The root has the time of the first entry, or of its own. */
static int
keep_root_time (struct unpacker *u, struct archive_entry *entry)
{
  struct stat status;

  return fstat (u->tree.root, &status) < 0 ? fail_errno (u, "its status") : keep_time (u, entry, "", status.st_ino);
}

static int
extract_all (struct unpacker *u, struct archive_entry *entry)
{
  for (;;)
    {
      u->result->name[0] = '\0';
      int status = archive_read_next_header2 (u->archive, entry);
      if (status == ARCHIVE_EOF)
        return set_kept_times (u);
      if (status != ARCHIVE_OK && ! (status == ARCHIVE_WARN && harmless (u->archive)))
        {
          if (status == ARCHIVE_WARN && archive_entry_pathname (entry) != NULL)
            snprintf (u->result->name, sizeof (u->result->name), "%s", archive_entry_pathname (entry));
          return fail (u, 0, "%s", archive_error_string (u->archive) ?: "the archive is damaged");
        }
      if (u->result->entries++ == 0 && keep_root_time (u, entry) < 0)
        return -1;
      if (extract (u, entry) < 0)
        return -1;
    }
}

int
crungo_unpack (int root, int user_xattrs, ssize_t (*read) (void *context, const void **block), void *context,
               struct crungo_unpack_result *result)
{
  struct unpacker u = { .result = result, .read = read, .context = context, .user_xattrs = user_xattrs };
  struct archive_entry *entry = archive_entry_new ();
  int status = -1;

  memset (result, 0, sizeof (*result));
  u.entry = entry;
  tree_start (&u.tree, root, user_xattrs, keep_implied_time, &u);
  u.archive = archive_read_new ();
  /* In a UTF-8 locale libarchive would normalise names: "e" and an accent would become one character. */
  locale_t bytes = newlocale (LC_ALL_MASK, "C", (locale_t) 0);
  if (u.archive == NULL || entry == NULL || bytes == (locale_t) 0)
    fail (&u, ENOMEM, "not enough memory");
  else
    {
      locale_t before = uselocale (bytes);
      int opened = archive_read_support_format_tar (u.archive);
      if (opened == ARCHIVE_OK)
        opened = archive_read_open (u.archive, &u, NULL, next_block, NULL);
      if (opened == ARCHIVE_OK)
        status = extract_all (&u, entry);
      else if (! u.any_bytes && result->reason[0] == '\0')
        status = 0; /* an empty stream is an empty layer */
      else
        fail (&u, 0, "%s", archive_error_string (u.archive) ?: "the archive cannot be read");
      archive_read_free (u.archive);
      u.archive = NULL;
      uselocale (before);
    }
  if (status == 0 && result->entries == 0 && utimensat (root, ".", (struct timespec[2]) { { 0 }, { 0 } }, 0) < 0)
    status = fail_errno (&u, "the time of its root");
  if (bytes != (locale_t) 0)
    freelocale (bytes);
  if (u.archive != NULL)
    archive_read_free (u.archive);
  archive_entry_free (entry);
  tree_end (&u.tree);
  free (u.times);
  return status;
}
