#define _GNU_SOURCE
#include "library.h"
#include "report.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int log_fd = -1;
static int errors_fd = -1;

static void
write_line (int errno_, const char *msg, int verbosity, void *arg)
{
  char text[4096];
  int n;

  (void) arg;
  if (errors_fd >= 0 && verbosity == LIBCRUN_VERBOSITY_ERROR)
    crungo_report_exec (errors_fd, errno_, msg);
  if (log_fd < 0)
    return;
  /* One write a line, so that the lines of two processes never mix (pipe(7), PIPE_BUF).  */
  if (errno_)
    n = snprintf (text, sizeof (text), "%s: %s\n", msg, strerror (errno_));
  else
    n = snprintf (text, sizeof (text), "%s\n", msg);
  if (n >= (int) sizeof (text))
    {
      n = sizeof (text);
      text[n - 1] = '\n';
    }
  if (write (log_fd, text, n) < 0)
    return;
}

/* libcrun re-executes whatever program loads it, from a constructor, out of a sealed copy in memory, so that no container
   can overwrite the host's binary through /proc/self/exe (CVE-2019-5736). That program would be the caller's own. Defining
   the constructor's callee here keeps libcrun's from being linked; the spawner protects its interpreter by another way
   (programs/crungo-isolate.c).  */
int ensure_cloned_binary (void);

int
ensure_cloned_binary (void)
{
  return 0;
}

void
crungo_log_to (int fd, int errors)
{
  log_fd = fd;
  errors_fd = errors;
  crun_set_output_handler (write_line, NULL);
}

void
crungo_set_output (libcrun_context_t *context)
{
  context->output_handler = write_line;
  context->output_handler_arg = NULL;
}
