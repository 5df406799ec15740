#define _GNU_SOURCE
#include "start.h"

#include <stdlib.h>
#include <string.h>

enum
{
  TERMINAL = 1,
  DEBUG = 2,
  AWAIT_COMMAND = 4
};

/* What is left of an order; `at` is NULL after the first thing that does not fit.  */
struct reader
{
  const char *at;
  const char *end;
};

static uint64_t
take_number (struct reader *from)
{
  uint64_t number = 0;

  if (from->at == NULL || (size_t) (from->end - from->at) < sizeof (number))
    from->at = NULL;
  else
    {
      memcpy (&number, from->at, sizeof (number));
      from->at += sizeof (number);
    }
  return number;
}

/* Bytes and a null byte after them, which is not counted.  */
static const char *
take_bytes (struct reader *from, size_t *size)
{
  const char *bytes;

  *size = take_number (from);
  if (from->at == NULL || *size >= (size_t) (from->end - from->at) || from->at[*size] != '\0')
    {
      from->at = NULL;
      *size = 0;
      return "";
    }
  bytes = from->at;
  from->at += *size + 1;
  return bytes;
}

static const char *
take_text (struct reader *from)
{
  size_t size;

  return take_bytes (from, &size);
}

/* Memory for a list whose length comes next; it lasts as long as the child that starts the process.  */
static void *
take_list (struct reader *from, size_t *n, size_t size)
{
  void *list;

  *n = take_number (from);
  if (from->at != NULL && *n > (size_t) (from->end - from->at)) /* every item takes some bytes */
    from->at = NULL;
  if (from->at == NULL)
    *n = 0;
  list = *n == 0 ? NULL : calloc (*n, size);
  if (list == NULL)
    *n = 0;
  return list;
}

static const char *const *
take_texts (struct reader *from, size_t *n)
{
  const char **list = take_list (from, n, sizeof (*list));

  for (size_t i = 0; i < *n; i++)
    list[i] = take_text (from);
  return list;
}

static const struct crungo_file *
take_files (struct reader *from, size_t *n)
{
  struct crungo_file *list = take_list (from, n, sizeof (*list));

  for (size_t i = 0; i < *n; i++)
    {
      list[i].name = take_text (from);
      list[i].content = take_bytes (from, &list[i].size);
    }
  return list;
}

int
crungo_decode_start (const char *data, size_t size, struct crungo_start *start)
{
  struct reader from = { data, data + size };
  uint64_t flags = take_number (&from);

  start->terminal = flags & TERMINAL;
  start->debug = flags & DEBUG;
  start->await_command = flags & AWAIT_COMMAND;
  start->init = (pid_t) take_number (&from);
  start->nofile[0] = take_number (&from);
  start->nofile[1] = take_number (&from);
  start->id = take_text (&from);
  start->directory = take_text (&from);
  start->spec = take_text (&from);
  start->user = take_text (&from);
  start->rootfs = take_text (&from);
  start->container_cgroup = take_text (&from);
  start->cgroup = take_text (&from);
  start->below = take_text (&from);
  start->groups = take_texts (&from, &start->n_groups);
  start->layers = take_texts (&from, &start->n_layers);
  start->files = take_files (&from, &start->n_files);
  return from.at == from.end ? 0 : -1;
}
