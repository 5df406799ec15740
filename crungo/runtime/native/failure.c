#define _GNU_SOURCE
#include "failure.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int
crungo_fail (struct crungo_failure *why, int kind, const char *format, ...)
{
  va_list arguments;

  why->kind = kind;
  va_start (arguments, format);
  vsnprintf (why->message, sizeof (why->message), format, arguments);
  va_end (arguments);
  return -1;
}

int
crungo_fail_errno (struct crungo_failure *why, const char *where)
{
  return crungo_fail (why, CRUNGO_FAILURE_CONTAINER, "%s: %s", where, strerror (errno));
}
