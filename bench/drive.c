/* Runs a command many times: drive COUNT AT_ONCE COMMAND [ARGUMENT...]
 *
 * Every argument that is "@", or ends in it, gets the serial number of the run there. Output is thrown away. Prints the
 * seconds that all took, then those of each run, one per line. A command that fails ends it.
 */
#include <err.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static double now (void)
{
  struct timespec t;
  clock_gettime (CLOCK_MONOTONIC, &t);
  return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

static pid_t start (char **command, int serial)
{
  char **copy = calloc (256, sizeof *copy);
  int n = 0;
  for (; command[n] != NULL && n < 255; n++)
    {
      size_t length = strlen (command[n]);
      copy[n] = command[n];
      if (length > 0 && command[n][length - 1] == '@'
          && asprintf (&copy[n], "%.*s%d-%d", (int) (length - 1), command[n], (int) getpid (), serial) < 0)
        err (1, "asprintf");
    }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init (&actions);
  posix_spawn_file_actions_addopen (&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen (&actions, 1, "/dev/null", O_WRONLY, 0);
  pid_t pid;
  int error = posix_spawnp (&pid, copy[0], &actions, NULL, copy, environ);
  if (error != 0)
    errx (1, "%s: %s", copy[0], strerror (error));
  posix_spawn_file_actions_destroy (&actions);
  for (int i = 0; i < n; i++)
    if (copy[i] != command[i])
      free (copy[i]);
  free (copy);
  return pid;
}

int main (int argc, char **argv)
{
  if (argc < 4)
    errx (2, "usage: drive COUNT AT_ONCE COMMAND [ARGUMENT...]");
  int count = atoi (argv[1]), at_once = atoi (argv[2]);
  struct run { pid_t pid; double from; } *runs = calloc ((size_t) count + 1, sizeof *runs);
  double *took = calloc ((size_t) count + 1, sizeof *took);
  double before = now ();
  for (int started = 0, ended = 0; ended < count;)
    {
      while (started < count && started - ended < at_once)
        {
          runs[started].from = now ();
          runs[started].pid = start (argv + 3, started);
          started++;
        }
      int status;
      pid_t pid = waitpid (-1, &status, 0);
      if (pid < 0)
        err (1, "waitpid");
      for (int i = 0; i < started; i++)
        if (runs[i].pid == pid)
          {
            if (status != 0)
              errx (1, "run %d: wait status %#x", i, (unsigned) status);
            took[i] = now () - runs[i].from;
            runs[i].pid = 0;
            ended++;
          }
    }
  printf ("%.9f\n", now () - before);
  for (int i = 0; i < count; i++)
    printf ("%.9f\n", took[i]);
  return 0;
}
