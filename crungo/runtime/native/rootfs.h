/* The container's root file system, assembled by its init in its mount namespace.

   Nothing here is ever visible in the host's mount table, and the kernel takes it away with the container's last process. */
#ifndef CRUNGO_ROOTFS_H
#define CRUNGO_ROOTFS_H

#include "failure.h"

#include <stdbool.h>
#include <stddef.h>

#define CRUNGO_FILE_LIMIT (4 << 20)

/* Mount an overlay of layers (paths, lowest first) and the container's own `upper`, which is made, on `rootfs`, both in the
   working directory, whose path is `directory`. 0, or -1. */
int crungo_mount_overlay (const char *const *layers, size_t n_layers, const char *directory,
                          struct crungo_failure *why);

/* Mount a directory of the host, as it is, on `rootfs` in the working directory. 0, or -1. */
int crungo_mount_directory (const char *source, struct crungo_failure *why);

/* Make sure that /dev, /proc and /sys are real directories, before anything is mounted on them. 0, or -1.

   A symbolic link there would send libcrun's mounts and device nodes to where the image says (CVE-2026-47766). With
   `repair` it is replaced, which in an overlay touches only the upper layer; a directory of the host is never changed. */
int crungo_require_directories (int root, bool repair, struct crungo_failure *why);

/* Remove a symbolic link of this name in /etc that leads nowhere within the root; only for an overlay.

   Files are mounted on them, for which libcrun makes a missing file but not a missing target. Images of whole systems
   have resolv.conf as a link to what a service would write. 0, or -1. */
int crungo_remove_dead_link (int root, const char *name, struct crungo_failure *why);

/* The content of a regular file below the root, to be freed, and its size, 0 when there is none; no link leaves the root.
   NULL on failure, among them a file of more than CRUNGO_FILE_LIMIT bytes. */
char *crungo_read_file (int root, const char *path, size_t *size, struct crungo_failure *why);

#endif
