#include "syscalls.h"

#include <linux/openat2.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

int
crungo_close_range (unsigned int first, unsigned int last, unsigned int flags)
{
  return (int) syscall (SYS_close_range, first, last, flags);
}

int
crungo_openat2 (int directory, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
  struct open_how how = { .flags = flags, .mode = mode, .resolve = resolve };

  return (int) syscall (SYS_openat2, directory, path, &how, sizeof (how));
}

int
crungo_pidfd_send_signal (int pidfd, int signum)
{
  return (int) syscall (SYS_pidfd_send_signal, pidfd, signum, 0, 0);
}

int
crungo_set_signal (int signum, int ignored)
{
  return signal (signum, ignored ? SIG_IGN : SIG_DFL) == SIG_ERR ? -1 : 0;
}

int
crungo_signal_fd (int signum)
{
  sigset_t set;

  sigemptyset (&set);
  sigaddset (&set, signum);
  if (sigprocmask (SIG_BLOCK, &set, NULL) < 0)
    return -1;
  return signalfd (-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int
crungo_unblock_signals (void)
{
  sigset_t set;

  sigemptyset (&set);
  return sigprocmask (SIG_SETMASK, &set, NULL);
}
