/* decompress: what native/decompress.c makes of blobs, one process each.

   Requests on standard input: how much may come out at all, and at once; how much is read at once; and the blob's size, each in
   eight bytes; then the blob. The answer to each on standard output: pieces, each after its length, and the end, 0, or -1 with
   256 bytes that say why. Lengths are of eight bytes, too. */
#include "decompress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct request
{
  uint64_t limit, piece, step, size;
};

struct source
{
  const unsigned char *data;
  size_t left, step;
};

static ssize_t
give (void *context, void *buffer, size_t size, struct crungo_fault *fault)
{
  struct source *source = context;

  (void) fault;
  if (size > source->step)
    size = source->step;
  if (size > source->left)
    size = source->left;
  memcpy (buffer, source->data, size);
  source->data += size;
  source->left -= size;
  return (ssize_t) size;
}

static void
serve (const struct request *request, const unsigned char *blob)
{
  struct source source = { blob, request->size, request->step };
  struct crungo_decompressor *decompressor = crungo_decompressor (give, &source, request->piece, request->limit);
  unsigned char *output = malloc (request->piece);
  int64_t length;

  do
    {
      length = crungo_decompress (decompressor, output, request->piece);
      if (length == 0 && source.left > 0)
        abort (); /* the blob was not read to its end */
      fwrite (&length, sizeof (length), 1, stdout);
      if (length > 0)
        fwrite (output, (size_t) length, 1, stdout);
    }
  while (length > 0);
  if (length < 0)
    fwrite (crungo_decompress_fault (decompressor)->reason, 256, 1, stdout);
  fflush (stdout);
  _exit (0);
}

int
main (void)
{
  struct request request;
  int status = 0;

  setvbuf (stdin, NULL, _IONBF, 0);
  while (status == 0 && fread (&request, sizeof (request), 1, stdin) == 1)
    {
      unsigned char *blob = malloc (request.size + 1);
      if (request.size > 0 && fread (blob, request.size, 1, stdin) != 1)
        return 1;
      if (fork () == 0)
        serve (&request, blob);
      free (blob);
      wait (&status);
    }
  return status != 0;
}
