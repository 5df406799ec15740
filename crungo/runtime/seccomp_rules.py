"""The system calls that a container may make by default, and those it may not, by purpose and with the reason.

What is allowed agrees in effect with the default profiles of docker and podman. Whatever is neither allowed nor refused
here is unknown, most likely because it is newer than this table: it fails with ENOSYS, the one answer on which
C libraries fall back to an older call. What is refused fails with EPERM, as the kernel itself would answer.

Names are those of libseccomp. A name that does not exist on an architecture is ignored there, so that the 32-bit
variants (``*32``, ``*_time64``, ``_llseek``) stand beside their 64-bit counterparts.
"""

from __future__ import annotations

from crungo.parsing.values import words
from crungo.records import Record

__all__ = ["ALLOWED", "NAMESPACE_FLAGS", "PERSONALITIES", "REFUSED", "Group"]


class Group(Record):
    """Calls that stand or fall together.

    ``capabilities``: any one of them allows the group (and without them it is refused); none: it depends on nothing.
    ``architectures``: Go's words for those that have the calls; none: all.
    """

    purpose: str
    calls: tuple[str, ...]
    capabilities: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()


ALLOWED = (
    Group(
        purpose="start, end and wait for processes and threads (clone is filtered by its flags, apart)",
        calls=words(
            "execve execveat exit exit_group fork vfork wait4 waitid waitpid set_tid_address set_robust_list "
            "get_robust_list rseq restart_syscall set_thread_area get_thread_area getpid getppid gettid getpgid "
            "getpgrp getsid setpgid setsid prctl seccomp membarrier map_shadow_stack uretprobe "
            "landlock_create_ruleset landlock_add_rule landlock_restrict_self"
        ),
    ),
    Group(
        purpose="who am I: changing identity needs capabilities that the kernel itself checks",
        calls=words(
            "getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32 getresgid "
            "getresgid32 getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32 setregid "
            "setregid32 setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid setfsgid32 setgroups "
            "setgroups32 capget capset umask"
        ),
    ),
    Group(
        purpose="signals, to processes of the container's own pid namespace",
        calls=words(
            "kill tkill tgkill pause alarm sigaltstack sigprocmask sigpending sigsuspend sigaction sigreturn signal "
            "rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait "
            "rt_sigtimedwait_time64 rt_tgsigqueueinfo signalfd signalfd4 pidfd_open pidfd_send_signal "
            "process_mrelease"
        ),
    ),
    Group(
        purpose="tracing and reading the memory of one's own processes (safe since Linux 4.8 even under a filter)",
        calls=words("ptrace process_vm_readv process_vm_writev"),
    ),
    Group(
        purpose="memory",
        calls=words(
            "brk mmap mmap2 munmap mremap mprotect madvise mincore msync mlock mlock2 mlockall munlock munlockall "
            "remap_file_pages memfd_create memfd_secret pkey_alloc pkey_free pkey_mprotect mseal cachestat"
        ),
    ),
    Group(
        purpose="scheduling, within the limits of the cgroup",
        calls=words(
            "sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam "
            "sched_setparam sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min "
            "sched_rr_get_interval sched_rr_get_interval_time64 getpriority setpriority nice ioprio_get ioprio_set "
            "getcpu"
        ),
    ),
    Group(
        purpose="resource limits and usage",
        calls=words("getrlimit setrlimit ugetrlimit prlimit64 getrusage times sysinfo uname"),
    ),
    Group(
        purpose="telling the time and waiting for it; setting the clock is apart",
        calls=words(
            "time gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 clock_nanosleep "
            "clock_nanosleep_time64 nanosleep getitimer setitimer timer_create timer_delete timer_getoverrun "
            "timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime "
            "timerfd_gettime64 timerfd_settime timerfd_settime64 adjtimex clock_adjtime clock_adjtime64"
        ),
    ),
    Group(
        purpose="locks between threads",
        calls=words("futex futex_time64 futex_waitv futex_wait futex_wake futex_requeue"),
    ),
    Group(
        purpose="open and close files",
        calls=words(
            "open openat openat2 creat close close_range dup dup2 dup3 pipe pipe2 fcntl fcntl64 flock ioctl access "
            "faccessat faccessat2 name_to_handle_at"
        ),
    ),
    Group(
        purpose="read and write",
        calls=words(
            "read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek _llseek sendfile "
            "sendfile64 splice tee vmsplice copy_file_range readahead fadvise64 fadvise64_64 fallocate truncate "
            "truncate64 ftruncate ftruncate64 sync syncfs fsync fdatasync sync_file_range sync_file_range2"
        ),
    ),
    Group(
        purpose="asynchronous reads and writes of the old kind (io_uring is refused)",
        calls=words("io_setup io_submit io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64"),
    ),
    Group(
        purpose="what a file is",
        calls=words(
            "stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx statfs statfs64 fstatfs fstatfs64 "
            "readlink readlinkat getdents getdents64 getcwd statmount listmount"
        ),
    ),
    Group(
        purpose="change the tree of files",
        calls=words(
            "chdir fchdir link linkat symlink symlinkat unlink unlinkat rename renameat renameat2 mkdir mkdirat rmdir "
            "mknod mknodat chmod fchmod fchmodat fchmodat2 chown chown32 lchown lchown32 fchown fchown32 fchownat "
            "utime utimes utimensat utimensat_time64 futimesat"
        ),
    ),
    Group(
        purpose="extended attributes",
        calls=words(
            "getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat listxattr llistxattr "
            "flistxattr listxattrat removexattr lremovexattr fremovexattr removexattrat"
        ),
    ),
    Group(
        purpose="wait for events",
        calls=words(
            "select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64 epoll_create epoll_create1 epoll_ctl "
            "epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2 inotify_init "
            "inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark"
        ),
    ),
    Group(
        purpose="sockets (socket itself is filtered by its family, apart)",
        calls=words(
            "socketcall socketpair bind listen accept accept4 connect shutdown getsockname getpeername getsockopt "
            "setsockopt send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64"
        ),
    ),
    Group(
        purpose="System V and POSIX queues, semaphores and shared memory, of the container's own ipc namespace",
        calls=words(
            "ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt "
            "shmget mq_open mq_unlink mq_getsetattr mq_notify mq_timedreceive mq_timedreceive_time64 mq_timedsend "
            "mq_timedsend_time64"
        ),
    ),
    Group(purpose="random numbers", calls=("getrandom",)),
    Group(
        purpose="what C libraries of 32-bit and 64-bit x86 need to set up threads and segments",
        calls=words("arch_prctl modify_ldt"),
        architectures=("amd64", "386"),
    ),
    Group(
        purpose="what C libraries of 32-bit ARM need",
        calls=words("arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls"),
        architectures=("arm64", "arm"),
    ),
    Group(
        purpose="administration: mounts, namespaces, quotas, events of whole file systems",
        calls=words(
            "mount umount umount2 mount_setattr move_mount open_tree fsopen fsconfig fsmount fspick setns unshare "
            "sethostname setdomainname quotactl quotactl_fd lookup_dcookie fanotify_init"
        ),
        capabilities=("SYS_ADMIN",),
    ),
    Group(purpose="programs in the kernel", calls=("bpf",), capabilities=("SYS_ADMIN", "BPF")),
    Group(purpose="performance counters", calls=("perf_event_open",), capabilities=("SYS_ADMIN", "PERFMON")),
    Group(purpose="the kernel's log", calls=("syslog",), capabilities=("SYS_ADMIN", "SYSLOG")),
    Group(
        purpose="open files by handle, past all directories",
        calls=("open_by_handle_at",),
        capabilities=("DAC_READ_SEARCH",),
    ),
    Group(purpose="restart the machine", calls=("reboot",), capabilities=("SYS_BOOT",)),
    Group(purpose="change the root directory", calls=("chroot",), capabilities=("SYS_CHROOT",)),
    Group(
        purpose="kernel modules", calls=words("init_module finit_module delete_module"), capabilities=("SYS_MODULE",)
    ),
    Group(purpose="accounting of all processes", calls=("acct",), capabilities=("SYS_PACCT",)),
    Group(
        purpose="look into and advise other processes",
        calls=words("kcmp pidfd_getfd process_madvise"),
        capabilities=("SYS_PTRACE",),
    ),
    Group(purpose="ports of the hardware", calls=words("iopl ioperm"), capabilities=("SYS_RAWIO",)),
    Group(
        purpose="set the clock",
        calls=words("settimeofday stime clock_settime clock_settime64"),
        capabilities=("SYS_TIME",),
    ),
    Group(purpose="hang up a terminal", calls=("vhangup",), capabilities=("SYS_TTY_CONFIG",)),
    Group(
        purpose="placement of memory on NUMA nodes",
        calls=words("get_mempolicy set_mempolicy set_mempolicy_home_node mbind"),
        capabilities=("SYS_NICE",),
    ),
)

REFUSED = (
    Group(purpose="the keyrings are not separated by namespaces", calls=words("add_key request_key keyctl")),
    Group(
        purpose="a large and young part of the kernel, behind many escapes",
        calls=words("io_uring_setup io_uring_enter io_uring_register userfaultfd"),
    ),
    Group(purpose="load another kernel", calls=words("kexec_load kexec_file_load")),
    Group(purpose="swap of the host", calls=words("swapon swapoff")),
    Group(purpose="swaps the root of the mount namespace", calls=("pivot_root",)),
    Group(purpose="moves pages of other processes", calls=words("move_pages migrate_pages")),
    Group(
        purpose="obsolete, and never needed",
        calls=words(
            "_sysctl sysfs ustat uselib bdflush nfsservctl get_kernel_syms query_module create_module vm86 vm86old "
            "afs_syscall break ftime getpmsg putpmsg gtty stty idle lock mpx prof profil security tuxcall ulimit "
            "vserver olduname oldolduname oldstat oldlstat oldfstat readdir ssetmask sgetmask"
        ),
    ),
)

# clone(2)'s flags that make namespaces: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. clone3 passes its
# flags in memory, where a filter cannot see them: it is left unknown, and C libraries fall back to clone.
NAMESPACE_FLAGS = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)

# personality(2): Linux, with and without UNAME26, 32-bit addresses likewise, and the question what it is now.
PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
