/* A coverage-guided fuzzer of native/unpack.c: archives are bred in memory and unpacked into a scratch directory.

   Usage: unpack CORPUS SCRATCH SECONDS SEED. It runs in a chroot of SCRATCH (a tmpfs, for speed) that holds the layer's
   directory and a few files beside it: what else appears there, or a change of one, is an escape and aborts, as
   sanitizers do.
   Inputs that reach something new join the corpus, in CORPUS; the one that was being run is always in the shared file
   descriptor 3, from which the parent process (run.py) keeps it when this one dies.

   Coverage is gcc's -fsanitize-coverage=trace-pc,trace-cmp, of our code alone: libarchive has its own fuzzers. Inputs are
   mutated as archives (blocks, fields, words that mean something) and their checksums mended, or nothing would get past
   the first header. */
#define _GNU_SOURCE
#include "unpack.h"
#include "unpack_tree.h"

#include <sys/mman.h>
#include <time.h>

#define LARGEST 65536
#define MAP_SIZE 65536
#define MOST 20000
#define BLOCK 512

struct input
{
  unsigned char *data;
  size_t size;
};

static unsigned char seen_now[MAP_SIZE], seen_ever[MAP_SIZE];
static struct input corpus[MOST];
static size_t corpus_size;
static uint64_t random_state;

static const char *const words[] = {
  ".wh.", ".wh..wh..opq", ".wh..wh.", "..", ".", "/", "//", "a", "b", "a/b", "a/../", "../", "a/b/c", "b/a",
  "trusted.overlay.opaque", "SCHILY.xattr.user.x=", "SCHILY.xattr.security.capability=", "path=", "linkpath=", "size=",
  "mtime=-1.5", "GNU.sparse.map=", "GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=", "uid=4294967295",
  "\377", "00000000000", "77777777777", "\200\0\0\0", "ustar  ", "hdrcharset=BINARY",
};

/* --- coverage ---------------------------------------------------------------------------------------------------- */

__attribute__ ((no_sanitize ("all"))) static void
mark (uintptr_t place)
{
  place ^= place >> 17;
  place *= 0x9e3779b97f4a7c15u;
  unsigned char *slot = &seen_now[(place >> 32) % MAP_SIZE];
  *slot += *slot < 255;
}

#define HERE ((uintptr_t) __builtin_return_address (0))
void __sanitizer_cov_trace_pc (void);
void
__sanitizer_cov_trace_pc (void)
{
  mark (HERE);
}

/* How close two compared values are is worth as much as a new place. */
#define COMPARE(name, type)                                                                                              \
  void name (type a, type b);                                                                                            \
  void name (type a, type b) { mark (HERE * 67 + (uintptr_t) __builtin_popcountll ((uint64_t) (a ^ b))); }
COMPARE (__sanitizer_cov_trace_cmp1, uint8_t)
COMPARE (__sanitizer_cov_trace_cmp2, uint16_t)
COMPARE (__sanitizer_cov_trace_cmp4, uint32_t)
COMPARE (__sanitizer_cov_trace_cmp8, uint64_t)
COMPARE (__sanitizer_cov_trace_const_cmp1, uint8_t)
COMPARE (__sanitizer_cov_trace_const_cmp2, uint16_t)
COMPARE (__sanitizer_cov_trace_const_cmp4, uint32_t)
COMPARE (__sanitizer_cov_trace_const_cmp8, uint64_t)
void __sanitizer_cov_trace_switch (uint64_t value, void *cases);
void
__sanitizer_cov_trace_switch (uint64_t value, void *cases)
{
  mark (HERE * 71 + (uintptr_t) value % 256 + (uintptr_t) cases);
}

/* Whether the last run reached a place, or a number of times there (in powers of two), that none had. */
static bool
something_new (void)
{
  bool new = false;

  for (size_t i = 0; i < MAP_SIZE; i++)
    if (seen_now[i] != 0)
      {
        unsigned char bit = (unsigned char) (1u << (31 - __builtin_clz (seen_now[i])));
        new = new || ! (seen_ever[i] & bit);
        seen_ever[i] |= bit;
      }
  return new;
}

/* --- breeding ---------------------------------------------------------------------------------------------------- */

static size_t
below (size_t limit)
{
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return limit ? (size_t) (random_state % limit) : 0;
}

static size_t
field_size (const unsigned char *header)
{
  size_t size = 0;
  for (int i = 124; i < 135 && header[i] >= '0' && header[i] <= '7'; i++)
    size = size * 8 + (size_t) (header[i] - '0');
  return size;
}

/* Write right checksums into what are headers, by following the sizes. */
static void
mend (unsigned char *data, size_t size)
{
  for (size_t at = 0; at + BLOCK <= size;)
    {
      unsigned char *header = data + at;
      unsigned sum = 0;
      char text[9];
      memset (header + 148, ' ', 8);
      for (int i = 0; i < BLOCK; i++)
        sum += header[i];
      if (sum == 8 * ' ')
        memset (header + 148, 0, 8); /* the archive's end */
      else
        {
          snprintf (text, sizeof (text), "%06o", sum);
          memcpy (header + 148, text, 7);
        }
      size_t body = strchr ("123456", header[156]) && header[156] ? 0 : field_size (header);
      at += BLOCK + (body < LARGEST ? (body + BLOCK - 1) / BLOCK * BLOCK : 0);
    }
}

static size_t
mutate (unsigned char *data, size_t size)
{
  const size_t fields[] = { 0, 100, 108, 116, 124, 136, 156, 157, 257, 329, 337, 345, 386 };
  size_t blocks = size / BLOCK;
  size_t block = below (blocks + 1) * BLOCK;
  const char *word = words[below (sizeof (words) / sizeof (words[0]))];
  const struct input *other = &corpus[below (corpus_size)];

  switch (below (9))
    {
    case 0: /* a byte */
      if (size)
        data[below (size)] = (unsigned char) below (256);
      break;
    case 1: /* a word at a field's start */
    case 2:
      block += fields[below (sizeof (fields) / sizeof (fields[0]))];
      if (block + strlen (word) <= size)
        memcpy (data + block, word, strlen (word) + (below (2) && block + strlen (word) < size));
      break;
    case 3: /* a word anywhere */
      block = below (size + 1);
      if (block + strlen (word) <= size)
        memcpy (data + block, word, strlen (word));
      break;
    case 4: /* another type */
      if (block + 156 < size)
        data[block + 156] = (unsigned char) "0123456LKxgSVDMNX7\0"[below (19)];
      break;
    case 5: /* a block less */
      if (block + BLOCK <= size)
        {
          memmove (data + block, data + block + BLOCK, size - block - BLOCK);
          return size - BLOCK;
        }
      break;
    case 6: /* another's blocks */
    case 7:
      {
        size_t from = below (other->size / BLOCK + 1) * BLOCK;
        size_t count = below ((other->size - from) / BLOCK + 1) * BLOCK;
        if (size + count > LARGEST || block > size)
          break;
        memmove (data + block + count, data + block, size - block);
        memcpy (data + block, other->data + from, count);
        return size + count;
      }
    case 8: /* cut */
      return below (8) ? size : below (size + 1);
    }
  return size;
}

/* --- running ----------------------------------------------------------------------------------------------------- */

struct source
{
  const unsigned char *data;
  size_t left, step;
};

static ssize_t
next_piece (void *context, const void **block)
{
  struct source *source = context;
  size_t size = source->left < source->step ? source->left : source->step;

  *block = source->data;
  source->data += size;
  source->left -= size;
  return (ssize_t) size;
}

__attribute__ ((noreturn)) static void
escape (const char *what)
{
  fprintf (stderr, "ESCAPE: %s\n", what);
  abort ();
}

/* Outside the layer there are things with the names that archives use, so that a way out leads somewhere. Whatever
   happens to one of them changes the time of its last change, which nobody can set. */
static const char *const outside[] = { "/canary", "/a", "/a/b", "/b", "/b/a" };
#define OUTSIDE (sizeof (outside) / sizeof (outside[0]))

static void
check_outside (void)
{
  static struct timespec changed[OUTSIDE];
  struct stat status;
  struct dirent *item;
  DIR *top = opendir ("/");

  while (top != NULL && (item = readdir (top)) != NULL)
    if (item->d_name[0] != '.' && strlen (item->d_name) > 1 && strcmp (item->d_name, "layer")
        && strcmp (item->d_name, "canary"))
      escape (item->d_name);
  closedir (top);
  for (size_t i = 0; i < OUTSIDE; i++)
    {
      if (lstat (outside[i], &status) < 0)
        escape (outside[i]);
      if (changed[i].tv_sec == 0)
        changed[i] = status.st_ctim;
      if (memcmp (&changed[i], &status.st_ctim, sizeof (changed[i])) != 0)
        escape (outside[i]);
    }
}

static void
run (const unsigned char *data, size_t size)
{
  static struct crungo_unpack_result result;
  const size_t steps[] = { 1 << 20, 512, 700, 10240 };
  struct source source = { .data = data, .left = size, .step = steps[below (4)] };
  int top = open ("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  if (mkdirat (top, "layer", 0755) < 0)
    escape ("no layer directory");
  int root = openat (top, "layer", O_PATH | O_DIRECTORY | O_CLOEXEC);
  memset (seen_now, 0, sizeof (seen_now));
  int status = crungo_unpack (root, (int) below (2), next_piece, &source, &result);
  if ((status < 0) != (result.reason[0] != '\0'))
    escape ("a failure without a reason, or the reverse");
  close (root);
  if (remove_directory (top, "layer") < 0)
    escape ("the layer cannot be removed");
  close (top);
  check_outside ();
}

static void
adopt (const unsigned char *data, size_t size)
{
  if (corpus_size == MOST)
    return;
  struct input *input = &corpus[corpus_size++];
  input->data = malloc (size + 1);
  input->size = size;
  memcpy (input->data, data, size);
}

static void
load (int folder)
{
  static unsigned char data[LARGEST];
  DIR *listing = fdopendir (dup (folder));
  struct dirent *item;

  while (listing != NULL && (item = readdir (listing)) != NULL)
    {
      int fd = openat (folder, item->d_name, O_RDONLY);
      ssize_t size = fd < 0 ? -1 : read (fd, data, sizeof (data));
      if (size >= 0)
        adopt (data, (size_t) size);
      close (fd);
    }
  closedir (listing);
}

static void
save (int folder, const unsigned char *data, size_t size)
{
  uint64_t hash = 1469598103934665603u;
  char name[32];

  for (size_t i = 0; i < size; i++)
    hash = (hash ^ data[i]) * 1099511628211u;
  snprintf (name, sizeof (name), "%016llx", (unsigned long long) hash);
  int fd = openat (folder, name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (fd < 0 || write (fd, data, size) != (ssize_t) size)
    perror ("corpus");
  close (fd);
}

int
main (int count, char **arguments)
{
  if (count != 5)
    return 2;
  int folder = open (arguments[1], O_RDONLY | O_DIRECTORY);
  unsigned char *data = mmap (NULL, LARGEST, PROT_READ | PROT_WRITE, MAP_SHARED, 3, 0);
  time_t end = time (NULL) + atoi (arguments[3]);
  unsigned long long runs = 0;

  random_state = strtoull (arguments[4], NULL, 0) | 1;
  load (folder);
  crungo_unpack_prepare ();
  umask (0);
  if (data == MAP_FAILED || corpus_size == 0 || chdir (arguments[2]) < 0 || chroot (".") < 0)
    {
      perror ("set-up");
      return 2;
    }
  check_outside ();
  size_t seeds = corpus_size;
  for (size_t i = 0; i < seeds; i++)
    {
      memcpy (data, corpus[i].data, corpus[i].size);
      run (data, corpus[i].size);
      something_new ();
    }
  while (time (NULL) < end)
    {
      const struct input *parent = &corpus[below (corpus_size)];
      size_t size = parent->size;
      memcpy (data, parent->data, size);
      for (size_t n = 1 + below (5); n > 0; n--)
        size = mutate (data, size);
      if (below (10))
        mend (data, size);
      alarm (20); /* one input that takes so long is a finding */
      run (data, size);
      runs++;
      if (something_new ())
        {
          adopt (data, size);
          save (folder, data, size);
        }
    }
  size_t places = 0;
  for (size_t i = 0; i < MAP_SIZE; i++)
    places += (size_t) __builtin_popcount (seen_ever[i]);
  printf ("%llu archives, %zu seeds, %zu kept, %zu features\n", runs, seeds, corpus_size, places);
  return 0;
}
