/* A layer's blob becomes the tar stream inside it.

   The content decides what it is, not a media type: gzip (RFC 1952), zstd (RFC 8878), or the tar stream itself. The blob is
   consumed to its very last byte: concatenated members and frames count, padding of zeros is skipped, and anything else after
   the end is an error.

   Invariant: what comes out at once is bounded by who asks for it, whatever goes in, and all together never exceeds the limit.
   A bomb costs its reader no memory, and no more disk than was allowed. */
#ifndef CRUNGO_DECOMPRESS_H
#define CRUNGO_DECOMPRESS_H

#include <stdint.h>
#include <sys/types.h>

#define CRUNGO_WINDOW_LOG 25 /* of the memory that a zstd frame may ask for. RFC 8878 wants 23 of every decoder; encoders for
                                images stay at 24 */

/* Why a stream ended before its end. */
struct crungo_fault
{
  int error;        /* errno where the system failed, 0 where the blob itself is at fault */
  char reason[256]; /* one line */
};

/* Where a blob's bytes come from: from 1 to `size` of them, 0 at the end, -1 with the fault. */
typedef ssize_t crungo_read (void *context, void *buffer, size_t size, struct crungo_fault *fault);

struct crungo_decompressor;

/* Do once, before a fork, what every child would else do for itself: libraries ask the processor what it can, which on a virtual
   machine takes as long as a small layer. */
void crungo_decompress_prepare (void);

/* A reader of the blob, in pieces of at most `piece` bytes, that gives at most `limit`. NULL: there is no memory. */
struct crungo_decompressor *crungo_decompressor (crungo_read *read, void *context, size_t piece, uint64_t limit);

/* The next bytes of the tar stream, from 1 to `size`; 0 at the end, -1 with a fault, which stays. */
ssize_t crungo_decompress (struct crungo_decompressor *decompressor, void *output, size_t size);

const struct crungo_fault *crungo_decompress_fault (const struct crungo_decompressor *decompressor);

#endif
