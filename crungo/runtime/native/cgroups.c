#define _GNU_SOURCE
#include "cgroups.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define ROOT "/sys/fs/cgroup"
#define MOST_TREES 64

static int opened[MOST_TREES];
static int n_opened;

int
crungo_has_cgroups_v1 (void)
{
  return access (ROOT "/cgroup.controllers", F_OK) < 0;
}

int
crungo_open_cgroup (const char *directory)
{
  char path[PATH_MAX];
  int fd;

  snprintf (path, sizeof (path), "%s/tasks", directory);
  fd = open (path, O_WRONLY | O_CLOEXEC);
  if (fd < 0 && errno == ENOENT)
    {
      snprintf (path, sizeof (path), "%s/cgroup.procs", directory); /* a tree of v2 beside those of v1 */
      fd = open (path, O_WRONLY | O_CLOEXEC);
    }
  if (fd < 0)
    return -1;
  if (n_opened == MOST_TREES)
    {
      close (fd);
      errno = E2BIG;
      return -1;
    }
  opened[n_opened++] = fd;
  return 0;
}

int
crungo_open_cgroups (const char *path)
{
  DIR *trees = opendir (ROOT);
  struct dirent *tree;
  int status = trees == NULL ? -1 : 0;

  while (status == 0 && (tree = readdir (trees)) != NULL)
    {
      char directory[PATH_MAX];

      if (tree->d_type != DT_DIR || tree->d_name[0] == '.') /* links lead to other entries */
        continue;
      snprintf (directory, sizeof (directory), ROOT "/%s%s", tree->d_name, path);
      if (crungo_open_cgroup (directory) < 0 && errno != ENOENT)
        status = -1;
    }
  if (trees != NULL)
    closedir (trees);
  return status;
}

int
crungo_enter_cgroups (void)
{
  int status = 0;

  for (int i = 0; i < n_opened; i++)
    {
      if (status == 0 && write (opened[i], "0", 1) != 1)
        status = -1;
      close (opened[i]);
    }
  n_opened = 0;
  return status;
}
