/* Why something could not be done, as the spawner's children report it and Python raises it. */
#ifndef CRUNGO_FAILURE_H
#define CRUNGO_FAILURE_H

enum
{
  CRUNGO_FAILURE_LIBCRUN = 1, /* LibcrunError: `operation`, `number` (errno), `message` */
  CRUNGO_FAILURE_CONTAINER,   /* ContainerError: what was asked for is wrong */
  CRUNGO_FAILURE_HOST,        /* HostError: this machine cannot do it; `hint` says what to do */
  CRUNGO_FAILURE_EXEC,        /* the program could not be executed: `number` (errno), perhaps `message` */
  CRUNGO_FAILURE_ENDED        /* the child that was to start it has ended without a word */
};

struct crungo_failure
{
  int kind; /* 0: there is none */
  int number;
  char operation[16];
  char message[2048];
  char hint[256];
};

/* Note what failed; returns -1.  */
int crungo_fail (struct crungo_failure *why, int kind, const char *format, ...)
    __attribute__ ((format (printf, 3, 4)));

/* Note a system call that failed, by errno and by what it was about; returns -1.  */
int crungo_fail_errno (struct crungo_failure *why, const char *where);

#endif
