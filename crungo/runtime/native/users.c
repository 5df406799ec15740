#define _GNU_SOURCE
#include "users.h"

#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#define MAXIMUM_ID ((UINT64_C (1) << 32) - 2) /* the last one is (uid_t) -1, which means "no change" */
#define FIELDS 6

/* Bytes of a file that is never copied.  */
struct span
{
  const char *at;
  size_t size;
};

static bool
is (struct span span, struct span other)
{
  return span.size == other.size && memcmp (span.at, other.at, span.size) == 0;
}

/* What comes before the next separator, which is taken off REST together with it; false after the last.  */
static bool
next (struct span *rest, char separator, struct span *part)
{
  const char *end;

  if (rest->at == NULL)
    return false;
  end = memchr (rest->at, separator, rest->size);
  part->at = rest->at;
  part->size = end == NULL ? rest->size : (size_t) (end - rest->at);
  if (end == NULL)
    *rest = (struct span){ NULL, 0 };
  else
    *rest = (struct span){ end + 1, rest->size - part->size - 1 };
  return true;
}

static bool
is_space (char c)
{
  return c == ' ' || (c >= '\t' && c <= '\r');
}

static struct span
strip (struct span line)
{
  while (line.size > 0 && is_space (line.at[0]))
    line = (struct span){ line.at + 1, line.size - 1 };
  while (line.size > 0 && is_space (line.at[line.size - 1]))
    line.size--;
  return line;
}

static bool
is_number (struct span text)
{
  for (size_t i = 0; i < text.size; i++)
    if (text.at[i] < '0' || text.at[i] > '9')
      return false;
  return text.size > 0;
}

/* The value of a number of at most 20 digits or, where that is less, more than any id.  */
static uint64_t
value (struct span text)
{
  uint64_t number = 0;

  for (size_t i = 0; i < text.size && number <= MAXIMUM_ID; i++)
    number = number * 10 + (uint64_t) (text.at[i] - '0');
  return number;
}

static bool
read_id (struct span field, uint32_t *id)
{
  if (! is_number (field) || field.size > 10 || value (field) > MAXIMUM_ID)
    return false;
  *id = (uint32_t) value (field);
  return true;
}

/* The first fields of the next line that has as many as are needed and a name; false at the end of the file.  */
static bool
next_entry (struct span *rest, size_t needed, struct span fields[FIELDS])
{
  struct span line;

  while (next (rest, '\n', &line))
    {
      struct span left = strip (line);
      size_t n = 0;

      if (memchr (line.at, '\0', line.size) != NULL)
        continue;
      while (n < FIELDS && next (&left, ':', &fields[n]))
        n++;
      if (n < needed || fields[0].size == 0)
        continue;
      for (; n < FIELDS; n++)
        fields[n] = (struct span){ "", 0 };
      return true;
    }
  return false;
}

static bool
next_user (struct span *rest, struct span *name, uint32_t *uid, uint32_t *gid, struct span *home)
{
  struct span fields[FIELDS];

  while (next_entry (rest, 4, fields))
    if (read_id (fields[2], uid) && read_id (fields[3], gid))
      {
        *name = fields[0];
        *home = fields[5];
        return true;
      }
  return false;
}

static bool
next_group (struct span *rest, struct span *name, uint32_t *gid, struct span *members)
{
  struct span fields[FIELDS];

  while (next_entry (rest, 3, fields))
    if (read_id (fields[2], gid))
      {
        *name = fields[0];
        *members = fields[3];
        return true;
      }
  return false;
}

/* 1 with the id where the text is a number, 0 where it is a name, -1 where the number is out of range.  */
static int
given_id (struct span text, const char *what, uint32_t *id, struct crungo_failure *why)
{
  if (! is_number (text))
    return 0;
  if (text.size > 20 || value (text) > MAXIMUM_ID)
    return crungo_fail (why, CRUNGO_FAILURE_CONTAINER, "%s %.*s: out of range; ids go from 0 to %" PRIu64, what,
                        text.size > 40 ? 40 : (int) text.size, text.at, MAXIMUM_ID);
  *id = (uint32_t) value (text);
  return 1;
}

static int
resolve_group (struct span wanted, struct span file, uint32_t *gid, struct crungo_failure *why)
{
  struct span name, members;
  int given = given_id (wanted, "group", gid, why);

  if (given != 0)
    return given < 0 ? -1 : 0;
  while (next_group (&file, &name, gid, &members))
    if (is (name, wanted))
      return 0;
  return crungo_fail (why, CRUNGO_FAILURE_CONTAINER, "group \"%.*s\": no such group in the /etc/group of the container",
                      (int) wanted.size, wanted.at);
}

static int
add_group (struct crungo_user *user, uint32_t gid, struct crungo_failure *why)
{
  for (size_t i = 0; i < user->n_groups; i++)
    if (user->groups[i] == gid)
      return 0;
  if (user->n_groups == CRUNGO_GROUPS_MAX)
    return crungo_fail (why, CRUNGO_FAILURE_CONTAINER, "user: in more than %d groups of the container's /etc/group",
                        CRUNGO_GROUPS_MAX);
  user->groups[user->n_groups++] = gid;
  return 0;
}

static int
add_groups_of (struct span name, struct span file, struct crungo_user *user, struct crungo_failure *why)
{
  struct span group, members, member;
  uint32_t gid;

  while (next_group (&file, &group, &gid, &members))
    while (next (&members, ',', &member))
      if (is (member, name))
        {
          if (add_group (user, gid, why) < 0)
            return -1;
          break;
        }
  return 0;
}

static struct span
text_of (const char *string)
{
  return (struct span){ string, strlen (string) };
}

int
crungo_resolve_user (const char *user, const char *const *groups, size_t n_groups, const char *passwd,
                     size_t passwd_size, const char *group, size_t group_size, struct crungo_user *found,
                     struct crungo_failure *why)
{
  struct span passwd_file = { passwd, passwd_size };
  struct span group_file = { group, group_size };
  struct span rest = text_of (user == NULL ? "" : user);
  struct span wanted, wanted_group = { "", 0 }, name, home;
  struct span entry = { "", 0 };
  uint32_t uid, gid;
  int given = 1;

  next (&rest, ':', &wanted);
  if (rest.at != NULL)
    wanted_group = rest;
  found->uid = found->gid = 0; /* and not all of it: most of its pages are never touched */
  found->n_groups = 0;
  if (wanted.size > 0 && (given = given_id (wanted, "user", &found->uid, why)) < 0)
    return -1;
  while (entry.size == 0 && next_user (&passwd_file, &name, &uid, &gid, &home))
    if (given ? uid == found->uid : is (name, wanted))
      {
        entry = name;
        found->uid = uid;
        found->gid = gid;
      }
  if (! given && entry.size == 0)
    return crungo_fail (why, CRUNGO_FAILURE_CONTAINER,
                        "user \"%.*s\": no such user in the /etc/passwd of the container", (int) wanted.size,
                        wanted.at);
  if (wanted_group.size > 0 && resolve_group (wanted_group, group_file, &found->gid, why) < 0)
    return -1;
  /* The primary group is among the supplementary ones, so that a program which drops it through setgid cannot pass a
     check that denies the group something.  */
  if (add_group (found, found->gid, why) < 0)
    return -1;
  if (wanted_group.size == 0 && entry.size > 0 && add_groups_of (entry, group_file, found, why) < 0)
    return -1;
  for (size_t i = 0; i < n_groups; i++)
    if (resolve_group (text_of (groups[i]), group_file, &gid, why) < 0 || add_group (found, gid, why) < 0)
      return -1;
  return 0;
}

const char *
crungo_find_home (uint32_t uid, const char *passwd, size_t passwd_size, size_t *length)
{
  struct span file = { passwd, passwd_size }, name, home;
  uint32_t found, gid;

  while (next_user (&file, &name, &found, &gid, &home))
    if (found == uid)
      {
        *length = home.size;
        return home.size > 0 ? home.at : NULL;
      }
  return NULL;
}
