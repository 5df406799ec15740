#define _GNU_SOURCE
#include "start.h"
#include "crun.h"
#include "rootfs.h"
#include "syscalls.h"
#include "users.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define REPORT_FD 5
#define LOG_FD 6
#define FDS_MAX 7

/* --- the report -------------------------------------------------------------------------------------------------- */

static int
send_report (int to, const int numbers[2], const char *text, size_t size, const int *fds, size_t n_fds)
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
  return sendmsg (to, &message, MSG_NOSIGNAL) < 0 ? -1 : 0;
}

static _Noreturn void
end_with (const struct crungo_failure *why, int report)
{
  char text[sizeof (*why)];
  char *at = text;
  const char *const parts[] = { why->operation, why->message, why->hint };

  for (size_t i = 0; i < 3; i++)
    at = stpcpy (at, parts[i]) + 1;
  send_report (report, (int[]){ why->kind, why->number }, text, (size_t) (at - text), NULL, 0);
  _exit (1);
}

/* --- libcrun ------------------------------------------------------------------------------------------------------ */

/* libcrun's error, which is released; a call can fail and leave it unset.  */
static int
fail_libcrun (struct crungo_failure *why, const char *operation, libcrun_error_t *err)
{
  const char *message = *err == NULL ? "failed without saying why" : (*err)->msg == NULL ? "unknown error" : (*err)->msg;
  int number = *err == NULL ? 0 : (*err)->status;

  why->number = number;
  snprintf (why->operation, sizeof (why->operation), "%s", operation);
  crungo_fail (why, CRUNGO_FAILURE_LIBCRUN, number > 0 ? "%s: %s" : "%s", message, strerror (number));
  if (*err != NULL)
    libcrun_error_release (err);
  return -1;
}

static libcrun_context_t
context_of (const struct crungo_start *start)
{
  libcrun_context_t context = {
    .state_root = start->state_root,
    .id = start->id,
    .bundle = start->directory,
    .preserve_fds = start->await_command ? 2 : 1, /* CRUNGO_COMMAND_FD and CRUNGO_STATUS_FD */
    .fifo_exec_wait_fd = -1,
    .detach = true,
    .handler_manager = start->handlers,
  };

  crungo_set_output (&context);
  return context;
}

static libcrun_container_t *
load (const struct crungo_start *start, struct crungo_failure *why)
{
  libcrun_error_t err = NULL;
  libcrun_container_t *container = libcrun_container_load_from_memory (start->spec, &err);

  if (container == NULL)
    fail_libcrun (why, "load", &err);
  return container;
}

/* Resolve the user in the files of the root, whose descriptor is closed.  */
static int
set_user (const struct crungo_start *start, libcrun_container_t *container, int root, struct crungo_failure *why)
{
  static struct crungo_user user;
  size_t passwd_size, group_size;
  char *passwd = crungo_read_file (root, "etc/passwd", &passwd_size, why);
  char *group = passwd == NULL ? NULL : crungo_read_file (root, "etc/group", &group_size, why);
  int status = -1;

  close (root);
  if (group != NULL)
    status = crungo_resolve_user (start->user, start->groups, start->n_groups, passwd, passwd_size, group, group_size,
                                  &user, why);
  free (passwd);
  free (group);
  if (status < 0)
    return -1;
  if (crungo_set_user (container, user.uid, user.gid, user.groups, user.n_groups) == 0)
    return 0;
  return crungo_fail (why, CRUNGO_FAILURE_CONTAINER, "the specification has no process");
}

/* --- a terminal --------------------------------------------------------------------------------------------------- */

/* The socket that libcrun sends a terminal's master to: it connects by path, from this very process.  */
struct console
{
  char path[32];
  int fd;
};

static int
open_console (struct console *console, struct crungo_failure *why)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };

  snprintf (console->path, sizeof (console->path), "console-%d", (int) getpid ());
  strcpy (address.sun_path, console->path);
  console->fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (console->fd < 0 || bind (console->fd, (struct sockaddr *) &address, sizeof (address)) < 0
      || listen (console->fd, 1) < 0)
    return crungo_fail_errno (why, "terminal");
  return 0;
}

/* The PTY's master: it was sent before libcrun's call returned, so nothing waits here.  */
static int
take_master (struct console *console, struct crungo_failure *why)
{
  union
  {
    char bytes[CMSG_SPACE (sizeof (int))];
    struct cmsghdr align;
  } control;
  char byte;
  struct iovec part = { .iov_base = &byte, .iov_len = 1 };
  struct msghdr message
      = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof (control.bytes) };
  int connection = accept4 (console->fd, NULL, NULL, SOCK_CLOEXEC);
  struct cmsghdr *header;
  int master;

  if (connection < 0 || recvmsg (connection, &message, MSG_CMSG_CLOEXEC) < 0)
    return crungo_fail_errno (why, "terminal");
  header = CMSG_FIRSTHDR (&message);
  if (header == NULL || header->cmsg_type != SCM_RIGHTS)
    return crungo_fail (why, CRUNGO_FAILURE_CONTAINER, "terminal: libcrun sent none");
  memcpy (&master, CMSG_DATA (header), sizeof (master));
  close (connection);
  close (console->fd);
  unlink (console->path);
  return master;
}

/* Say that the process is there; descriptors are closed.  */
static int
report_created (pid_t pid, struct console *console, struct crungo_failure *why)
{
  int fds[2] = { (int) syscall (SYS_pidfd_open, pid, 0), -1 };
  size_t n_fds = 1;

  if (fds[0] < 0)
    return crungo_fail_errno (why, "process");
  if (console != NULL && (fds[n_fds++] = take_master (console, why)) < 0)
    return -1;
  if (send_report (REPORT_FD, (int[]){ 0, pid }, "", 0, fds, n_fds) < 0)
    _exit (1); /* nobody is there to be told */
  close (fds[0]);
  if (console != NULL)
    close (fds[1]);
  return 0;
}

/* --- a container -------------------------------------------------------------------------------------------------- */

static int
make_file (const struct crungo_file *file, struct crungo_failure *why)
{
  int fd = open (file->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

  if (fd < 0 || write (fd, file->content, file->size) != (ssize_t) file->size || close (fd) < 0)
    return crungo_fail_errno (why, file->name);
  return 0;
}

/* The root, mounted and made fit for libcrun, as a descriptor.  */
static int
assemble_root (const struct crungo_start *start, struct crungo_failure *why)
{
  bool overlay = start->n_layers > 0;
  int root;

  if (unshare (CLONE_NEWNS) < 0)
    return crungo_fail_errno (why, "namespace of mounts");
  if ((overlay ? crungo_mount_overlay (start->layers, start->n_layers, start->directory, why)
               : crungo_mount_directory (start->rootfs, why))
      < 0)
    return -1;
  crungo_close_range ((unsigned int) start->n_fds, ~0U, 0);
  root = open ("rootfs", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (root < 0)
    return crungo_fail_errno (why, "rootfs");
  if (crungo_require_directories (root, overlay, why) < 0)
    return -1;
  for (size_t i = 0; overlay && i < start->n_files; i++)
    if (crungo_remove_dead_link (root, start->files[i].name, why) < 0)
      return -1;
  return root;
}

static int
start_container (const struct crungo_start *start, struct crungo_failure *why)
{
  libcrun_context_t context = context_of (start);
  libcrun_container_status_t status = {};
  libcrun_container_t *container;
  libcrun_error_t err = NULL;
  struct console console;
  int root = assemble_root (start, why);

  if (root < 0)
    return -1;
  for (size_t i = 0; i < start->n_files; i++)
    if (make_file (&start->files[i], why) < 0)
      return -1;
  container = load (start, why);
  if (container == NULL || set_user (start, container, root, why) < 0)
    return -1;
  if (start->terminal)
    {
      if (open_console (&console, why) < 0)
        return -1;
      context.console_socket = console.path;
    }
  if (start->await_command)
    crungo_await_command ();
  if (libcrun_container_create (&context, container, 0, &err) < 0)
    return fail_libcrun (why, "create", &err);
  if (libcrun_read_container_status (&status, start->state_root, start->id, &err) < 0)
    return fail_libcrun (why, "state", &err);
  if (report_created (status.pid, start->terminal ? &console : NULL, why) < 0)
    return -1;
  /* libcrun's start, without its look at records that are known.  */
  if (libcrun_status_write_exec_fifo (start->state_root, start->id, &err) < 0)
    return fail_libcrun (why, "start", &err);
  return 0;
}

/* --- a further process -------------------------------------------------------------------------------------------- */

static int
copy_file (const char *from, const char *to)
{
  char content[4096];
  int source = open (from, O_RDONLY | O_CLOEXEC);
  int target = open (to, O_WRONLY | O_CLOEXEC);
  ssize_t n = source < 0 || target < 0 ? -1 : read (source, content, sizeof (content));

  if (n > 0)
    n = write (target, content, (size_t) n);
  if (source >= 0)
    close (source);
  if (target >= 0)
    close (target);
  return n < 0 ? -1 : 0;
}

/* Make a cgroup below the container's in one tree, without limits of its own: those above apply.  */
static int
make_cgroup (const char *root, const struct crungo_start *start, struct crungo_failure *why)
{
  static const char *const inherited[] = { "cpuset.cpus", "cpuset.mems" };
  char parent[512], child[512], from[640], to[640];

  snprintf (parent, sizeof (parent), "%s%s", root, start->cgroup);
  if (access (parent, F_OK) < 0)
    return 0;
  snprintf (child, sizeof (child), "%s%s", parent, start->child_cgroup);
  if (mkdir (child, 0755) < 0)
    return crungo_fail_errno (why, "cgroup");
  snprintf (from, sizeof (from), "%s/cgroup.controllers", parent);
  if (access (from, F_OK) == 0)
    return 0;
  /* A fresh v1 cpuset is empty, and no process may enter it (cpuset(7)).  */
  for (size_t i = 0; i < 2; i++)
    {
      snprintf (from, sizeof (from), "%s/%s", parent, inherited[i]);
      snprintf (to, sizeof (to), "%s/%s", child, inherited[i]);
      if (copy_file (from, to) < 0 && errno != ENOENT)
        return crungo_fail_errno (why, "cgroup");
    }
  return 0;
}

static int
start_execution (const struct crungo_start *start, struct crungo_failure *why)
{
  libcrun_context_t context = context_of (start);
  libcrun_container_t *container = load (start, why);
  libcrun_error_t err = NULL;
  struct console console;
  char path[64], text[32];
  int pid_file, root;
  ssize_t n;

  if (container == NULL)
    return -1;
  snprintf (path, sizeof (path), "/proc/%d/root", (int) start->init);
  root = open (path, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (root < 0)
    return crungo_fail_errno (why, "root file system");
  if (set_user (start, container, root, why) < 0)
    return -1;
  for (size_t i = 0; i < start->n_hierarchies; i++)
    if (make_cgroup (start->hierarchies[i], start, why) < 0)
      return -1;
  if (start->terminal)
    {
      if (open_console (&console, why) < 0)
        return -1;
      context.console_socket = console.path;
    }
  pid_file = memfd_create ("crungo-pid", MFD_CLOEXEC);
  if (pid_file < 0)
    return crungo_fail_errno (why, "process");
  snprintf (path, sizeof (path), "/proc/self/fd/%d", pid_file);
  context.pid_file = path;
  if (crungo_exec (&context, start->id, container, start->child_cgroup, &err) < 0)
    return fail_libcrun (why, "exec", &err);
  n = pread (pid_file, text, sizeof (text) - 1, 0);
  if (n <= 0)
    return crungo_fail (why, CRUNGO_FAILURE_CONTAINER, "exec: libcrun tells no process id");
  text[n] = '\0';
  return report_created ((pid_t) atoi (text), start->terminal ? &console : NULL, why);
}

/* --- the child ---------------------------------------------------------------------------------------------------- */

/* Default actions for all signals, also for those that the C library keeps to itself and posix_spawn(3) leaves ignored
   (nptl(7)), and none of them blocked.  */
static void
reset_signals (void)
{
  const long nothing[4] = { 0 }; /* the kernel's sigaction: SIG_DFL, no flags, no restorer, an empty mask */
  const uint64_t none = 0;

  for (int signum = 1; signum <= 64; signum++)
    syscall (SYS_rt_sigaction, signum, nothing, NULL, sizeof (none));
  syscall (SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof (none));
}

/* Move descriptors to 0, 1, 2, … and close all others.  */
static int
arrange (const int *fds, int n, struct crungo_failure *why)
{
  int moved[FDS_MAX];

  /* Out of the way first: a wanted descriptor may sit where another has to go.  */
  for (int i = 0; i < n; i++)
    if ((moved[i] = fcntl (fds[i], F_DUPFD_CLOEXEC, n)) < 0)
      return crungo_fail_errno (why, "descriptors");
  for (int i = 0; i < n; i++)
    if (dup3 (moved[i], i, i <= CRUNGO_STATUS_FD ? 0 : O_CLOEXEC) < 0)
      return crungo_fail_errno (why, "descriptors");
  return crungo_close_range ((unsigned int) n, ~0U, 0);
}

static _Noreturn void
run (const struct crungo_start *start)
{
  const struct rlimit nofile = { .rlim_cur = start->nofile[0], .rlim_max = start->nofile[1] };
  struct crungo_failure why = {};
  bool further = start->init > 0;
  int status;

  prctl (PR_SET_PDEATHSIG, SIGKILL);
  if (getppid () != start->spawner)
    _exit (1);
  reset_signals ();
  if (arrange (start->fds, (int) start->n_fds, &why) < 0)
    end_with (&why, start->fds[REPORT_FD]);
  crungo_log_to (start->debug ? LOG_FD : -1, further ? CRUNGO_STATUS_FD : -1);
  libcrun_set_verbosity (start->debug ? LIBCRUN_VERBOSITY_DEBUG : LIBCRUN_VERBOSITY_WARNING);
  if (prctl (PR_SET_CHILD_SUBREAPER, 1) < 0 /* a short process may have ended before it is reported */
      || setrlimit (RLIMIT_NOFILE, &nofile) < 0 || chdir (start->directory) < 0)
    status = crungo_fail_errno (&why, start->directory);
  else
    status = further ? start_execution (start, &why) : start_container (start, &why);
  if (status < 0)
    end_with (&why, REPORT_FD);
  _exit (0);
}

pid_t
crungo_start (const struct crungo_start *start)
{
  pid_t pid;

  if (start->n_fds <= REPORT_FD || start->n_fds > FDS_MAX)
    {
      errno = EINVAL;
      return -1;
    }
  pid = fork ();
  if (pid == 0)
    run (start);
  return pid;
}
