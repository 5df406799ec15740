#define _GNU_SOURCE
/* EVP would fetch an algorithm from a provider, of which a static program has none to load. */
#define OPENSSL_API_COMPAT 10100
#include "tarstream.h"

#include <openssl/sha.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SMALL (1u << 20) /* bytes of a blob that needs no threads */
#define SMALL_PIECE (64u << 10)
#define PIECE (256u << 10)
#define PIECES 8u

struct crungo_tarstream
{
  struct crungo_decompressor *decompressor;
  SHA256_CTX hash;
  uint64_t size;
  bool ahead, failed;
  /* Blocks go around: filled, then hashed, then taken. The counts only grow, each by the hand of one thread. */
  pthread_mutex_t lock;
  pthread_cond_t changed;
  unsigned filled, hashed, taken;
  bool begun; /* before that, `taken` is what the first block waits at */
  unsigned given; /* those that the taker has, or had, in hand */
  ssize_t lengths[PIECES]; /* the last one is 0 or below: the stream has ended, or failed */
  size_t room;
  unsigned char blocks[];
};

static ssize_t
digested (struct crungo_tarstream *stream, const unsigned char *block, ssize_t length)
{
  if (length > 0)
    {
      SHA256_Update (&stream->hash, block, (size_t) length);
      stream->size += (uint64_t) length;
    }
  return length;
}

/* --- ahead ------------------------------------------------------------------------------------------------------- */

/* Wait until `*count`, which another thread counts, is beyond `n`. */
static void
await (struct crungo_tarstream *stream, const unsigned *count, unsigned n)
{
  pthread_mutex_lock (&stream->lock);
  while (*count == n)
    pthread_cond_wait (&stream->changed, &stream->lock);
  pthread_mutex_unlock (&stream->lock);
}

static void
count (struct crungo_tarstream *stream, unsigned *counted)
{
  pthread_mutex_lock (&stream->lock);
  ++*counted;
  pthread_cond_broadcast (&stream->changed);
  pthread_mutex_unlock (&stream->lock);
}

static void
begin (struct crungo_tarstream *stream)
{
  pthread_mutex_lock (&stream->lock);
  stream->begun = true;
  stream->taken = 0;
  pthread_cond_broadcast (&stream->changed);
  pthread_mutex_unlock (&stream->lock);
}

static unsigned char *
block_of (struct crungo_tarstream *stream, unsigned n)
{
  return stream->blocks + n % PIECES * stream->room;
}

static void *
decompress (void *data)
{
  struct crungo_tarstream *stream = data;
  ssize_t length = 1;

  for (unsigned n = 0; length > 0; n++)
    {
      await (stream, &stream->taken, n - PIECES);
      length = crungo_decompress (stream->decompressor, block_of (stream, n), stream->room);
      stream->lengths[n % PIECES] = length;
      count (stream, &stream->filled);
    }
  return NULL;
}

static void *
hash (void *data)
{
  struct crungo_tarstream *stream = data;
  ssize_t length = 1;

  for (unsigned n = 0; length > 0; n++)
    {
      await (stream, &stream->filled, n);
      length = digested (stream, block_of (stream, n), stream->lengths[n % PIECES]);
      count (stream, &stream->hashed);
    }
  return NULL;
}

/* --- taking ------------------------------------------------------------------------------------------------------ */

int
crungo_tarstream (struct crungo_tarstream **made, struct crungo_blob *blob, uint64_t limit, struct crungo_fault *fault)
{
  const bool ahead = ! blob->ended || blob->available > SMALL;
  const size_t room = ahead ? PIECE : SMALL_PIECE;
  struct crungo_tarstream *stream = calloc (1, sizeof (*stream) + room * (ahead ? PIECES : 1));
  pthread_t thread;
  int error = ENOMEM;

  *made = stream;
  if (stream == NULL
      || (stream->decompressor = crungo_decompressor (crungo_read_blob, blob, 2 * room, limit)) == NULL)
    goto failed;
  SHA256_Init (&stream->hash);
  stream->room = room;
  stream->ahead = ahead;
  stream->taken = 0u - PIECES;
  pthread_mutex_init (&stream->lock, NULL);
  pthread_cond_init (&stream->changed, NULL);
  if (ahead
      && ((error = pthread_create (&thread, NULL, decompress, stream)) != 0
          || (error = pthread_create (&thread, NULL, hash, stream)) != 0))
    goto failed;
  return 0;

failed:
  fault->error = error;
  snprintf (fault->reason, sizeof (fault->reason), "not enough memory to unpack it");
  return -1;
}

static ssize_t
next_made_ahead (struct crungo_tarstream *stream, const void **block)
{
  if (! stream->begun)
    begin (stream);
  else if (stream->given != stream->taken) /* the one before is not needed any more */
    count (stream, &stream->taken);
  await (stream, &stream->hashed, stream->given);
  ssize_t length = stream->lengths[stream->given % PIECES];
  *block = block_of (stream, stream->given);
  stream->given += length > 0; /* the end stays the next one */
  return length;
}

ssize_t
crungo_next_block (void *data, const void **block)
{
  struct crungo_tarstream *stream = data;
  ssize_t length;

  if (stream->ahead)
    length = next_made_ahead (stream, block);
  else
    {
      *block = stream->blocks;
      length = digested (stream, stream->blocks, crungo_decompress (stream->decompressor, stream->blocks, stream->room));
    }
  stream->failed = length < 0;
  return length;
}

const struct crungo_fault *
crungo_tarstream_fault (const struct crungo_tarstream *stream)
{
  return stream->failed ? crungo_decompress_fault (stream->decompressor) : NULL;
}

uint64_t
crungo_tarstream_digest (struct crungo_tarstream *stream, unsigned char digest[CRUNGO_DIGEST])
{
  SHA256_Final (digest, &stream->hash);
  return stream->size;
}
