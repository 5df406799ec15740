/* What the spawner's children do to start a container or a further process in one: one call from fork to end, so that no
   Python runs in between. Each child has one thread, reports once, and ends. */
#ifndef CRUNGO_START_H
#define CRUNGO_START_H

#include "failure.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct custom_handler_manager_s;

struct crungo_file
{
  const char *name;
  const void *content;
  size_t size;
};

/* Paths are absolute. What only a container needs comes with `layers` or `rootfs`, the rest with `init`. */
struct crungo_start
{
  const char *id;
  const char *state_root; /* libcrun's state is below it */
  const char *directory;  /* of the container's own files */
  struct custom_handler_manager_s *handlers;
  const char *spec; /* the OCI runtime specification; of a further process, one with nothing but a process */
  const char *user; /* `user[:group]`, NULL or empty for root */
  const char *const *groups;
  size_t n_groups;
  bool terminal;
  bool debug;

  const char *const *layers; /* lowest first */
  size_t n_layers;
  const char *rootfs; /* a directory of the host, where there are no layers */
  const struct crungo_file *files; /* to make in `directory` */
  size_t n_files;
  bool await_command; /* the command comes later, by CRUNGO_COMMAND_FD */

  pid_t init;                    /* that of the running container */
  const char *const *hierarchies; /* roots of cgroup trees */
  size_t n_hierarchies;
  const char *cgroup;       /* the container's, below each root */
  const char *child_cgroup; /* below that, to be made */

  /* 0, 1, 2 are the container's own (never the user's), 3 tells of a failed exec (CRUNGO_STATUS_FD), 4 brings the command
     of a pooled container, 5 is the report to the spawner, 6 libcrun's log, perhaps. All others are closed, so that no
     container holds a descriptor of another. */
  const int *fds;
  size_t n_fds;
  pid_t spawner;         /* the child ends with it: nobody would own what it makes */
  uint64_t nofile[2];    /* RLIMIT_NOFILE, soft and hard, that the container inherits */
};

/* Fork the child that starts the process. Its process id, or -1 with errno.

   It sends one packet on descriptor 5: the kind of the failure or 0 for none, the process id or errno (two ints), and
   then the operation, the message and the hint of the failure, each ended by a null byte; or, after success, a pidfd of
   the process and, with a terminal, the PTY's master. */
pid_t crungo_start (const struct crungo_start *start);

#endif
