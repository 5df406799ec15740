/* crungo-init: process 1 of a container that was asked for with --init.
 *
 *     crungo-init -- COMMAND [ARG...]
 *
 * It starts the command, hands it every signal that it gets itself, reaps whatever is orphaned to it, and ends as
 * the command ended: with its exit code, or with 128 + n when signal n killed it. 127 says that the command was not
 * found, 126 that it cannot be executed, 125 that crungo-init itself failed.
 *
 * It keeps no descriptor open, so that the reader of a pipe sees the command, and nobody else, close its end. It is
 * linked statically, for images without a C library, and allocates nothing.
 */

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define FAILED 125
#define NOT_EXECUTABLE 126
#define NOT_FOUND 127

static _Noreturn void
fail (int code, const char *what)
{
  /* One write, so that the line stays whole beside others' output. */
  char line[512];
  int length = snprintf (line, sizeof line, "crungo-init: %s: %s\n", what, strerror (errno));
  if (length >= (int) sizeof line)
    {
      length = sizeof line;
      line[sizeof line - 1] = '\n';
    }
  ssize_t ignored = write (STDERR_FILENO, line, length);
  (void) ignored;
  _exit (code);
}

/* Unlike execvp(3) this never hands a file that is no program to a shell: what cannot be executed without
 * --init cannot be executed with it either. */
static void
execute (char **argv)
{
  const char *path = getenv ("PATH");
  int denied = 0;

  if (strchr (argv[0], '/'))
    {
      execv (argv[0], argv);
      return;
    }
  if (path == NULL)
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  for (;;)
    {
      char file[4096];
      int length = strcspn (path, ":");
      /* An empty entry is the working directory. */
      int written = snprintf (file, sizeof file, "%.*s/%s", length ? length : 1, length ? path : ".", argv[0]);
      struct stat status;

      if (written < (int) sizeof file)
        {
          execv (file, argv);
          if (errno == EACCES && stat (file, &status) == 0 && ! S_ISDIR (status.st_mode))
            denied = EACCES;
          else if (errno != ENOENT && errno != ENOTDIR && errno != EACCES)
            return;
        }
      if (path[length] == '\0')
        break;
      path += length + 1;
    }
  errno = denied ? denied : ENOENT;
}

static _Noreturn void
become (char **argv)
{
  /* The command leads a process group of its own, in the terminal's foreground when there is one: Ctrl-C is
   * for it and not for process 1. SIGTTOU, which a background process gets for this, is still blocked. */
  setpgid (0, 0);
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
    if (tcsetpgrp (fd, getpgrp ()) == 0)
      break;
  sigset_t none;
  sigemptyset (&none);
  sigprocmask (SIG_SETMASK, &none, NULL);

  execute (argv);
  fail (errno == ENOENT || errno == ENOTDIR ? NOT_FOUND : NOT_EXECUTABLE, argv[0]);
}

int
main (int argc, char **argv)
{
  sigset_t all;
  pid_t child;

  if (argc < 3 || strcmp (argv[1], "--") != 0)
    {
      errno = EINVAL;
      fail (FAILED, "usage: crungo-init -- COMMAND [ARG...]");
    }

  /* All signals are waited for, none is handled. The kernel drops a signal that process 1 neither handles nor
   * blocks, but keeps a blocked one. They were blocked when we were started (native/crun.c), so that none is lost. */
  sigfillset (&all);
  sigprocmask (SIG_SETMASK, &all, NULL);
  /* Where the container shares the host's pids we are not process 1, and orphans would go past us. */
  prctl (PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);

  child = fork ();
  if (child < 0)
    fail (FAILED, "fork");
  if (child == 0)
    become (argv + 2);
  if (syscall (SYS_close_range, 0U, ~0U, 0U) < 0)
    for (int fd = 0; fd < 1024; fd++)
      close (fd);

  for (;;)
    {
      int signal = sigwaitinfo (&all, NULL);
      if (signal > 0 && signal != SIGCHLD)
        kill (child, signal);
      /* Signals of the same kind merge: one SIGCHLD may stand for many children. */
      for (;;)
        {
          int status;
          pid_t reaped = waitpid (-1, &status, WNOHANG);
          if (reaped <= 0)
            break;
          if (reaped == child)
            _exit (WIFEXITED (status) ? WEXITSTATUS (status) : 128 + WTERMSIG (status));
        }
    }
}
