/* Who a container's process runs as: a user specification against the root's passwd and group files.

   The rules are those of moby's user package: a number is always an id and need not be listed; a name must be; the
   supplementary groups of the user's own entry count only where no group is given. Malformed lines are skipped, as glibc
   does. In C because the process that asks has one system call after another to make, and no time for an interpreter. */
#ifndef CRUNGO_USERS_H
#define CRUNGO_USERS_H

#include "failure.h"

#include <stddef.h>
#include <stdint.h>

#define CRUNGO_GROUPS_MAX 65536 /* NGROUPS_MAX: more cannot be set (setgroups(2)) */

struct crungo_user
{
  uint32_t uid;
  uint32_t gid;
  size_t n_groups;
  uint32_t groups[CRUNGO_GROUPS_MAX]; /* the first is gid */
};

/* Resolve `user[:group]` (NULL or empty: root) and further groups, each a name or a number, by the contents of the two
   files, of any form. 0, or -1 when a name is unknown, or an id out of range.  */
int crungo_resolve_user (const char *user, const char *const *groups, size_t n_groups, const char *passwd,
                         size_t passwd_size, const char *group, size_t group_size, struct crungo_user *found,
                         struct crungo_failure *why);

/* The home of a user: the sixth field of the first entry with this id. Not ended by a null byte; NULL where there is none.  */
const char *crungo_find_home (uint32_t uid, const char *passwd, size_t passwd_size, size_t *length);

#endif
