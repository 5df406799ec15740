/* crungo-unpack: forks what unpacks layers, one process for each.
 *
 *     crungo-unpack PARENT
 *
 * Descriptor 3 is a socket of packets, for orders (struct order) with three descriptors: of the blob's file, which may still be
 * growing, of the layer's empty directory, and of a socket of packets, the channel. The answer to each is the process id of
 * the child, or a negative errno, in four bytes. The child is the parent's: it reaps it, and may kill it. The server ends
 * with the socket or with its parent, whose process id is PARENT, and a child with that.
 *
 * A child says what came of it in one packet of text on the channel (crungo/runtime/wire.py), because the archive might have
 * taken it over:
 *
 *     event "unpacked", diff_id, unpacked_size, entries, opaque: sha256 and size in bytes of the tar stream (the blob's is not for
 *         this process to say); opaque: 1 where the layer hides all layers below it;
 *     event "error", name, reason, errno: the entry at fault, if it is one; errno is 0 where the archive is at fault and not the
 *         system. The characters of both texts stand for bytes.
 *
 * Invariant: before the first byte of the archive is looked at, a child is locked into the layer's directory, and holds nothing
 * but blob and channel; the server never looks at any. It is a program of its own so that there is nothing else in its memory,
 * and small, because an interpreter takes as long to be forked as most layers to be unpacked. Forks of it spare the C library's
 * start, which asks the processor what it is; on a virtual machine the hypervisor answers, in half a millisecond.
 */
#define _GNU_SOURCE
#include "syscalls.h"
#include "tarstream.h"
#include "unpack.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ORDERS_FD 3 /* the server's */
#define BLOB_FD 3   /* a child's */
#define DIRECTORY_FD 4
#define CHANNEL_FD 5
#define TEXT_LIMIT 16384
#define NAME_LIMIT 1000 /* bytes of a name that are told: all of them escaped, and a reason, fit a packet */

/* As runtime/unpackserver.py packs it. */
struct order
{
  uint64_t limit;     /* bytes of the largest tar stream */
  uint64_t available; /* bytes of the blob that are there */
  uint32_t complete;  /* 1: and it has no more. 0: marks come over the channel (native/blob.h) */
  uint32_t user;      /* 1: overlay's marks are user. attributes, as it wants them of those who are not the host's root */
};

enum
{
  BLOB,
  DIRECTORY,
  CHANNEL,
  DESCRIPTORS
};

/* --- what is told ------------------------------------------------------------------------------------------------- */

struct text
{
  char data[TEXT_LIMIT];
  size_t length;
};

__attribute__ ((format (printf, 2, 3))) static void
add (struct text *text, const char *format, ...)
{
  va_list arguments;

  va_start (arguments, format);
  text->length += (size_t) vsnprintf (text->data + text->length, sizeof (text->data) - text->length, format, arguments);
  va_end (arguments);
}

static void
add_bytes (struct text *text, const char *name, const char *bytes, size_t most)
{
  add (text, "%s \"", name);
  for (const unsigned char *at = (const unsigned char *) bytes; *at != '\0' && most > 0; at++, most--)
    if (*at >= ' ' && *at <= '~' && *at != '"' && *at != '\\')
      add (text, "%c", *at);
    else
      add (text, "\\u%06x", *at);
  add (text, "\"\n");
}

static _Noreturn void
tell (const struct text *text)
{
  send (CHANNEL_FD, text->data, text->length, MSG_NOSIGNAL | MSG_DONTWAIT); /* nobody else could be told */
  _exit (0);
}

static _Noreturn void
refuse (int error, const char *name, const char *reason)
{
  static struct text text;

  add (&text, "event \"error\"\n");
  add_bytes (&text, "name", name, NAME_LIMIT);
  add_bytes (&text, "reason", reason, NAME_LIMIT / 2);
  add (&text, "errno %d\n", error);
  tell (&text);
}

static _Noreturn void
refuse_errno (const char *what)
{
  char reason[128];
  int error = errno;

  snprintf (reason, sizeof (reason), "%s: %s", what, strerror (error));
  refuse (error, "", reason);
}

/* Whether an archive can provoke this failure of the system by itself; 0 is its reader's own verdict. */
static bool
is_archives (int error)
{
  const int errors[]
      = { 0, E2BIG, EEXIST, EFBIG, EINVAL, EISDIR, ELOOP, EMLINK, ENAMETOOLONG, ENOENT, ENOTDIR, ERANGE };

  for (size_t i = 0; i < sizeof (errors) / sizeof (errors[0]); i++)
    if (error == errors[i])
      return true;
  return false;
}

/* --- the work ---------------------------------------------------------------------------------------------------- */

static void
refuse_faulty (const struct crungo_tarstream *stream)
{
  const struct crungo_fault *fault = crungo_tarstream_fault (stream);

  if (fault != NULL)
    refuse (fault->error, "", fault->reason);
}

static _Noreturn void
unpack (int root, struct crungo_blob *blob, uint64_t limit, bool user)
{
  static struct crungo_unpack_result result;
  static struct text text;
  unsigned char digest[CRUNGO_DIGEST];
  struct crungo_fault fault = { 0 };
  struct crungo_tarstream *stream;
  const void *block;

  if (crungo_tarstream (&stream, blob, limit, &fault) < 0)
    refuse (fault.error, "", fault.reason);
  if (crungo_unpack_filter (BLOB_FD) != 0)
    refuse_errno ("its filter of system calls");
  int status = crungo_unpack (root, user, crungo_next_block, stream, &result);
  refuse_faulty (stream);
  if (status < 0)
    refuse (is_archives (result.error) ? 0 : result.error, result.name, result.reason);
  /* Padding follows the archive's end: it belongs to the digest. */
  while (crungo_next_block (stream, &block) > 0)
    ;
  refuse_faulty (stream);
  uint64_t size = crungo_tarstream_digest (stream, digest);
  add (&text, "event \"unpacked\"\ndiff_id \"sha256:");
  for (size_t i = 0; i < sizeof (digest); i++)
    add (&text, "%02x", digest[i]);
  add (&text, "\"\nunpacked_size %llu\nentries %llu\nopaque %d\n", (unsigned long long) size,
       (unsigned long long) result.entries, result.opaque_root);
  tell (&text);
}

static _Noreturn void
run_child (const struct order *order, const int fds[DESCRIPTORS], pid_t parent)
{
  const int wanted[] = { 0, 1, 2, fds[BLOB], fds[DIRECTORY], fds[CHANNEL] };
  struct crungo_blob blob
      = { .fd = BLOB_FD, .channel = CHANNEL_FD, .available = order->available, .ended = order->complete };
  bool user = order->user;
  int root;

  prctl (PR_SET_PDEATHSIG, SIGKILL);
  if (getppid () != parent)
    _exit (1);
  prctl (PR_SET_NAME, "crungo-layer");
  crungo_reset_signals ();
  if (crungo_arrange (wanted, sizeof (wanted) / sizeof (wanted[0]), 3) < 0)
    _exit (1);
  root = crungo_unpack_confine (DIRECTORY_FD, user);
  if (root < 0)
    refuse_errno ("its directory");
  unpack (root, &blob, order->limit, user);
}

/* --- the server --------------------------------------------------------------------------------------------------- */

/* Standard streams that lead nowhere. Those that came lead to the host's /dev/null, whose mode root may change through any
   descriptor: a child shall have none. What nobody reads must not block. */
static int
replace_streams (void)
{
  int ends[2];

  if (pipe2 (ends, O_NONBLOCK | O_CLOEXEC) < 0 || dup2 (ends[0], 0) < 0 || dup2 (ends[1], 1) < 0 || dup2 (ends[1], 2) < 0)
    return -1;
  close (ends[0]);
  close (ends[1]);
  return 0;
}

/* The next order and how many descriptors it has; ends when nobody can give orders any more.  */
static size_t
take_order (struct order *order, int fds[DESCRIPTORS])
{
  union
  {
    char bytes[CMSG_SPACE (DESCRIPTORS * sizeof (int))];
    struct cmsghdr align;
  } control;
  struct iovec part = { .iov_base = order, .iov_len = sizeof (*order) };
  /* Not CMSG_SPACE: what aligns an odd number of descriptors has room for one more. */
  struct msghdr message = { .msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = control.bytes,
                            .msg_controllen = CMSG_LEN (DESCRIPTORS * sizeof (int)) };
  struct cmsghdr *header;
  size_t n_fds;
  ssize_t n;

  do
    n = recvmsg (ORDERS_FD, &message, MSG_CMSG_CLOEXEC);
  while (n < 0 && errno == EINTR);
  if (n != sizeof (*order))
    _exit (0);
  header = CMSG_FIRSTHDR (&message);
  if (header == NULL || header->cmsg_type != SCM_RIGHTS)
    return 0;
  n_fds = (header->cmsg_len - CMSG_LEN (0)) / sizeof (int);
  memcpy (fds, CMSG_DATA (header), n_fds * sizeof (int));
  return n_fds;
}

int
main (int argc, char **argv)
{
  const pid_t parent = argc == 2 ? atoi (argv[1]) : 0;
  struct order order;
  int fds[DESCRIPTORS];

  prctl (PR_SET_PDEATHSIG, SIGKILL);
  if (getppid () != parent || crungo_close_range (ORDERS_FD + 1, ~0U, 0) < 0 || replace_streams () < 0
      || crungo_unpack_prepare () < 0)
    return 1;
  crungo_decompress_prepare ();
  for (;;)
    {
      size_t n_fds = take_order (&order, fds);
      /* A fork whose parent is ours: the one who waits for it and who may kill it is then the same. */
      int32_t pid = -EMFILE; /* the kernel passes as many descriptors as there is room for */
      if (n_fds == DESCRIPTORS && (pid = (int32_t) syscall (SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0)) < 0)
        pid = -errno;
      if (pid == 0)
        run_child (&order, fds, parent);
      for (size_t i = 0; i < n_fds; i++)
        close (fds[i]);
      if (send (ORDERS_FD, &pid, sizeof (pid), MSG_NOSIGNAL) < 0)
        return 0;
    }
}
