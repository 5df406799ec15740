#include "decompress.h"

#include <crc.h>
#include <igzip_lib.h>
#include <zstd.h>

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC 6   /* bytes that tell any compression */
#define BEGIN 4   /* bytes that a member or frame begins with, which tell what it is */
#define HEADER 10 /* bytes of gzip's, before what not every header has */

/* What else such a header has (RFC 1952). */
enum
{
  HEADER_CHECKSUM = 1 << 1,
  HEADER_EXTRA = 1 << 2,
  HEADER_NAME = 1 << 3,
  HEADER_COMMENT = 1 << 4,
  HEADER_RESERVED = 0xe0
};

static const struct
{
  const char *name, *magic;
  size_t size;
} others[] = { { "bzip2", "BZh", 3 }, { "xz", "\xfd" "7zXZ", 6 }, { "lz4", "\x04\x22\x4d\x18", 4 } };

struct crungo_decompressor
{
  crungo_read *read;
  void *context;
  uint64_t limit, size;
  struct crungo_fault fault;
  bool failed;
  ssize_t (*next) (struct crungo_decompressor *, unsigned char *, size_t); /* NULL: the blob was not looked at yet */
  bool inside;  /* of a member or frame */
  bool pending; /* its decoder may have bytes to give without taking any */
  ZSTD_DStream *zstd;
  struct inflate_state gzip;
  uint32_t checksum; /* of the header */
  size_t at, end, room;
  unsigned char input[];
};

__attribute__ ((format (printf, 3, 4))) static ssize_t
fail (struct crungo_decompressor *d, int error, const char *format, ...)
{
  va_list arguments;

  va_start (arguments, format);
  vsnprintf (d->fault.reason, sizeof (d->fault.reason), format, arguments);
  va_end (arguments);
  d->fault.error = error;
  d->failed = true;
  return -1;
}

/* --- input ------------------------------------------------------------------------------------------------------- */

/* Have at least `wanted` bytes in hand, fewer only at the blob's end: how many there are, or -1. */
static ssize_t
have (struct crungo_decompressor *d, size_t wanted)
{
  if (d->end - d->at < wanted && d->at > 0)
    {
      memmove (d->input, d->input + d->at, d->end - d->at);
      d->end -= d->at;
      d->at = 0;
    }
  while (d->end - d->at < wanted)
    {
      ssize_t n = d->read (d->context, d->input + d->end, d->room - d->end, &d->fault);

      if (n < 0)
        d->failed = true;
      if (n <= 0)
        return n < 0 ? -1 : (ssize_t) (d->end - d->at);
      d->end += (size_t) n;
    }
  return (ssize_t) (d->end - d->at);
}

/* Skip zeros: 1 before something else, 0 where the blob ends with them, -1 on failure. */
static int
skip_zeros (struct crungo_decompressor *d)
{
  ssize_t n;

  while ((n = have (d, 1)) > 0)
    {
      while (d->at < d->end && d->input[d->at] == 0)
        d->at++;
      if (d->at < d->end)
        return 1;
    }
  return (int) n;
}

static bool
begins (const struct crungo_decompressor *d, const char *magic, size_t size)
{
  return d->end - d->at >= size && memcmp (d->input + d->at, magic, size) == 0;
}

/* --- gzip -------------------------------------------------------------------------------------------------------- */

static const char *
inflate_error (int status)
{
  switch (status)
    {
    case ISAL_INVALID_BLOCK:
      return "an invalid block";
    case ISAL_INVALID_SYMBOL:
      return "an invalid symbol";
    case ISAL_INVALID_LOOKBACK:
      return "an invalid distance";
    case ISAL_INVALID_WRAPPER:
      return "an invalid header";
    case ISAL_UNSUPPORTED_METHOD:
      return "an unknown method";
    case ISAL_INCORRECT_CHECKSUM:
      return "a wrong checksum";
    default:
      return "it needs what it does not have";
    }
}

static void
begin_inflating (struct inflate_state *gzip)
{
  isal_inflate_init (gzip);
  gzip->crc_flag = ISAL_GZIP_NO_HDR_VER; /* checksum and length, after the data, are verified */
}

static ssize_t
fail_damaged (struct crungo_decompressor *d, int status)
{
  return fail (d, 0, "the gzip stream is damaged: %s", inflate_error (status));
}

static ssize_t
fail_early (struct crungo_decompressor *d)
{
  return fail (d, 0, "the gzip stream ends early");
}

/* Pass over so many bytes of a header, or over a text and the zero that ends it where that comes first. */
static int
pass (struct crungo_decompressor *d, size_t size, bool text)
{
  while (size > 0)
    {
      ssize_t n = have (d, 1);
      if (n <= 0)
        return n < 0 ? -1 : (int) fail_early (d);
      size_t passed = (size_t) n < size ? (size_t) n : size;
      const unsigned char *start = d->input + d->at, *zero = text ? memchr (start, 0, passed) : NULL;
      if (zero != NULL)
        size = passed = (size_t) (zero + 1 - start);
      d->checksum = crc32_gzip_refl (d->checksum, start, passed);
      d->at += passed;
      size -= passed;
    }
  return 0;
}

/* A number of two bytes, which stay where they are: or -1. */
static int
number (struct crungo_decompressor *d)
{
  ssize_t n = have (d, 2);

  if (n < 2)
    return n < 0 ? -1 : (int) fail_early (d);
  return d->input[d->at] | d->input[d->at + 1] << 8;
}

/* Read a member's header, whose first bytes are in hand. ISA-L would forget, where a read ends within one, which fields
   are to come. */
static int
read_header (struct crungo_decompressor *d)
{
  const unsigned method = d->input[d->at + 2], flags = d->input[d->at + 3];
  int value;

  if (method != 8)
    return (int) fail_damaged (d, ISAL_UNSUPPORTED_METHOD);
  if (flags & HEADER_RESERVED)
    return (int) fail_damaged (d, ISAL_INVALID_WRAPPER);
  d->checksum = 0;
  if (pass (d, HEADER, false) < 0)
    return -1;
  if (flags & HEADER_EXTRA && ((value = number (d)) < 0 || pass (d, 2 + (size_t) value, false) < 0))
    return -1;
  if (flags & HEADER_NAME && pass (d, SIZE_MAX, true) < 0)
    return -1;
  if (flags & HEADER_COMMENT && pass (d, SIZE_MAX, true) < 0)
    return -1;
  if (flags & HEADER_CHECKSUM)
    {
      if ((value = number (d)) < 0)
        return -1;
      if ((uint32_t) value != (d->checksum & 0xffff))
        return (int) fail_damaged (d, ISAL_INVALID_WRAPPER);
      d->at += 2;
    }
  return 0;
}

/* Begin the next member: 1, 0 at the blob's end, -1 with the fault. */
static int
begin_member (struct crungo_decompressor *d)
{
  int more = skip_zeros (d);

  if (more <= 0)
    return more;
  ssize_t n = have (d, BEGIN);
  if (n < 0)
    return -1;
  if (! begins (d, "\x1f\x8b", 2))
    return (int) fail (d, 0, "garbage follows the gzip stream");
  if (n < BEGIN)
    return (int) fail_early (d);
  if (read_header (d) < 0)
    return -1;
  begin_inflating (&d->gzip);
  d->inside = true;
  return 1;
}

/* Members one after the other. What is there already is given before more is waited for. */
static ssize_t
next_of_gzip (struct crungo_decompressor *d, unsigned char *output, size_t size)
{
  size_t filled = 0;

  while (filled < size)
    {
      int status = 1;

      if (filled > 0 && d->at == d->end && ! d->pending)
        break;
      if (! d->inside)
        status = begin_member (d);
      else if (! d->pending && (status = (int) have (d, 1)) == 0)
        status = (int) fail_early (d);
      if (status < 0 && filled == 0)
        return -1;
      if (status <= 0)
        break;
      d->gzip.next_in = d->input + d->at;
      d->gzip.avail_in = (uint32_t) (d->end - d->at);
      d->gzip.next_out = output + filled;
      d->gzip.avail_out = (uint32_t) (size - filled);
      status = isal_inflate (&d->gzip);
      if (status != ISAL_DECOMP_OK)
        {
          fail_damaged (d, status);
          return filled > 0 ? (ssize_t) filled : -1;
        }
      d->at = d->end - d->gzip.avail_in;
      filled = size - d->gzip.avail_out;
      d->inside = d->gzip.block_state != ISAL_BLOCK_FINISH;
      d->pending = d->inside && d->gzip.avail_out == 0;
    }
  return (ssize_t) filled;
}

/* --- zstd -------------------------------------------------------------------------------------------------------- */

static bool
is_zstd (const struct crungo_decompressor *d)
{
  const unsigned char *magic = d->input + d->at;

  return begins (d, "\x28\xb5\x2f\xfd", 4)
         || (d->end - d->at >= 4 && magic[0] >> 4 == 5 && memcmp (magic + 1, "\x2a\x4d\x18", 3) == 0); /* to be skipped */
}

/* Begin the next frame: 1, 0 at the blob's end, -1 with the fault. */
static int
begin_frame (struct crungo_decompressor *d)
{
  if (have (d, BEGIN) < 0)
    return -1;
  d->inside = is_zstd (d);
  if (d->inside)
    return 1;
  int more = skip_zeros (d);
  return more > 0 ? (int) fail (d, 0, "garbage follows the zstd stream") : more;
}

/* Frames one after the other. */
static ssize_t
next_of_zstd (struct crungo_decompressor *d, unsigned char *output, size_t size)
{
  ZSTD_outBuffer out = { .dst = output, .size = size };

  while (out.pos < size)
    {
      int status = 1;

      if (out.pos > 0 && d->at == d->end && ! d->pending)
        break;
      if (! d->inside)
        status = begin_frame (d);
      else if (! d->pending && (status = (int) have (d, 1)) == 0)
        status = (int) fail (d, 0, "the zstd stream ends early");
      if (status < 0 && out.pos == 0)
        return -1;
      if (status <= 0)
        break;
      ZSTD_inBuffer in = { .src = d->input + d->at, .size = d->end - d->at };
      size_t left = ZSTD_decompressStream (d->zstd, &out, &in);
      if (ZSTD_isError (left))
        {
          fail (d, 0, "the zstd stream is damaged: %s", ZSTD_getErrorName (left));
          return out.pos > 0 ? (ssize_t) out.pos : -1;
        }
      d->at += in.pos;
      d->inside = left != 0;
      d->pending = d->inside && out.pos == size;
    }
  return (ssize_t) out.pos;
}

/* --- any ----------------------------------------------------------------------------------------------------------- */

/* What is no archive in a known compression is one in none, or its reader will say so. */
static ssize_t
next_of_plain (struct crungo_decompressor *d, unsigned char *output, size_t size)
{
  size_t left = d->end - d->at;

  if (left == 0)
    {
      ssize_t n = d->read (d->context, output, size, &d->fault);
      d->failed = n < 0;
      return n;
    }
  if (left > size)
    left = size;
  memcpy (output, d->input + d->at, left);
  d->at += left;
  return (ssize_t) left;
}

static ssize_t
look (struct crungo_decompressor *d)
{
  if (have (d, MAGIC) < 0)
    return -1;
  for (size_t i = 0; i < sizeof (others) / sizeof (others[0]); i++)
    if (begins (d, others[i].magic, others[i].size))
      return fail (d, 0, "%s compression is not one of gzip, zstd and none", others[i].name);
  d->next = next_of_plain;
  if (begins (d, "\x1f\x8b", 2))
    d->next = next_of_gzip;
  else if (is_zstd (d))
    {
      d->zstd = ZSTD_createDStream ();
      if (d->zstd == NULL)
        return fail (d, ENOMEM, "not enough memory to unpack it");
      ZSTD_DCtx_setParameter (d->zstd, ZSTD_d_windowLogMax, CRUNGO_WINDOW_LOG);
      d->next = next_of_zstd;
    }
  return 0;
}

void
crungo_decompress_prepare (void)
{
  /* One letter by gzip, without the header. */
  unsigned char blob[] = "\xab\0\0\x83\x16\xdc\x8c\x01\0\0\0", letter;
  static struct inflate_state gzip;

  begin_inflating (&gzip);
  gzip.next_in = blob;
  gzip.avail_in = sizeof (blob) - 1;
  gzip.next_out = &letter;
  gzip.avail_out = sizeof (letter);
  isal_inflate (&gzip);
}

struct crungo_decompressor *
crungo_decompressor (crungo_read *read, void *context, size_t piece, uint64_t limit)
{
  struct crungo_decompressor *d = calloc (1, sizeof (*d) + piece);

  if (d == NULL)
    return NULL;
  d->read = read;
  d->context = context;
  d->limit = limit;
  d->room = piece;
  return d;
}

ssize_t
crungo_decompress (struct crungo_decompressor *d, void *output, size_t size)
{
  if (d->failed || (d->next == NULL && look (d) < 0))
    return -1;
  ssize_t n = d->next (d, output, size);
  if (n <= 0)
    return n;
  d->size += (size_t) n;
  if (d->size > d->limit)
    return fail (d, 0, "it unpacks to more than the limit of %llu bytes", (unsigned long long) d->limit);
  return n;
}

const struct crungo_fault *
crungo_decompress_fault (const struct crungo_decompressor *d)
{
  return &d->fault;
}
