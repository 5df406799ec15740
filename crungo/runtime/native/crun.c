#define _GNU_SOURCE
#include "crun.h"
#include "cgroups.h"
#include "report.h"
#include "rootfs.h"
#include "users.h"

#include <libcrun/linux.h>

#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* libcrun builds a filter that tries one system call after another. As a binary tree it answers in a tenth of the time:
   for the kernel, which tries all system calls when a filter is loaded (seccomp_cache_prepare), and for every call of the
   container. libcrun has no way to ask for it, so its calls of seccomp_init come here (ld(1), --wrap).  */
scmp_filter_ctx __real_seccomp_init (uint32_t default_action);
scmp_filter_ctx __wrap_seccomp_init (uint32_t default_action);

scmp_filter_ctx
__wrap_seccomp_init (uint32_t default_action)
{
  scmp_filter_ctx filter = __real_seccomp_init (default_action);

  if (filter != NULL)
    seccomp_attr_set (filter, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* libseccomp 2.5; an older one leaves it as it was */
  return filter;
}

/* libcrun asks the name services for the owner's name and writes it into its record of each container. Nobody reads it.  */
char *__wrap_get_user_name (uid_t uid);

char *
__wrap_get_user_name (uid_t uid)
{
  (void) uid;
  return strdup ("");
}

/* libcrun looks for HOME by opening the container's /etc/passwd, whatever that is: to open a FIFO never ends, and to read a
   line of /dev/zero takes all memory there is. So its calls come here.  */
int __wrap_set_home_env (uid_t uid);

int
__wrap_set_home_env (uid_t uid)
{
  struct crungo_failure why;
  int root = open ("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  size_t size, length;
  char *passwd = root < 0 ? NULL : crungo_read_file (root, "etc/passwd", &size, &why);
  const char *found = passwd == NULL ? NULL : crungo_find_home (uid, passwd, size, &length);
  char *home = found == NULL ? NULL : strndup (found, length);
  int status = home == NULL ? -1 : setenv ("HOME", home, 1);

  free (home);
  free (passwd);
  if (root >= 0)
    close (root);
  errno = ENOENT; /* which libcrun looks at: it warns, and sets another */
  return status;
}

static void
clear_list (char ***list, size_t *n)
{
  for (size_t i = 0; i < *n; i++)
    free ((*list)[i]);
  free (*list);
  *list = NULL;
  *n = 0;
}

int
crungo_set_user (libcrun_container_t *container, uint32_t uid, uint32_t gid, const uint32_t *groups, size_t n)
{
  runtime_spec_schema_config_schema_process *process = container->container_def->process;
  runtime_spec_schema_config_schema_process_user *user;
  gid_t *copy = NULL;

  if (process == NULL)
    return -1;
  if (process->user == NULL)
    process->user = calloc (1, sizeof (*process->user));
  user = process->user;
  if (user == NULL)
    return -1;
  if (n > 0)
    {
      copy = calloc (n, sizeof (*copy));
      if (copy == NULL)
        return -1;
      for (size_t i = 0; i < n; i++)
        copy[i] = groups[i];
    }
  free (user->additional_gids);
  user->additional_gids = copy;
  user->additional_gids_len = n;
  user->uid = uid;
  user->gid = gid;
  user->uid_present = 1;
  user->gid_present = 1;
  container->container_uid = uid; /* what libcrun has read there already */
  container->container_gid = gid;
  /* Only root keeps what is effective and permitted through an exec (capabilities(7)). Another user must not have it at
     the moment of the exec either: it would open, and execute, files that this user may not.  */
  if (uid != 0 && process->capabilities != NULL)
    {
      clear_list (&process->capabilities->effective, &process->capabilities->effective_len);
      clear_list (&process->capabilities->permitted, &process->capabilities->permitted_len);
    }
  return 0;
}

/* On v1, processes enter their cgroups themselves (cgroups.h; ld(1), --wrap): a container's init, which libcrun would move tree
   by tree, before it mounts anything, and a further process in the first call that comes here after it has been forked,
   which is before its filter of system calls.  */
int __real_move_process_to_cgroup (pid_t pid, const char *subsystem, const char *path, libcrun_error_t *err);
int __wrap_move_process_to_cgroup (pid_t pid, const char *subsystem, const char *path, libcrun_error_t *err);

int
__wrap_move_process_to_cgroup (pid_t pid, const char *subsystem, const char *path, libcrun_error_t *err)
{
  return subsystem == NULL ? __real_move_process_to_cgroup (pid, subsystem, path, err) : 0;
}

/* libcrun would set the limits of the process on itself, before it makes a container: a file of its own records could then be
   too large, or one descriptor too many. So they are taken from it, and set by the process itself: in that same call, for an
   init too, where all is mounted, and root may still raise them.  */
static struct
{
  runtime_spec_schema_config_schema_process_rlimits_element **asked;
  size_t n_asked;
  struct rlimit nofile;
} limits;

void
crungo_keep_limits (libcrun_container_t *container, const uint64_t nofile[2])
{
  runtime_spec_schema_config_schema_process *process = container->container_def->process;

  limits.nofile = (struct rlimit){ .rlim_cur = nofile[0], .rlim_max = nofile[1] };
  if (process == NULL)
    return;
  limits.asked = process->rlimits;
  limits.n_asked = process->rlimits_len;
  process->rlimits_len = 0;
}

static int
set_limits (libcrun_error_t *err)
{
  if (setrlimit (RLIMIT_NOFILE, &limits.nofile) < 0)
    return crun_make_error (err, errno, "setrlimit");
  return libcrun_set_rlimits (limits.asked, limits.n_asked, err);
}

int __real_libcrun_set_selinux_label (runtime_spec_schema_config_schema_process *process, bool now, libcrun_error_t *err);
int __wrap_libcrun_set_selinux_label (runtime_spec_schema_config_schema_process *process, bool now, libcrun_error_t *err);

int
__wrap_libcrun_set_selinux_label (runtime_spec_schema_config_schema_process *process, bool now, libcrun_error_t *err)
{
  if (crungo_enter_cgroups () < 0)
    return crun_make_error (err, errno, "enter cgroup");
  if (! now && set_limits (err) < 0)
    return -1;
  return __real_libcrun_set_selinux_label (process, now, err);
}

int
crungo_exec (libcrun_context_t *context, const char *id, libcrun_container_t *container, const char *cgroup,
             libcrun_error_t *err)
{
  struct libcrun_container_exec_options_s options = {
    .struct_size = sizeof (options),
    .process = container->container_def->process,
    .cgroup = cgroup,
  };

  return libcrun_container_exec_with_options (context, id, &options, err);
}

/* The last step of a container's init, and of an exec'd process, as a libcrun handler (custom-handler.h).

   libcrun would print a failed execve to the container's stderr and exit with 1, which cannot be told from a program
   that does the same. Here errno goes to the status descriptor, and the exit code is docker's: 127 when there is no such
   file, 126 when it cannot be executed.  */

static _Noreturn void
fail (int errnum)
{
  if (crungo_report_exec (CRUNGO_STATUS_FD, errnum, "") < 0)
    _exit (125);
  _exit (errnum == ENOENT || errnum == ENOTDIR ? 127 : 126);
}

/* libcrun hands over the bare name when it found no executable file for it: say which of the two reasons it was, as
   execvp(3) does: a file that may not be executed wins over a missing one.  */
static int
why_not_in_path (const char *name)
{
  const char *path = getenv ("PATH");
  int why = ENOENT;
  char candidate[4096];

  while (path != NULL && *path)
    {
      size_t length = strcspn (path, ":");
      int n = snprintf (candidate, sizeof (candidate), "%.*s/%s", (int) length, path, name);

      if (n > 0 && n < (int) sizeof (candidate) && access (candidate, F_OK) == 0)
        why = EACCES;
      path += length;
      if (*path == ':')
        path++;
    }
  return why;
}

/* The command of a pooled container, when it is handed out: strings that each end with a null byte, first the number of
   arguments, then the working directory, the arguments, and the environment, until the writer closes.  */

#define COMMAND_LIMIT (4 << 20)

static int awaits_command;
static void (*before_mounts) (const void *order, libcrun_container_t *container);
static const void *before_mounts_order;

void
crungo_before_mounts (void (*work) (const void *order, libcrun_container_t *container), const void *order)
{
  before_mounts = work;
  before_mounts_order = order;
}

void
crungo_await_command (void)
{
  awaits_command = 1;
}

static char *
next_string (char **at, char *end)
{
  char *string = *at;
  size_t length = strnlen (string, end - string);

  if (string + length >= end)
    return NULL;
  *at = string + length + 1;
  return string;
}

/* Wait for a command; exits when the owner has none any more.  */
static char *
read_command (size_t *size)
{
  char *data = malloc (COMMAND_LIMIT);
  ssize_t n;

  if (data == NULL)
    fail (ENOMEM);
  *size = 0;
  while ((n = read (CRUNGO_COMMAND_FD, data + *size, COMMAND_LIMIT - *size)) > 0)
    *size += n;
  if (n < 0 || *size == COMMAND_LIMIT)
    fail (n < 0 ? errno : E2BIG);
  if (*size == 0)
    _exit (125);
  close (CRUNGO_COMMAND_FD);
  return data;
}

/* Where an init is mounted (mounts.py).  */
#define INIT "/run/crungo-init"

/* execve(2), with all signals blocked for an init, which waits for them: until it has blocked them itself, the kernel
   would drop those that come for a first process without a handler.  */
static void
become (const char *path, char *const argv[])
{
  if (strcmp (path, INIT) == 0)
    {
      sigset_t all;

      sigfillset (&all);
      sigprocmask (SIG_SETMASK, &all, NULL);
    }
  execv (path, argv);
}

/* execvp(3) without its shell for files of no known format.  */
static _Noreturn void
exec_in_path (char **argv)
{
  const char *path = getenv ("PATH");
  int why = ENOENT;
  char candidate[4096];

  if (strchr (argv[0], '/') != NULL)
    {
      become (argv[0], argv);
      fail (errno);
    }
  while (path != NULL && *path)
    {
      size_t length = strcspn (path, ":");
      int n = snprintf (candidate, sizeof (candidate), "%.*s/%s", (int) length, path, argv[0]);

      if (n > 0 && n < (int) sizeof (candidate))
        {
          execv (candidate, argv);
          if (errno != ENOENT && errno != ENOTDIR)
            why = errno;
        }
      path += length;
      if (*path == ':')
        path++;
    }
  fail (why);
}

static _Noreturn void
run_command (void)
{
  size_t size;
  char *data = read_command (&size);
  char *at = data;
  char *end = data + size;
  char *count = next_string (&at, end);
  char *directory = next_string (&at, end);
  size_t n = count == NULL ? 0 : strtoul (count, NULL, 10);
  char *home = getenv ("HOME"); /* from the container's passwd */
  char said[sizeof (((struct crungo_failure *) 0)->message)];
  char **argv;
  char *variable;

  if (directory == NULL || n == 0 || n > size)
    fail (EINVAL);
  argv = calloc (n + 1, sizeof (*argv));
  if (argv == NULL)
    fail (ENOMEM);
  for (size_t i = 0; i < n; i++)
    if ((argv[i] = next_string (&at, end)) == NULL)
      fail (EINVAL);
  home = home == NULL ? NULL : strdup (home);
  clearenv ();
  if (home != NULL)
    setenv ("HOME", home, 1);
  while ((variable = next_string (&at, end)) != NULL)
    putenv (variable);
  if (chdir (directory) < 0)
    {
      snprintf (said, sizeof (said), "chdir to `%s`", directory); /* libcrun's words (refusals.py) */
      crungo_report_exec (CRUNGO_STATUS_FD, errno, said);
      _exit (126);
    }
  exec_in_path (argv);
}

static int
run (void *cookie, libcrun_container_t *container, const char *pathname, char *const argv[])
{
  (void) cookie;
  (void) container;
  if (fcntl (CRUNGO_STATUS_FD, F_SETFD, FD_CLOEXEC) < 0)
    _exit (125);
  if (awaits_command)
    run_command ();
  if (strchr (pathname, '/') == NULL)
    fail (why_not_in_path (pathname));
  become (pathname, argv);
  fail (errno);
}

static int
configure (void *cookie, enum handler_configure_phase phase, libcrun_context_t *context, libcrun_container_t *container,
           const char *rootfs, libcrun_error_t *err)
{
  (void) cookie;
  (void) context;
  (void) rootfs;
  (void) err;
  if (phase == HANDLER_CONFIGURE_BEFORE_MOUNTS && before_mounts != NULL)
    before_mounts (before_mounts_order, container);
  return 0;
}

static int
unload (void *cookie, libcrun_error_t *err)
{
  (void) cookie;
  (void) err;
  return 0;
}

static struct custom_handler_s handler = {
  .unload = unload,
  .run_func = run,
  .exec_func = run,
  .configure_container = configure,
};

/* libcrun looks for handlers in shared libraries; this one is here (ld(1), --wrap).  */
int __wrap_libcrun_configure_handler (struct custom_handler_manager_s *manager, libcrun_context_t *context,
                                      libcrun_container_t *container, struct custom_handler_instance_s **out,
                                      libcrun_error_t *err);

int
__wrap_libcrun_configure_handler (struct custom_handler_manager_s *manager, libcrun_context_t *context,
                                  libcrun_container_t *container, struct custom_handler_instance_s **out,
                                  libcrun_error_t *err)
{
  (void) manager;
  (void) context;
  (void) container;
  *out = calloc (1, sizeof (**out)); /* freed by libcrun */
  if (*out == NULL)
    return libcrun_make_error (err, errno, "handler");
  (*out)->vtable = &handler;
  return 0;
}
