/* A layer's archive, unpacked into a directory that becomes one lower layer of an overlay. */
#ifndef CRUNGO_UNPACK_H
#define CRUNGO_UNPACK_H

#ifndef _GNU_SOURCE
#  define _GNU_SOURCE
#endif
#include <stdint.h>
#include <sys/types.h>

struct crungo_unpack_result
{
  uint64_t entries; /* headers read */
  int opaque_root;  /* the archive hides everything below this layer */
  int error;        /* errno of the failure, 0 where the archive itself is at fault */
  char name[4096];  /* the entry at fault, as the archive has it; empty where there is none */
  char reason[512]; /* why it failed; empty while nothing did */
};

/* Load, while the host's files are still in sight, all that the C library would otherwise load on demand: after the
   chroot it would load it from the archive. To be called before a process is confined. 0, or -1 with errno. */
int crungo_unpack_prepare (void);

/* Lock the calling process, which must still have one thread, into the directory, whose descriptor is closed: chroot,
   capabilities cut to those that unpacking needs. The root's descriptor, or -1 with errno. */
int crungo_unpack_confine (int directory, int user_xattrs);

/* Then, once it has its threads: no system call that unpacking does not need, for all of them, and none that changes the
   file of the descriptor `blob`. 0; else, and perhaps with errno, another number. */
int crungo_unpack_filter (int blob);

/* Unpack a tar stream into the directory `root`. `read` gives the next block of the stream (valid until its next
   call) and its length, 0 at the end, negative on failure. 0, or -1 with `result` saying why. */
int crungo_unpack (int root, int user_xattrs, ssize_t (*read) (void *context, const void **block), void *context,
                   struct crungo_unpack_result *result);

#endif
