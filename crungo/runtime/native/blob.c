#define _GNU_SOURCE
#include "blob.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Take a mark: whether there was one. `flags` are recv(2)'s. */
static bool
take_mark (struct crungo_blob *blob, int flags)
{
  struct crungo_mark mark;
  ssize_t n;

  do
    n = recv (blob->channel, &mark, sizeof (mark), flags);
  while (n < 0 && (errno == EINTR || errno == ECONNRESET)); /* a reset is told once, before the end */
  if (n < 0)
    return false;
  if (n != sizeof (mark))
    _exit (0); /* nobody is there to tell */
  if (mark.available > blob->available)
    blob->available = mark.available;
  blob->ended = mark.ended != 0;
  return true;
}

ssize_t
crungo_read_blob (void *context, void *buffer, size_t size, struct crungo_fault *fault)
{
  struct crungo_blob *blob = context;
  ssize_t n;

  while (! blob->ended && take_mark (blob, blob->at < blob->available ? MSG_DONTWAIT : 0))
    ;
  if (size > blob->available - blob->at)
    size = blob->available - blob->at;
  if (size == 0)
    return 0;
  do
    n = pread (blob->fd, buffer, size, (off_t) blob->at);
  while (n < 0 && errno == EINTR);
  if (n > 0)
    {
      blob->at += (uint64_t) n;
      return n;
    }
  fault->error = n < 0 ? errno : 0;
  if (n < 0)
    snprintf (fault->reason, sizeof (fault->reason), "reading its blob: %s", strerror (errno));
  else
    snprintf (fault->reason, sizeof (fault->reason), "its blob has %llu bytes, fewer than announced",
              (unsigned long long) blob->at);
  return -1;
}
