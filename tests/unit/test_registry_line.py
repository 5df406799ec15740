"""How much each connection of a pull asks for, so that all of them end together."""

from __future__ import annotations

import heapq
import math

from hypothesis import given
from hypothesis import strategies as st

from crungo.registry.line import Line

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Waiting:
    """A download that does or does not want help."""

    def __init__(self, *, wants: bool) -> None:
        self.wants = wants
        self.asked = 0

    def help(self) -> bool:
        self.asked += 1
        return self.wants


def fetched(speeds: list[float], left: int, *, round_trip: float) -> tuple[float, list[int]]:
    """Let connections of so many bytes per second fetch it all.

    For how many seconds the first that had nothing to do watched the others, and the lengths they asked for.
    """
    clock = Clock()
    line = Line(len(speeds), left, clock=clock)
    line.workers = len(speeds)
    lengths: list[int] = []
    done, idle = 0.0, math.inf
    ends = [(clock.now, number) for number in range(len(speeds))]
    begins = [clock.now] * len(speeds)  # of its answer
    while ends:
        before, (clock.now, number) = clock.now, heapq.heappop(ends)
        done += sum(
            speed * max(0.0, clock.now - max(before, begin)) for speed, begin in zip(speeds, begins, strict=True)
        )
        line.received = int(done)
        if line.left > 0:
            length = min(line.left, line.length())
            line.left -= length
            lengths.append(length)
            begins[number] = clock.now + round_trip
            heapq.heappush(ends, (begins[number] + length / speeds[number], number))
        else:
            line.workers -= 1
            begins[number] = math.inf
            idle = min(idle, clock.now)
    return clock.now - idle, lengths


@given(st.lists(st.floats(1e6, 5e6), min_size=2, max_size=8))
def test_connections_of_a_slow_line_end_together(speeds: list[float]) -> None:
    idle, _ = fetched(speeds, 400 * MIB, round_trip=0.04)
    assert idle < 1.5  # the slowest needs a quarter of a second for the shortest segment


def test_segments_get_shorter_only_towards_the_end_of_the_pull() -> None:
    _, lengths = fetched([3e6] * 8, 380 * MIB, round_trip=0.04)
    half = len(lengths) // 2
    assert all(2 * MIB < length < 4 * MIB for length in lengths[8:half])
    assert 256 << 10 <= min(lengths[-9:-1]) < MIB / 2


def test_segments_of_a_fast_line_stay_long() -> None:
    _, lengths = fetched([60e6] * 6, 1000 * MIB, round_trip=0.0005)
    assert lengths[6:50] == [16 * MIB] * 44
    assert min(lengths[:-1]) >= 4 * MIB


def test_first_segments_do_not_end_at_once() -> None:
    line = Line(8, 1000 * MIB)
    line.workers = 8
    lengths = [line.length() for _ in range(10)]
    assert lengths[:8] == [4 * MIB + number * MIB // 2 for number in range(8)]
    assert lengths[8:] == lengths[:2]


@given(
    received=st.integers(0, 1 << 50),
    left=st.integers(-(1 << 40), 1 << 50),
    workers=st.integers(0, 20),
    seconds=st.floats(0, 1e6),
)
def test_lengths_are_bounded(received: int, left: int, workers: int, seconds: float) -> None:
    clock = Clock()
    line = Line(8, left, clock=clock)
    line.received, line.workers = received, workers
    clock.now += seconds
    assert 256 << 10 <= line.length() <= 16 * MIB


def test_a_line_that_gets_slower_is_seen() -> None:
    clock = Clock()
    line = Line(8, 1000 * MIB, clock=clock)
    line.workers = 1
    rates = []
    for step in range(100):
        clock.now += 0.1
        line.received += 5_000_000 if step < 50 else 500_000
        rates.append(line.rate() or 0)
    assert abs(rates[49] - 50e6) < 1
    assert abs(rates[75] - 5e6) < 1


def test_help_goes_to_the_oldest_that_wants_it() -> None:
    line = Line(8, 0)
    full, first, second = Waiting(wants=False), Waiting(wants=True), Waiting(wants=True)
    line.downloads += [full, first, second]
    line.freed()
    assert (full.asked, first.asked, second.asked) == (1, 1, 0)
