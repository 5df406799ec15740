/* A blob's tar stream in blocks, with its digest; made ahead of who takes them, or by who takes them. */
#ifndef CRUNGO_TARSTREAM_H
#define CRUNGO_TARSTREAM_H

#include "blob.h"

#define CRUNGO_DIGEST 32 /* bytes of a sha256 */

struct crungo_tarstream;

/* Where the blob is small and complete, all is done by who takes the blocks, in a few pages that stay in the processor's
   cache. Else one thread decompresses and a second hashes. Threads do not end before the process, nor look at the blob
   before the first block is asked for. 0, or -1 with the fault. */
int crungo_tarstream (struct crungo_tarstream **stream, struct crungo_blob *blob, uint64_t limit,
                      struct crungo_fault *fault);

/* The next block, valid until the next call; how many bytes it has, 0 at the end, -1 with a fault. */
ssize_t crungo_next_block (void *stream, const void **block);

/* Why it ended early; NULL where it did not. */
const struct crungo_fault *crungo_tarstream_fault (const struct crungo_tarstream *stream);

/* Once it has ended: how many bytes it had, and their digest. */
uint64_t crungo_tarstream_digest (struct crungo_tarstream *stream, unsigned char digest[CRUNGO_DIGEST]);

#endif
