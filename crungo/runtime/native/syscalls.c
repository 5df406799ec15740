#include "syscalls.h"

#include <errno.h>
#include <fcntl.h>
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
crungo_ignore_signal (int signum)
{
  return signal (signum, SIG_IGN) == SIG_ERR ? -1 : 0;
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

/* Also for those that the C library keeps to itself and posix_spawn(3) leaves ignored (nptl(7)).  */
void
crungo_reset_signals (void)
{
  const long nothing[4] = { 0 }; /* the kernel's sigaction: SIG_DFL, no flags, no restorer, an empty mask */
  const uint64_t none = 0;

  for (int signum = 1; signum <= 64; signum++)
    syscall (SYS_rt_sigaction, signum, nothing, NULL, sizeof (none));
  syscall (SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof (none));
}

int
crungo_arrange (const int *fds, int n_fds, int n_inherited)
{
  int moved[CRUNGO_ARRANGE_MAX];

  if (n_fds > CRUNGO_ARRANGE_MAX)
    {
      errno = EINVAL;
      return -1;
    }
  /* Out of the way first: a wanted descriptor may sit where another has to go.  */
  for (int i = 0; i < n_fds; i++)
    if ((moved[i] = fcntl (fds[i], F_DUPFD_CLOEXEC, n_fds)) < 0)
      return -1;
  for (int i = 0; i < n_fds; i++)
    if (dup3 (moved[i], i, i < n_inherited ? 0 : O_CLOEXEC) < 0)
      return -1;
  return crungo_close_range ((unsigned int) n_fds, ~0U, 0);
}
