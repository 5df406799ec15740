/* crungo-forks: forks the children that start containers, and does nothing else.
 *
 *     crungo-forks PARENT STATE
 *
 * A fork costs what its process has written, once for itself and once more in every page that one of the two writes
 * afterwards; the spawner is an interpreter, which writes all the time. This is a small program that waits.
 *
 * Descriptor 3 is a stream of orders: the size of one, four bytes in the machine's order, and as many bytes (start.h,
 * crungo_decode_start), with the descriptors from CRUNGO_ORDER_REPORT on beside the first byte. The copy of the report here is
 * closed when the child has been reaped, so that whoever holds the other end knows that the started process is no longer
 * the child's; of a child that ended without a word it is told there. Whoever wants no more of it shuts the other end down
 * for writing, or closes it: the child is killed, whatever it waits for. STATE is where libcrun keeps its records.
 *
 * The server ends with the stream, or with its parent of the process id PARENT, and its children with it.
 */
#define _GNU_SOURCE
#include "report.h"
#include "start.h"
#include "syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define SOCKET_FD 3

struct child
{
  pid_t pid;
  int report;
};

struct server
{
  pid_t pid;
  const char *state_root;
  struct child *children;
  struct pollfd *polled; /* for the orders, and then for each child's report */
  size_t n, room;
};

static void
on_child (int signum)
{
  (void) signum; /* it interrupts ppoll, and that is all */
}

static void
reap (struct server *server)
{
  int status;
  pid_t pid;

  while ((pid = waitpid (-1, &status, WNOHANG)) > 0)
    for (size_t i = 0; i < server->n; i++)
      if (server->children[i].pid == pid)
        {
          if (! WIFEXITED (status) || WEXITSTATUS (status) != 0)
            crungo_report_failure (server->children[i].report, &(struct crungo_failure){ .kind = CRUNGO_FAILURE_ENDED });
          close (server->children[i].report);
          server->children[i] = server->children[--server->n];
          server->polled[1 + i] = server->polled[1 + server->n];
          break;
        }
}

/* Children are killed here before they are reaped: until then, their process ids are theirs.  */
static void
kill_unwanted (struct server *server)
{
  for (size_t i = 0; i < server->n; i++)
    if (server->polled[1 + i].revents != 0)
      {
        kill (server->children[i].pid, SIGKILL);
        server->polled[1 + i].fd = -1; /* is told until it is closed */
      }
}

static bool
read_all (char *data, size_t size)
{
  while (size > 0)
    {
      ssize_t n = read (SOCKET_FD, data, size);

      if (n <= 0 && ! (n < 0 && errno == EINTR))
        return false;
      if (n > 0)
        {
          data += n;
          size -= (size_t) n;
        }
    }
  return true;
}

/* The order's text and its descriptors; ends when nobody can give orders any more.  */
static char *
take_order (size_t *size, int fds[CRUNGO_ORDER_FDS], size_t *n_fds)
{
  union
  {
    char bytes[CMSG_SPACE (CRUNGO_ORDER_FDS * sizeof (int))];
    struct cmsghdr align;
  } control;
  uint32_t length;
  struct iovec part = { .iov_base = &length, .iov_len = sizeof (length) };
  struct msghdr message
      = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof (control.bytes) };
  ssize_t n = recvmsg (SOCKET_FD, &message, MSG_CMSG_CLOEXEC);
  struct cmsghdr *header = n > 0 ? CMSG_FIRSTHDR (&message) : NULL;
  char *data;

  if (n <= 0 || ! read_all ((char *) &length + n, sizeof (length) - (size_t) n))
    _exit (0);
  *n_fds = 0;
  if (header != NULL && header->cmsg_type == SCM_RIGHTS)
    {
      *n_fds = (header->cmsg_len - CMSG_LEN (0)) / sizeof (int);
      memcpy (fds, CMSG_DATA (header), *n_fds * sizeof (int));
    }
  data = malloc (length);
  if (data == NULL || ! read_all (data, length))
    _exit (1);
  *size = length;
  return data;
}

static bool
make_room (struct server *server)
{
  const size_t room = 2 * server->room + 16;
  struct pollfd *polled;
  struct child *children;

  if (server->n < server->room)
    return true;
  polled = reallocarray (server->polled, 1 + room, sizeof (*polled));
  if (polled == NULL)
    return false;
  server->polled = polled;
  children = reallocarray (server->children, room, sizeof (*children));
  if (children == NULL)
    return false;
  server->children = children;
  server->room = room;
  return true;
}

static void
add_child (struct server *server, pid_t pid, int report)
{
  server->children[server->n++] = (struct child){ pid, report };
  server->polled[server->n] = (struct pollfd){ .fd = report, .events = POLLRDHUP };
}

static void
serve_order (struct server *server)
{
  int fds[CRUNGO_ORDER_FDS];
  struct crungo_failure why = {};
  struct crungo_start start;
  size_t size, n_fds;
  char *data = take_order (&size, fds, &n_fds);
  pid_t pid = -1;

  if (n_fds < CRUNGO_ORDER_LOG)
    errno = EMFILE; /* the kernel passes what there is room for */
  else if (make_room (server))
    pid = fork ();
  if (pid == 0)
    {
      if (crungo_decode_start (data, size, &start) < 0)
        _exit (1);
      crungo_run_start (&start, fds, n_fds, server->pid, server->state_root);
    }
  free (data);
  if (pid > 0)
    add_child (server, pid, fds[CRUNGO_ORDER_REPORT]);
  else if (n_fds > 0)
    {
      crungo_fail_errno (&why, "create container");
      crungo_report_failure (fds[CRUNGO_ORDER_REPORT], &why);
      close (fds[CRUNGO_ORDER_REPORT]);
    }
  for (size_t i = CRUNGO_ORDER_STDIN; i < n_fds; i++)
    close (fds[i]);
}

int
main (int argc, char **argv)
{
  const struct sigaction interrupt = { .sa_handler = on_child };
  struct server server = { .pid = getpid () };
  sigset_t none, child;

  prctl (PR_SET_PDEATHSIG, SIGKILL);
  if (argc != 3 || getppid () != atoi (argv[1]) || crungo_close_range (SOCKET_FD + 1, ~0U, 0) < 0
      || fcntl (SOCKET_FD, F_SETFD, FD_CLOEXEC) < 0)
    return 1;
  server.state_root = argv[2];
  if (! make_room (&server))
    return 1;
  server.polled[0] = (struct pollfd){ .fd = SOCKET_FD, .events = POLLIN };
  sigemptyset (&none);
  sigemptyset (&child);
  sigaddset (&child, SIGCHLD);
  sigprocmask (SIG_SETMASK, &child, NULL);
  sigaction (SIGCHLD, &interrupt, NULL);
  for (;;)
    {
      bool ready = ppoll (server.polled, 1 + server.n, NULL, &none) > 0;
      bool ordered = ready && server.polled[0].revents != 0;

      if (ready)
        kill_unwanted (&server);
      reap (&server);
      if (ordered)
        serve_order (&server);
    }
}
