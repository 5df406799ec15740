/* Bytes from one descriptor to another, one of them a terminal, for as long as the caller's loop is not needed. */
#ifndef CRUNGO_RELAY_H
#define CRUNGO_RELAY_H

#include <poll.h>
#include <stdint.h>

/* Both descriptors are non-blocking. What waits to be written is at `begin` to `end` in the buffer; what the last call
   has read is at `fresh` to `end`. */
struct crungo_relay {
  int source;
  int sink;
  int gather;        /* read what is at hand, not a page of it, before writing */
  int64_t room;      /* bytes of the buffer, at least CRUNGO_RELAY_PIECE */
  char *buffer;
  int64_t fresh;
  int64_t begin;
  int64_t end;
  int64_t moved;     /* bytes that the sink has taken, ever */
  int error;         /* errno of the two that failed */
};

#define CRUNGO_RELAY_PIECE 4096 /* what a terminal has at once */

enum crungo_relay_stop {
  CRUNGO_RELAY_EMPTY,         /* the source has nothing, and did not have it soon */
  CRUNGO_RELAY_FULL,          /* the sink takes nothing, and did not soon */
  CRUNGO_RELAY_TURN,          /* the deadline has passed */
  CRUNGO_RELAY_AGAIN,         /* the buffer has no room left: to be called again once its content was seen */
  CRUNGO_RELAY_EOF,           /* read(2) says 0 */
  CRUNGO_RELAY_SOURCE_FAILED, /* it says `error` */
  CRUNGO_RELAY_SINK_FAILED,
};

/* How long a call may take, and what may end its waiting. */
struct crungo_patience {
  int64_t deadline;           /* of CLOCK_MONOTONIC, in nanoseconds */
  int nap;                    /* longest single wait, in milliseconds; 0: none */
  int64_t flood;              /* the source is waited for once so many bytes have been moved, ever */
  const struct pollfd *others; /* what the neighbours wait for: with one of them ready the waiting is over */
  int n_others;               /* at most CRUNGO_RELAY_OTHERS */
};

#define CRUNGO_RELAY_OTHERS 7

int crungo_relay (struct crungo_relay *relay, const struct crungo_patience *patience);

#endif
