/* What an unpacking process gives up before it reads the first header.

   The archive is hostile and its reader is a C library: suppose that one day it is taken over. Then it can write into
   the layer's directory, which was its work anyway, and send a wrong result; nothing else. It has no way out of its
   root, cannot open a device that it makes, start a program, a process or a thread, signal one, or open a socket. What
   was given to it open it can read and write as it was opened, and no more: it is root, to whom any descriptor is enough
   to change a file's mode, owner, attributes and times. */
#define _GNU_SOURCE
#include "unpack.h"

#include <errno.h>
#include <fcntl.h>
#include <iconv.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Bytes: what an unpacker takes at most, with the window of its decoder, the times of directories and its threads' stacks. An
   archive that makes its reader grow beyond it fails with ENOMEM, or the reader gives up at once. */
#define DATA_LIMIT (144ul << 20)
#define ADDRESS_LIMIT (384ul << 20) /* with what the C library reserves, and memory that is shared, which the other omits */
#define FILES_LIMIT 64ul            /* descriptors: those given, sixteen directories, and what an entry takes */
/* Seconds of a processor. 64 GiB, the largest layer, take half of it where decompressing and hashing are slow. */
#define CPU_LIMIT 3600ul

static bool devices_work; /* in the root: then none may be made */

/* Enter a private copy of the mount in which devices do nothing. It is attached nowhere. Where that cannot be had (a
   descriptor from another mount namespace, an unbindable mount, an old kernel) the directory itself has to do. */
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
  devices_work = copy < 0;
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

/* --- system calls ------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
#  define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#  define ARCHITECTURE AUDIT_ARCH_AARCH64
#elif defined(__riscv) && __riscv_xlen == 64
#  define ARCHITECTURE AUDIT_ARCH_RISCV64
#else
#  error "the filter of the unpacker does not know this architecture"
#endif

#define LOAD(field) BPF_STMT (BPF_LD | BPF_W | BPF_ABS, offsetof (struct seccomp_data, field)) /* of arguments, the low half */
#define SKIP_UNLESS(value, skipped) BPF_JUMP (BPF_JMP | BPF_JEQ | BPF_K, value, 0, skipped)
#define RETURN(action) BPF_STMT (BPF_RET | BPF_K, action)
#define KILL RETURN (SECCOMP_RET_KILL_PROCESS)
#define ALLOW(call) SKIP_UNLESS (SYS_##call, 1), RETURN (SECCOMP_RET_ALLOW)
#define ALLOW_BUT_OF(fd, call)                                                                                             \
  SKIP_UNLESS (SYS_##call, 4), LOAD (args[0]), SKIP_UNLESS ((uint32_t) (fd), 1), KILL, RETURN (SECCOMP_RET_ALLOW)

/* What unpacking takes, and nothing else: every file is opened below the root, and of processes there is this one, with the
   threads that it has: no limit would keep one that may make more from taking all process ids of the host. Written by hand,
   because libseccomp takes longer to write a filter than the kernel to load it. What is frequent comes first. The blob has
   one descriptor, as there is no way to get another. */
int
crungo_unpack_filter (int blob)
{
  struct sock_filter program[] = {
    LOAD (arch), SKIP_UNLESS (ARCHITECTURE, 1), LOAD (nr), /* an architecture's number is no call's */
    ALLOW (pwrite64), ALLOW (openat), ALLOW (close), ALLOW_BUT_OF (blob, utimensat), ALLOW (pread64), ALLOW (futex),
    ALLOW (newfstatat), ALLOW (fstat), ALLOW (openat2), ALLOW (mkdirat), ALLOW (symlinkat), ALLOW (linkat),
    ALLOW (unlinkat), ALLOW (readlinkat), ALLOW_BUT_OF (blob, fchown), ALLOW_BUT_OF (blob, fchownat),
    ALLOW_BUT_OF (blob, fchmod), ALLOW (fchmodat), ALLOW (ftruncate), ALLOW_BUT_OF (blob, fsetxattr), ALLOW (lsetxattr),
    ALLOW (fchdir), ALLOW (getdents64), ALLOW (recvfrom), ALLOW (sendto), ALLOW (exit_group),
    /* Pipes and whiteouts are no devices. */
    SKIP_UNLESS (SYS_mknodat, 9), LOAD (args[2]), BPF_STMT (BPF_ALU | BPF_AND | BPF_K, S_IFMT), SKIP_UNLESS (S_IFIFO, 1),
    RETURN (SECCOMP_RET_ALLOW), SKIP_UNLESS (S_IFCHR, 3), LOAD (args[3]), SKIP_UNLESS (0, 1), RETURN (SECCOMP_RET_ALLOW),
    RETURN (devices_work ? SECCOMP_RET_ERRNO | EPERM : SECCOMP_RET_ALLOW),
    /* The C library's: memory and threads, and its last words, which nobody reads. */
    ALLOW (mmap), ALLOW (munmap), ALLOW (mremap), ALLOW (mprotect), ALLOW (brk), ALLOW (getrandom),
    ALLOW (exit), ALLOW (set_robust_list), ALLOW (rseq), ALLOW (rt_sigprocmask), ALLOW (rt_sigaction),
    ALLOW (sched_getaffinity), ALLOW (sched_yield), ALLOW (restart_syscall), ALLOW (writev), ALLOW (getpid),
    ALLOW (gettid),
    /* Not MADV_HWPOISON, with which root takes pages away from all that use them, and from the machine. */
    SKIP_UNLESS (SYS_madvise, 4), LOAD (args[2]), SKIP_UNLESS (MADV_DONTNEED, 1), RETURN (SECCOMP_RET_ALLOW), KILL,
    /* abort(3). */
    SKIP_UNLESS (SYS_tgkill, 4), LOAD (args[0]), SKIP_UNLESS ((uint32_t) getpid (), 1), RETURN (SECCOMP_RET_ALLOW), KILL,
    /* Not F_SETOWN, which has the kernel send signals, nor F_DUPFD. */
    SKIP_UNLESS (SYS_fcntl, 5), LOAD (args[1]), SKIP_UNLESS (F_GETFL, 1), RETURN (SECCOMP_RET_ALLOW),
    SKIP_UNLESS (F_SETFD, 1), RETURN (SECCOMP_RET_ALLOW),
    KILL,
  };
  const struct sock_fprog filter = { .len = sizeof (program) / sizeof (program[0]), .filter = program };

  return (int) syscall (SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter);
}

/* glibc reads gconv-modules, which names libraries to load, at the first conversion. libarchive asks for this one when
   it meets a pax header; the handle stays open, so that it is never looked for again. */
int
crungo_unpack_prepare (void)
{
  return iconv_open ("ANSI_X3.4-1968", "UTF-8") == (iconv_t) -1 ? -1 : 0;
}

/* Lower limits, never raise one: that takes CAP_SYS_RESOURCE, which not every host's root has, and whoever has set a lower one
   means it. */
static int
lower_limits (void)
{
  const struct
  {
    int resource;
    rlim_t soft, hard;
  } limits[] = {
    { RLIMIT_CORE, 0, 0 },
    { RLIMIT_DATA, DATA_LIMIT, DATA_LIMIT },
    { RLIMIT_AS, ADDRESS_LIMIT, ADDRESS_LIMIT },
    { RLIMIT_NOFILE, FILES_LIMIT, FILES_LIMIT },
    { RLIMIT_CPU, CPU_LIMIT, CPU_LIMIT + 1 }, /* SIGXCPU, which is told from other ends, then SIGKILL */
  };

  for (size_t i = 0; i < sizeof (limits) / sizeof (limits[0]); i++)
    {
      struct rlimit limit;
      if (getrlimit (limits[i].resource, &limit) < 0)
        return -1;
      if (limit.rlim_max > limits[i].hard)
        limit.rlim_max = limits[i].hard;
      if (limit.rlim_cur > limits[i].soft)
        limit.rlim_cur = limits[i].soft;
      if (setrlimit (limits[i].resource, &limit) < 0)
        return -1;
    }
  return 0;
}

int
crungo_unpack_confine (int directory, int user_xattrs)
{
  umask (0);
  if (lower_limits () < 0)
    return -1;
  if (enter_root (directory) < 0 || drop_capabilities (user_xattrs) < 0)
    return -1;
  close (directory); /* it is of the mount that was left, and so a way out */
  int root = open ("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
  return root < 0 || prctl (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -1 : root;
}
