#define _GNU_SOURCE
#include "report.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

int
crungo_report (int to, const int numbers[2], const char *text, size_t size, const int *fds, size_t n_fds)
{
  union
  {
    char bytes[CMSG_SPACE (2 * sizeof (int))];
    struct cmsghdr align;
  } control = {};
  struct iovec parts[] = {
    { .iov_base = (void *) numbers, .iov_len = 2 * sizeof (int) },
    { .iov_base = (char *) text, .iov_len = size },
  };
  struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };

  if (n_fds > 0)
    {
      message.msg_control = control.bytes;
      message.msg_controllen = CMSG_SPACE (n_fds * sizeof (int));
      *CMSG_FIRSTHDR (&message) = (struct cmsghdr){
        .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN (n_fds * sizeof (int))
      };
      memcpy (CMSG_DATA (CMSG_FIRSTHDR (&message)), fds, n_fds * sizeof (int));
    }
  return sendmsg (to, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -1 : 0;
}

int
crungo_report_failure (int to, const struct crungo_failure *why)
{
  char text[sizeof (*why)];
  char *at = text;
  const char *const parts[] = { why->operation, why->message, why->hint };

  for (size_t i = 0; i < 3; i++)
    at = stpcpy (at, parts[i]) + 1;
  return crungo_report (to, (int[]){ why->kind, why->number }, text, (size_t) (at - text), NULL, 0);
}

int
crungo_report_exec (int to, int number, const char *message)
{
  struct crungo_failure why = { .kind = CRUNGO_FAILURE_EXEC, .number = number };

  snprintf (why.message, sizeof (why.message), "%s", message);
  return crungo_report_failure (to, &why);
}
