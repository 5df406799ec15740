/* What crungo adds to libcrun's starts: the root, the user that we resolved, and the last step, exec. */
#ifndef CRUNGO_CRUN_H
#define CRUNGO_CRUN_H

#undef _GNU_SOURCE /* libcrun's headers define it without asking */
#include <config.h>
#include <libcrun/container.h>
#include <libcrun/custom-handler.h>
#include <libcrun/error.h>
#include <libcrun/status.h>
#include <stdint.h>

/* The descriptor on which a container's init reports a failed exec, a CRUNGO_FAILURE_EXEC with errno and perhaps a text: it
   closes on success (FD_CLOEXEC). libcrun keeps it open because preserve_fds is 1.  */
#define CRUNGO_STATUS_FD 3

/* The descriptor on which the init of a pooled container gets its command, in the form that run_command reads.  */
#define CRUNGO_COMMAND_FD 4

/* Let the next container's init wait for its command instead of executing that of its specification.  */
void crungo_await_command (void);

/* Do this in the init of a container, within its namespaces, before libcrun mounts anything there.  */
void crungo_before_mounts (void (*work) (const void *order, libcrun_container_t *container), const void *order);

/* Set the user of the container's process, with capabilities to match. Returns 0, or -1 when memory is short or the spec
   has no process.  */
int crungo_set_user (libcrun_container_t *container, uint32_t uid, uint32_t gid, const uint32_t *groups, size_t n);

/* Have CONTAINER's process set its limits itself, when all else is done, instead of libcrun before it begins. NOFILE is that of
   open files, soft and hard, where it asks for none.  */
void crungo_keep_limits (libcrun_container_t *container, const uint64_t nofile[2]);

/* Start the process of CONTAINER's specification, which is otherwise empty, in the running container ID, in its cgroup or, with
   CGROUP, one below that.  */
int crungo_exec (libcrun_context_t *context, const char *id, libcrun_container_t *container, const char *cgroup,
                 libcrun_error_t *err);

#endif
