/* A slow link: link MBIT_PER_SECOND MILLISECONDS COMMAND [ARGUMENT...]
 *
 * Joins the network namespace that it is started in (10.99.0.1) to a new one (10.99.0.2), in which COMMAND runs, by a
 * pair of TUN devices. Each direction carries so many megabits per second and takes half of the milliseconds, so that
 * they are the round trip's. What counts is payload: 52 bytes of each packet, its IP and TCP headers, travel free.
 * netem(8) would do the same, but many kernels come without it. Ends with COMMAND.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MTU = 1500, SLOTS = 1 << 13, HEADERS = 52 };

/* One direction: packets on their way, in the order in which they arrive. */
struct way
{
  int from, to;
  double free_at; /* when the wire has taken what it was given */
  unsigned first, count;
  struct packet { double due; unsigned short length; unsigned char data[MTU]; } *packets;
};

static double now (void)
{
  struct timespec t;
  clock_gettime (CLOCK_MONOTONIC, &t);
  return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

static int open_tun (const char *address)
{
  int fd = open ("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI };
  strcpy (request.ifr_name, "link0");
  if (fd < 0 || ioctl (fd, TUNSETIFF, &request) < 0)
    err (1, "/dev/net/tun");
  char command[256];
  snprintf (command, sizeof command, "ip link set lo up && ip link set link0 mtu %d txqueuelen 5000 up && ip address add %s/30 dev link0",
            MTU, address);
  if (system (command) != 0)
    errx (1, "%s", command);
  return fd;
}

/* Take in what there is, as long as there is room. A full way leaves packets in the device's queue, which drops them. */
static void take (struct way *way, double bytes_per_second, double delay)
{
  while (way->count < SLOTS)
    {
      struct packet *packet = &way->packets[(way->first + way->count) % SLOTS];
      ssize_t length = read (way->from, packet->data, MTU);
      if (length <= 0)
        return;
      double at = now ();
      if (way->free_at < at)
        way->free_at = at;
      if (length > HEADERS)
        way->free_at += (double) (length - HEADERS) / bytes_per_second;
      packet->length = (unsigned short) length;
      packet->due = way->free_at + delay;
      way->count++;
    }
}

/* Hand over what has arrived; returns when the next will. */
static double give (struct way *way)
{
  double at = now ();
  for (; way->count > 0; way->first = (way->first + 1) % SLOTS, way->count--)
    {
      struct packet *packet = &way->packets[way->first];
      if (packet->due > at)
        return packet->due;
      if (write (way->to, packet->data, packet->length) < 0 && errno != EINVAL && errno != EAGAIN)
        err (1, "write");
    }
  return 0;
}

static void arm (int timer, double due)
{
  struct itimerspec when = { .it_value = { .tv_sec = (time_t) due, .tv_nsec = (long) ((due - (double) (time_t) due) * 1e9) } };
  timerfd_settime (timer, TFD_TIMER_ABSTIME, &when, NULL);
}

int main (int argc, char **argv)
{
  if (argc < 4)
    errx (2, "usage: link MBIT_PER_SECOND MILLISECONDS COMMAND [ARGUMENT...]");
  double bytes_per_second = atof (argv[1]) * 1e6 / 8, delay = atof (argv[2]) / 2000;
  int near = open_tun ("10.99.0.1"), here = open ("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  if (unshare (CLONE_NEWNET) < 0)
    err (1, "unshare");
  int far = open_tun ("10.99.0.2");
  pid_t child = fork ();
  if (child == 0)
    {
      prctl (PR_SET_PDEATHSIG, SIGKILL);
      execvp (argv[3], argv + 3);
      err (127, "%s", argv[3]);
    }
  if (setns (here, CLONE_NEWNET) < 0) /* whoever wants to use the near end finds it by our pid */
    err (1, "setns");
  struct way ways[2] = { { .from = near, .to = far }, { .from = far, .to = near } };
  for (int i = 0; i < 2; i++)
    {
      ways[i].packets = mmap (NULL, SLOTS * sizeof (struct packet), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (ways[i].packets == MAP_FAILED)
        err (1, "mmap");
    }
  /* A wire does not wait for a processor. Where that is not allowed, figures are worse on a busy machine. */
  sched_setscheduler (0, SCHED_FIFO, &(struct sched_param) { .sched_priority = 1 });
  prctl (PR_SET_TIMERSLACK, 1000, 0, 0, 0);
  int timer = timerfd_create (CLOCK_MONOTONIC, TFD_CLOEXEC);
  while (waitpid (child, NULL, WNOHANG) == 0)
    {
      double due = now () + 0.2; /* the child is looked after now and then */
      for (int i = 0; i < 2; i++)
        {
          take (&ways[i], bytes_per_second, delay);
          double next = give (&ways[i]);
          if (next != 0 && next < due)
            due = next;
        }
      arm (timer, due);
      struct pollfd fds[] = {
        { .fd = ways[0].count < SLOTS ? near : -1, .events = POLLIN },
        { .fd = ways[1].count < SLOTS ? far : -1, .events = POLLIN },
        { .fd = timer, .events = POLLIN },
      };
      if (poll (fds, 3, -1) < 0 && errno != EINTR)
        err (1, "poll");
    }
  return 0;
}
