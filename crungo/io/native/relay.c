#include "relay.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static bool
due (const struct crungo_patience *patience)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C (1000000000) + now.tv_nsec >= patience->deadline;
}

/* Whether `fd` is ready for `events` in a moment; not if only a neighbour's is. A signal ends the wait: somebody on the
   loop may want to know of it. */
static bool
soon (const struct crungo_patience *patience, int fd, short events)
{
  struct pollfd fds[1 + CRUNGO_RELAY_OTHERS] = { { .fd = fd, .events = events } };

  if (patience->nap == 0 || due (patience))
    return false;
  memcpy (fds + 1, patience->others, (size_t) patience->n_others * sizeof (fds[0]));
  return poll (fds, 1 + (nfds_t) patience->n_others, patience->nap) > 0 && fds[0].revents != 0;
}

static bool
is_for_later (int error)
{
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

/* One piece, or all that is at hand. An end that is met after the first piece will be met again. */
static ssize_t
take (struct crungo_relay *relay)
{
  ssize_t count = read (relay->source, relay->buffer + relay->end, (size_t) (relay->room - relay->end));

  if (count <= 0)
    return count;
  relay->end += count;
  while (relay->gather && relay->room - relay->end >= CRUNGO_RELAY_PIECE)
    {
      ssize_t more = read (relay->source, relay->buffer + relay->end, (size_t) (relay->room - relay->end));
      if (more <= 0)
        break;
      relay->end += more;
    }
  return count;
}

int
crungo_relay (struct crungo_relay *relay, const struct crungo_patience *patience)
{
  if (relay->begin == relay->end)
    relay->begin = relay->end = 0;
  relay->fresh = relay->end;
  for (;;)
    {
      while (relay->begin < relay->end)
        {
          ssize_t count = write (relay->sink, relay->buffer + relay->begin, (size_t) (relay->end - relay->begin));
          if (count > 0)
            {
              relay->begin += count;
              relay->moved += count;
            }
          else if (count < 0 && ! is_for_later (errno))
            {
              relay->error = errno;
              return CRUNGO_RELAY_SINK_FAILED;
            }
          else if (! soon (patience, relay->sink, POLLOUT))
            return CRUNGO_RELAY_FULL;
        }
      if (relay->end > relay->fresh && due (patience))
        return CRUNGO_RELAY_TURN;
      if (relay->room - relay->end < CRUNGO_RELAY_PIECE)
        return CRUNGO_RELAY_AGAIN;
      ssize_t count = take (relay);
      if (count == 0)
        return CRUNGO_RELAY_EOF;
      if (count < 0 && ! is_for_later (errno))
        {
          relay->error = errno;
          return CRUNGO_RELAY_SOURCE_FAILED;
        }
      if (count < 0 && (relay->moved < patience->flood || ! soon (patience, relay->source, POLLIN)))
        return CRUNGO_RELAY_EMPTY;
    }
}
