/* How a process gets into the cgroups of a container on v1: by itself.

   libcrun would move it there, from outside. For that the kernel stops all forks and exits of the machine, and the first time
   after a while waits for all processors to have seen that (an RCU grace period: eight milliseconds and more), while nobody
   else can make, leave or remove a cgroup. A single thread that moves itself needs none of it (kernel 5.6,
   kernel/cgroup/cgroup.c, cgroup_procs_write_start). */
#ifndef CRUNGO_CGROUPS_H
#define CRUNGO_CGROUPS_H

/* Whether libcrun sees trees of v1. */
int crungo_has_cgroups_v1 (void);

/* Open the cgroup of this path below the root of each tree that has it, for crungo_enter_cgroups. 0, or -1 with errno. */
int crungo_open_cgroups (const char *path);

/* Open one more cgroup, a directory; likewise. */
int crungo_open_cgroup (const char *directory);

/* Let the calling process, which has one thread, enter all that are open, in their order, and close them; also in namespaces
   in which they could not be opened, before a filter of system calls. 0, or -1 with errno. */
int crungo_enter_cgroups (void);

#endif
