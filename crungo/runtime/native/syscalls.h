/* System calls that Python's os module lacks. */
#ifndef CRUNGO_SYSCALLS_H
#define CRUNGO_SYSCALLS_H

#ifndef _GNU_SOURCE
#  define _GNU_SOURCE
#endif
#include <sched.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/prctl.h>

/* close_range(2): glibc has it since 2.34, the kernel since 5.9. */
int crungo_close_range (unsigned int first, unsigned int last, unsigned int flags);

/* openat2(2), kernel 5.6: the only way to open a path of a foreign root without ever leaving it. */
int crungo_openat2 (int directory, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);

/* pidfd_send_signal(2) with neither siginfo nor flags. */
int crungo_pidfd_send_signal (int pidfd, int signum);

/* Ignore a signal. */
int crungo_ignore_signal (int signum);

/* Block a signal, and report it on a non-blocking signalfd(2). */
int crungo_signal_fd (int signum);

/* Default actions for all signals, and none of them blocked. */
void crungo_reset_signals (void);

#define CRUNGO_ARRANGE_MAX 16

/* Make descriptors 0, 1, 2, … of those given, in their order (one may come twice), the first so many to be inherited by
   programs; and close all others. */
int crungo_arrange (const int *fds, int n_fds, int n_inherited);

#endif
