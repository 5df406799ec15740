/* What an unpacking process gives up before it reads the first header.

   The archive is hostile and its reader is a C library: suppose that one day it is taken over. Then it can write into
   the layer's directory, which was its work anyway, and send a wrong result; nothing else. It has no way out of its
   root, cannot open a device that it makes, start a program or a process, signal one, or open a socket. */
#ifndef CRUNGO_UNPACK_CONFINE_H
#define CRUNGO_UNPACK_CONFINE_H

#include <errno.h>
#include <fcntl.h>
#include <iconv.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <sched.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DATA_LIMIT (384ul << 20) /* an archive that makes its reader grow beyond this fails with ENOMEM */

/* Enter a private copy of the mount in which devices do nothing. It is attached nowhere. Where that cannot be had (a
   descriptor from another mount namespace, an old kernel) the directory itself has to do. */
static int
enter_root (int directory)
{
  struct mount_attr attributes = { .attr_set = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC };
  int copy = (int) syscall (SYS_open_tree, directory, "",
                            OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (unsigned) AT_EMPTY_PATH);

  if (copy >= 0 && syscall (SYS_mount_setattr, copy, "", AT_EMPTY_PATH, &attributes, sizeof (attributes)) < 0)
    {
      close (copy);
      copy = -1;
    }
  int status = fchdir (copy >= 0 ? copy : directory);
  if (copy >= 0)
    close (copy);
  return status < 0 || chroot (".") < 0 ? -1 : 0;
}

static int
drop_capabilities (bool user_xattrs)
{
  const unsigned kept[] = { CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_MKNOD, CAP_SETFCAP };
  struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
  struct __user_cap_data_struct data[2];

  if (syscall (SYS_capget, &header, data) < 0)
    return -1;
  uint32_t low = user_xattrs ? 0 : 1u << CAP_SYS_ADMIN; /* trusted.* attributes ask for it */
  for (size_t i = 0; i < sizeof (kept) / sizeof (kept[0]); i++)
    low |= 1u << kept[i];
  data[0].permitted &= low;
  data[0].effective = data[0].permitted;
  data[1].permitted = data[1].effective = 0;
  data[0].inheritable = data[1].inheritable = 0;
  return (int) syscall (SYS_capset, &header, data);
}

/* A list of what is forbidden, not of what is allowed: the interpreter around us may need new calls with each version,
   while the ways to reach beyond files that are open or below the root are known. */
static int
write_filter (int fd)
{
  const int forbidden[] = {
    SCMP_SYS (execve), SCMP_SYS (execveat), SCMP_SYS (fork), SCMP_SYS (vfork), SCMP_SYS (kill), SCMP_SYS (tkill),
    SCMP_SYS (rt_sigqueueinfo), SCMP_SYS (pidfd_open), SCMP_SYS (pidfd_getfd), SCMP_SYS (pidfd_send_signal),
    SCMP_SYS (ptrace), SCMP_SYS (process_vm_readv), SCMP_SYS (process_vm_writev), SCMP_SYS (kcmp),
    SCMP_SYS (mount), SCMP_SYS (umount2), SCMP_SYS (pivot_root), SCMP_SYS (chroot), SCMP_SYS (unshare),
    SCMP_SYS (setns), SCMP_SYS (move_mount), SCMP_SYS (open_tree), SCMP_SYS (fsopen), SCMP_SYS (fsmount),
    SCMP_SYS (fsconfig), SCMP_SYS (fspick), SCMP_SYS (mount_setattr), SCMP_SYS (open_by_handle_at),
    SCMP_SYS (name_to_handle_at), SCMP_SYS (socket), SCMP_SYS (socketpair), SCMP_SYS (connect), SCMP_SYS (bind),
    SCMP_SYS (bpf), SCMP_SYS (perf_event_open), SCMP_SYS (userfaultfd), SCMP_SYS (io_uring_setup),
    SCMP_SYS (io_uring_register), SCMP_SYS (keyctl), SCMP_SYS (add_key), SCMP_SYS (request_key), SCMP_SYS (quotactl),
    SCMP_SYS (init_module), SCMP_SYS (finit_module), SCMP_SYS (delete_module), SCMP_SYS (kexec_load),
    SCMP_SYS (kexec_file_load), SCMP_SYS (reboot), SCMP_SYS (swapon), SCMP_SYS (swapoff), SCMP_SYS (acct),
    SCMP_SYS (settimeofday), SCMP_SYS (clock_settime), SCMP_SYS (adjtimex), SCMP_SYS (clock_adjtime),
    SCMP_SYS (sethostname), SCMP_SYS (setdomainname), SCMP_SYS (iopl), SCMP_SYS (ioperm), SCMP_SYS (syslog),
    SCMP_SYS (fanotify_init), SCMP_SYS (lookup_dcookie), SCMP_SYS (setrlimit), SCMP_SYS (setpriority),
  };
  scmp_filter_ctx filter = seccomp_init (SCMP_ACT_ALLOW);
  int status = filter == NULL ? -ENOMEM : 0;

  for (size_t i = 0; status == 0 && i < sizeof (forbidden) / sizeof (forbidden[0]); i++)
    /* Numbers below zero are of calls that this architecture does not have. */
    if (forbidden[i] >= 0)
      status = seccomp_rule_add (filter, SCMP_ACT_KILL_PROCESS, forbidden[i], 0);
  /* Threads may start, processes and namespaces not. A filter cannot read clone3's arguments: without it glibc takes
     clone. */
  if (status == 0)
    status = seccomp_rule_add (filter, SCMP_ACT_ERRNO (ENOSYS), SCMP_SYS (clone3), 0);
  if (status == 0)
    status = seccomp_rule_add (filter, SCMP_ACT_KILL_PROCESS, SCMP_SYS (clone), 1,
                               SCMP_A0 (SCMP_CMP_MASKED_EQ, CLONE_THREAD, 0));
  if (status == 0)
    status = seccomp_export_bpf (filter, fd);
  if (filter != NULL)
    seccomp_release (filter);
  errno = status < 0 ? -status : 0;
  return status < 0 ? -1 : 0;
}

/* The filter as the kernel takes it: made once, since making it takes four times as long as loading it. */
static struct sock_fprog forbidding;

static int
prepare_filter (void)
{
  static struct sock_filter program[BPF_MAXINSNS];
  ssize_t size = -1;

  if (forbidding.filter != NULL)
    return 0;
  int fd = memfd_create ("crungo-seccomp", MFD_CLOEXEC);
  if (fd >= 0 && write_filter (fd) == 0)
    size = pread (fd, program, sizeof (program), 0);
  if (fd >= 0)
    close (fd);
  if (size <= 0)
    return -1;
  forbidding = (struct sock_fprog) { .len = (unsigned short) ((size_t) size / sizeof (program[0])), .filter = program };
  return 0;
}

/* glibc reads gconv-modules, which names libraries to load, at the first conversion. libarchive asks for this one when
   it meets a pax header; the handle stays open, so that it is never looked for again. */
int
crungo_unpack_prepare (void)
{
  static iconv_t kept = (iconv_t) -1;

  if (kept == (iconv_t) -1)
    {
      /* Pieces come and go. By default each would be memory that the kernel clears anew. Before the fork, because
         mallopt(3) looks at all that is free, which then is a copy of each page. */
      mallopt (M_MMAP_THRESHOLD, 32 << 20);
      mallopt (M_TRIM_THRESHOLD, 128 << 20);
      kept = iconv_open ("ANSI_X3.4-1968", "UTF-8");
    }
  return kept == (iconv_t) -1 ? -1 : prepare_filter ();
}

int
crungo_unpack_confine (int directory, int user_xattrs)
{
  struct rlimit none = { 0, 0 }, data = { DATA_LIMIT, DATA_LIMIT };

  umask (0);
  if (setrlimit (RLIMIT_CORE, &none) < 0 || setrlimit (RLIMIT_DATA, &data) < 0)
    return -1;
  if (enter_root (directory) < 0 || drop_capabilities (user_xattrs) < 0)
    return -1;
  if (prctl (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prepare_filter () < 0)
    return -1;
  return prctl (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &forbidding);
}

#endif
