/* The blob's file, which may still be growing, read no further than the engine says. */
#ifndef CRUNGO_BLOB_H
#define CRUNGO_BLOB_H

#include "decompress.h"

#include <stdbool.h>

/* A packet of the engine's (crungo/runtime/unpacking.py): so many bytes of the file may be read; and whether no more come. */
struct crungo_mark
{
  uint64_t available;
  uint64_t ended; /* 0 or 1 */
};

struct crungo_blob
{
  int fd, channel; /* marks come over the channel until one says that it is the last */
  uint64_t at, available;
  bool ended;
};

/* A crungo_read of a struct crungo_blob: waits for the first byte. Ends the process when nobody is there to mark any. */
crungo_read crungo_read_blob;

#endif
