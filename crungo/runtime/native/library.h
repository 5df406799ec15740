/* What every program of crungo's that holds libcrun needs: a log that goes where we say. */
#ifndef CRUNGO_LIBRARY_H
#define CRUNGO_LIBRARY_H

#undef _GNU_SOURCE /* libcrun's headers define it without asking */
#include <config.h>
#include <libcrun/container.h>
#include <libcrun/error.h>

/* Send libcrun's log, a line a message, to FD, or nowhere when FD is -1. Never to stderr: that is the container's.
   Errors go to ERRORS too, in the status descriptor's form, when it is not -1: a process that libcrun_container_exec has
   cloned has no other way to say why it failed.  */
void crungo_log_to (int fd, int errors);

/* Let the log of a container's init, which libcrun passes on by the context, go the same way; without it libcrun calls
   a null pointer at its first word.  */
void crungo_set_output (libcrun_context_t *context);

#endif
