/* Stands between a command and our terminal, as `run -t` does, and does nothing else: relay COMMAND [ARGUMENT...]
 *
 * The command gets a terminal of its own; what it writes there is written to ours, in raw mode. Nothing is typed.
 */
#include <err.h>
#include <pty.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

int main (int argc, char **argv)
{
  if (argc < 2)
    errx (2, "usage: relay COMMAND [ARGUMENT...]");
  struct termios saved, raw;
  struct winsize size;
  if (tcgetattr (0, &saved) < 0 || ioctl (0, TIOCGWINSZ, &size) < 0)
    err (1, "the terminal");
  int master;
  pid_t pid = forkpty (&master, NULL, &saved, &size);
  if (pid < 0)
    err (1, "forkpty");
  if (pid == 0)
    {
      execvp (argv[1], argv + 1);
      err (127, "%s", argv[1]);
    }
  raw = saved;
  cfmakeraw (&raw);
  tcsetattr (0, TCSANOW, &raw);
  static char piece[1 << 16];
  ssize_t count;
  while ((count = read (master, piece, sizeof piece)) > 0) /* EIO: the other side is closed */
    for (ssize_t done = 0, written; done < count; done += written)
      if ((written = write (1, piece + done, (size_t) (count - done))) < 0)
        err (1, "write");
  tcsetattr (0, TCSANOW, &saved);
  int status;
  waitpid (pid, &status, 0);
  return WIFEXITED (status) ? WEXITSTATUS (status) : 128;
}
