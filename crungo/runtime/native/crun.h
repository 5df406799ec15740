/* What crungo adds to libcrun: a log that goes where we say, the user that we resolved, and the last step, exec. */
#ifndef CRUNGO_CRUN_H
#define CRUNGO_CRUN_H

#undef _GNU_SOURCE /* libcrun's headers define it without asking */
#include <config.h>
#include <libcrun/container.h>
#include <libcrun/custom-handler.h>
#include <libcrun/error.h>
#include <libcrun/status.h>
#include <stdint.h>

/* The descriptor on which a container's init reports a failed exec: it closes on success (FD_CLOEXEC), and carries
   one int, errno, and perhaps a text on failure. libcrun keeps it open because preserve_fds is 1.  */
#define CRUNGO_STATUS_FD 3

/* The descriptor on which the init of a pooled container gets its command, in the form that run_command reads.  */
#define CRUNGO_COMMAND_FD 4

/* Let the next container's init wait for its command instead of executing that of its specification.  */
void crungo_await_command (void);

/* Send libcrun's log, a line a message, to FD, or nowhere when FD is -1. Never to stderr: that is the container's.
   Errors go to ERRORS too, in the status descriptor's form, when it is not -1: a process that libcrun_container_exec has
   cloned has no other way to say why it failed.  */
void crungo_log_to (int fd, int errors);

/* Let the log of a container's init, which libcrun passes on by the context, go the same way; without it libcrun calls
   a null pointer at its first word.  */
void crungo_set_output (libcrun_context_t *context);

/* Set the user of the container's process, with capabilities to match. Returns 0, or -1 when memory is short or the spec
   has no process.  */
int crungo_set_user (libcrun_container_t *container, uint32_t uid, uint32_t gid, const uint32_t *groups, size_t n);

/* Start the process of CONTAINER's specification, which is otherwise empty, in the running container ID, in the cgroup
   CGROUP below that container's.  */
int crungo_exec (libcrun_context_t *context, const char *id, libcrun_container_t *container, const char *cgroup,
                 libcrun_error_t *err);

#endif
