#define _GNU_SOURCE
#include "start.h"
#include "cgroups.h"
#include "crun.h"
#include "library.h"
#include "report.h"
#include "rootfs.h"
#include "syscalls.h"
#include "users.h"

#include <libcrun/linux.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define REPORT_FD 5
#define LOG_FD 6

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
context_of (const struct crungo_start *start, const char *state_root)
{
  libcrun_context_t context = {
    .state_root = state_root,
    .id = start->id,
    .bundle = start->directory,
    .preserve_fds = start->await_command ? 2 : 1, /* CRUNGO_COMMAND_FD and CRUNGO_STATUS_FD */
    .fifo_exec_wait_fd = -1,
    .detach = true,
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
  else
    crungo_keep_limits (container, start->nofile);
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
  if (crungo_report (REPORT_FD, (int[]){ 0, pid }, "", 0, fds, n_fds) < 0)
    _exit (1); /* nobody is there to be told */
  close (fds[0]);
  if (console != NULL)
    close (fds[1]);
  return 0;
}

/* --- a container -------------------------------------------------------------------------------------------------- */

static int
make_file (const struct crungo_start *start, const struct crungo_file *file, struct crungo_failure *why)
{
  int fd = open (file->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  ssize_t written = fd < 0 ? -1 : write (fd, file->content, file->size);

  if (written >= 0 && written < (ssize_t) file->size)
    errno = ENOSPC; /* what a further write(2) would say */
  else if (written >= 0 && close (fd) == 0)
    return 0;
  return crungo_fail (why, CRUNGO_FAILURE_CONTAINER, "%s/%s: %s", start->directory, file->name, strerror (errno));
}

/* The container's init, before libcrun mounts anything in its namespace: mount the root there and make it fit, and resolve
   the user in its files. Earlier, a namespace for the root alone would have to be made and taken down.  */
static int
assemble_root (const struct crungo_start *start, libcrun_container_t *container, struct crungo_failure *why)
{
  bool overlay = start->n_layers > 0;
  int root;

  if ((overlay ? crungo_mount_overlay (start->layers, start->n_layers, start->directory, why)
               : crungo_mount_directory (start->rootfs, why))
      < 0)
    return -1;
  root = open ("rootfs", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (root < 0)
    return crungo_fail_errno (why, "rootfs");
  if (crungo_require_directories (root, overlay, why) < 0)
    return -1;
  for (size_t i = 0; overlay && i < start->n_files; i++)
    if (crungo_remove_dead_link (root, start->files[i].name, why) < 0)
      return -1;
  return set_user (start, container, root, why);
}

static int
enter_cgroups (libcrun_container_t *container, struct crungo_failure *why)
{
  if (! crungo_has_cgroups_v1 ())
    return 0;
  if (crungo_open_cgroups (container->container_def->linux->cgroups_path) < 0 || crungo_enter_cgroups () < 0)
    return crungo_fail_errno (why, "enter cgroup");
  return 0;
}

static void
prepare_init (const void *start, libcrun_container_t *container)
{
  struct crungo_failure why = {};
  libcrun_error_t err = NULL;
  int status = enter_cgroups (container, &why);

  if (status == 0)
    status = assemble_root (start, container, &why);

  /* The one thing of the user's that libcrun has set by now.  */
  if (status == 0 && libcrun_container_setgroups (container, container->container_def->process, &err) < 0)
    status = fail_libcrun (&why, "create", &err);
  if (status == 0)
    return;
  /* Said before libcrun, which waits for the init, says no more than that it ended.  */
  crungo_report_failure (REPORT_FD, &why);
  _exit (1);
}

static int
start_container (const struct crungo_start *start, libcrun_context_t *context, struct crungo_failure *why)
{
  libcrun_container_status_t status = {};
  libcrun_container_t *container;
  libcrun_error_t err = NULL;
  struct console console;

  if (mkdir ("rootfs", 0755) < 0)
    return crungo_fail_errno (why, "rootfs");
  for (size_t i = 0; i < start->n_files; i++)
    if (make_file (start, &start->files[i], why) < 0)
      return -1;
  container = load (start, why);
  if (container == NULL)
    return -1;
  if (start->terminal)
    {
      if (open_console (&console, why) < 0)
        return -1;
      context->console_socket = console.path;
    }
  if (start->await_command)
    crungo_await_command ();
  crungo_before_mounts (prepare_init, start);
  if (libcrun_container_create (context, container, 0, &err) < 0)
    return fail_libcrun (why, "create", &err);
  if (libcrun_read_container_status (&status, context->state_root, start->id, &err) < 0)
    return fail_libcrun (why, "state", &err);
  if (report_created (status.pid, start->terminal ? &console : NULL, why) < 0)
    return -1;
  /* libcrun's start, without its look at records that are known.  */
  if (libcrun_status_write_exec_fifo (context->state_root, start->id, &err) < 0)
    return fail_libcrun (why, "start", &err);
  return 0;
}

/* --- a further process -------------------------------------------------------------------------------------------- */

/* Make the cgroup; on v1, open it after the container's.  */
static int
make_cgroup (const struct crungo_start *start, struct crungo_failure *why)
{
  if (mkdir (start->cgroup, 0755) < 0)
    return crungo_fail_errno (why, "cgroup");
  if (start->below[0] != '\0')
    return 0;
  if (crungo_open_cgroups (start->container_cgroup) < 0 || crungo_open_cgroup (start->cgroup) < 0)
    return crungo_fail_errno (why, "cgroup");
  return 0;
}

static int
start_execution (const struct crungo_start *start, libcrun_context_t *context, struct crungo_failure *why)
{
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
  if (set_user (start, container, root, why) < 0 || make_cgroup (start, why) < 0)
    return -1;
  if (start->terminal)
    {
      if (open_console (&console, why) < 0)
        return -1;
      context->console_socket = console.path;
    }
  pid_file = memfd_create ("crungo-pid", MFD_CLOEXEC);
  if (pid_file < 0)
    return crungo_fail_errno (why, "process");
  snprintf (path, sizeof (path), "/proc/self/fd/%d", pid_file);
  context->pid_file = path;
  if (crungo_exec (context, start->id, container, start->below[0] == '\0' ? NULL : start->below, &err) < 0)
    return fail_libcrun (why, "exec", &err);
  n = pread (pid_file, text, sizeof (text) - 1, 0);
  if (n <= 0)
    return crungo_fail (why, CRUNGO_FAILURE_CONTAINER, "exec: libcrun tells no process id");
  text[n] = '\0';
  return report_created ((pid_t) atoi (text), start->terminal ? &console : NULL, why);
}

/* --- the child ---------------------------------------------------------------------------------------------------- */

/* Move the order's descriptors to where the child has them, and close all others.  */
static int
arrange (const int *fds, size_t n_fds, struct crungo_failure *why)
{
  static const int from[] = { CRUNGO_ORDER_STDIN,   CRUNGO_ORDER_STDOUT, CRUNGO_ORDER_STDERR, CRUNGO_ORDER_REPORT,
                              CRUNGO_ORDER_COMMAND, CRUNGO_ORDER_REPORT, CRUNGO_ORDER_LOG };
  const int n = n_fds > CRUNGO_ORDER_LOG ? LOG_FD + 1 : LOG_FD;
  int wanted[LOG_FD + 1];

  for (int i = 0; i < n; i++)
    wanted[i] = fds[from[i]];
  return crungo_arrange (wanted, n, CRUNGO_STATUS_FD + 1) < 0 ? crungo_fail_errno (why, "descriptors") : 0;
}

void
crungo_run_start (const struct crungo_start *start, const int *fds, size_t n_fds, pid_t parent, const char *state_root)
{
  libcrun_context_t context = context_of (start, state_root);
  struct crungo_failure why = {};
  bool further = start->init > 0;
  int report = fds[CRUNGO_ORDER_REPORT];
  int status;

  prctl (PR_SET_PDEATHSIG, SIGKILL);
  if (getppid () != parent)
    _exit (1);
  crungo_reset_signals ();
  status = arrange (fds, n_fds, &why);
  if (status == 0)
    {
      report = REPORT_FD;
      crungo_log_to (start->debug ? LOG_FD : -1, further ? CRUNGO_STATUS_FD : -1);
      libcrun_set_verbosity (start->debug ? LIBCRUN_VERBOSITY_DEBUG : LIBCRUN_VERBOSITY_WARNING);
      if (prctl (PR_SET_CHILD_SUBREAPER, 1) < 0 /* a short process may have ended before it is reported */
          || chdir (start->directory) < 0)
        status = crungo_fail_errno (&why, start->directory);
      else
        status = further ? start_execution (start, &context, &why) : start_container (start, &context, &why);
    }
  if (status < 0)
    crungo_report_failure (report, &why);
  _exit (0);
}
