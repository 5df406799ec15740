/* What a child of crungo-forks does to start a container or a further process in one, from its fork to its end. */
#ifndef CRUNGO_START_H
#define CRUNGO_START_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct crungo_file
{
  const char *name;
  const char *content;
  size_t size;
};

/* An order: what is to be started. Paths are absolute. What only a container needs comes with `layers` or `rootfs`, what
   only a further process needs with `init`. */
struct crungo_start
{
  const char *id;
  const char *directory; /* of the container's own files */
  const char *spec; /* the OCI runtime specification; of a further process, one with nothing but a process */
  const char *user; /* `user[:group]`, empty for root */
  const char *const *groups;
  size_t n_groups;
  uint64_t nofile[2]; /* RLIMIT_NOFILE, soft and hard, that the container inherits */
  bool terminal;
  bool debug;

  const char *const *layers; /* lowest first */
  size_t n_layers;
  const char *rootfs; /* a directory of the host, where there are no layers */
  const struct crungo_file *files; /* to make in `directory` */
  size_t n_files;
  bool await_command; /* the command comes later, by CRUNGO_COMMAND_FD */

  pid_t init;           /* that of the running container, 0 to start one */
  const char *container_cgroup; /* below the root of each tree */
  const char *cgroup;           /* to be made for the further process: its path */
  const char *below;            /* and its path below the container's, for libcrun to enter; empty on v1 */
};

/* Decode an order, which libcrun.py encodes. Its texts point into DATA. 0, or -1 when it is malformed. */
int crungo_decode_start (const char *data, size_t size, struct crungo_start *start);

/* The descriptors of an order. They become, in the child: 0, 1, 2, the container's own and never the user's;
   3 (CRUNGO_STATUS_FD) and 5 the report; 4 (CRUNGO_COMMAND_FD), which brings the command of a pooled container; and 6,
   where there is a seventh, libcrun's log. All others are closed, so that no container holds a descriptor of another. */
enum
{
  CRUNGO_ORDER_REPORT,
  CRUNGO_ORDER_STDIN,
  CRUNGO_ORDER_STDOUT,
  CRUNGO_ORDER_STDERR,
  CRUNGO_ORDER_COMMAND,
  CRUNGO_ORDER_LOG,
  CRUNGO_ORDER_FDS
};

/* The rest of a process that was forked by PARENT: start what is ordered, and end.

   What happens is told on the report (report.h): the process id, with a pidfd of the process and, with a terminal, the PTY's
   master; or why there is none. The process itself, which inherits the report, tells there of a failed exec, and closes it by
   a successful one. */
_Noreturn void crungo_run_start (const struct crungo_start *start, const int *fds, size_t n_fds, pid_t parent,
                                 const char *state_root);

#endif
