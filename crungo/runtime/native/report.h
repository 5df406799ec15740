/* How those that the fork server has forked tell what became of it: packets on a socket that keeps their boundaries. */
#ifndef CRUNGO_REPORT_H
#define CRUNGO_REPORT_H

#include "failure.h"

#include <stddef.h>

/* One packet: two ints, the kind of a failure or 0 for none, and errno or a process id; a text; and descriptors, two at most.
   Never waits. 0, or -1 with errno. */
int crungo_report (int to, const int numbers[2], const char *text, size_t size, const int *fds, size_t n_fds);

/* A failure as such a packet: the text is its operation, its message and its hint, each ended by a null byte. */
int crungo_report_failure (int to, const struct crungo_failure *why);

/* Why a program could not be executed, as such a packet: errno and perhaps a text; likewise. */
int crungo_report_exec (int to, int number, const char *message);

#endif
