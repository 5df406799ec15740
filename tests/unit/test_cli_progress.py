"""The display of pulls: what it says, that it fits, and what it leaves on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import termios
from collections.abc import Iterator

import anyio
import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crungo.cli.progress import pull_progress
from crungo.cli.progress_state import Pull, Rate, closing_lines, live_lines, plain_line
from crungo.image.manifest import Descriptor
from crungo.image.reference import Reference
from crungo.registry.progress import (
    ImageDone,
    ImageResolved,
    ImageRetry,
    LayerDone,
    LayerProgress,
    LayerRetry,
    Phase,
    ProgressEvent,
)

ALPINE = Reference.parse("alpine")
MB = 1_000_000


def digest(number: int) -> str:
    return f"sha256:{number:064x}"[:7] + f"{number:012x}".ljust(64, "0")


def resolved(*sizes: int) -> ImageResolved:
    layers = tuple(Descriptor(media_type="", digest=digest(n), size=size) for n, size in enumerate(sizes))
    return ImageResolved(reference=ALPINE, digest="sha256:" + "d" * 64, layers=layers)


def at(number: int, phase: Phase, done: int, total: int) -> LayerProgress:
    return LayerProgress(digest=digest(number), phase=phase, done=done, total=total)


def done(number: int, *, cached: bool = False) -> LayerDone:
    return LayerDone(digest=digest(number), cached=cached)


FINISHED = ImageDone(reference=ALPINE, digest="sha256:" + "d" * 64, changed=True)


class TestState:
    def test_lines(self) -> None:
        pull = Pull()
        pull.take(resolved(10 * MB, 20 * MB, 5 * MB, MB), 0)
        for second in range(5):
            pull.take(at(0, "downloading", second * MB, 10 * MB), second)
        pull.take(at(1, "extracting", 20 * MB, 20 * MB), 4)
        pull.take(done(2, cached=True), 4)
        assert live_lines([pull], 100, 24, 4) == [
            "latest: Pulling from alpine",
            "000000000000: Downloading [===============>                        ]        4MB/10MB  1MB/s",
            "000000000001: Extracting  [========================================]       20MB/20MB",
            "000000000002: Already exists",
            "000000000003: Waiting",
            "Total: 24MB/31MB, 1/4 layers, 1MB/s, 8s left",
        ]
        assert live_lines([pull], 30, 24, 4)[1:3] == ["000000000000: Downloading ", "000000000001: Extracting  "]
        assert live_lines([pull], 60, 24, 4)[1] == "000000000000: Downloading         4MB/10MB  1MB/s"

    def test_what_was_here_before_is_no_progress(self) -> None:
        pull = Pull()
        pull.take(resolved(100 * MB), 0)
        pull.take(at(0, "waiting", 0, 100 * MB), 0)
        pull.take(at(0, "downloading", 90 * MB, 100 * MB), 0)
        pull.take(at(0, "downloading", 92 * MB, 100 * MB), 2)
        assert live_lines([pull], 100, 24, 2)[-1] == "Total: 92MB/100MB, 0/1 layers, 1MB/s, 9s left"

    def test_retries_are_told_until_bytes_come(self) -> None:
        pull = Pull()
        pull.take(resolved(MB), 0)
        pull.take(LayerRetry(digest=digest(0), reason="connection reset\x1b[2J\né", wait=0.5), 0)
        assert live_lines([pull], 100, 24, 0)[1] == "000000000000: Waiting"
        pull.take(at(0, "downloading", 5, MB), 1)
        pull.take(LayerRetry(digest=digest(0), reason="connection reset\x1b[2J\né", wait=0.5), 2)
        assert live_lines([pull], 100, 24, 2)[1] == "000000000000: Retrying: connection reset [2J ?"
        pull.take(at(0, "downloading", 6, MB), 3)
        assert "Retrying" not in live_lines([pull], 100, 24, 3)[1]

    def test_a_manifest_that_is_waited_for(self) -> None:
        pull, other = Pull(), Pull()
        other.take(resolved(MB), 0)
        refused = ImageRetry(reference=ALPINE, reason="hub answered 429 Too Many Requests\x1b[2J", wait=60)
        pull.take(refused, 0)
        note = "alpine: Retrying in 1m00s: hub answered 429 Too Many Requests [2J"
        assert live_lines([pull], 100, 24, 0) == [note]
        assert live_lines([pull, other], 100, 24, 0)[0] == note
        assert plain_line(pull, refused) == note
        pull.take(resolved(MB), 1)
        assert not any("Retrying" in line for line in live_lines([pull], 100, 24, 1))

    def test_layers_that_do_not_fit(self) -> None:
        pull = Pull()
        pull.take(resolved(*[MB] * 60), 0)
        for number in range(10, 16):
            pull.take(at(number, "downloading", 1, MB), 0)
        pull.take(done(0), 0)
        lines = live_lines([pull], 80, 12, 0)
        assert [line[:12] for line in lines[1:-1]] == [f"{number:012x}" for number in range(10, 16)]
        assert lines[-1] == "Total: 1MB/60MB, 1/60 layers"
        assert live_lines([pull], 80, 4, 0) == [*lines[:2], lines[-1]]
        assert live_lines([pull], 80, 2, 0) == [lines[-1]]
        assert live_lines([pull], 80, 1, 0) == []
        assert len(closing_lines(pull, 80)) == 61

    def test_several_images(self) -> None:
        one, two, over = Pull(), Pull(), Pull()
        one.take(resolved(MB), 0)
        two.take(resolved(MB, MB), 0)
        over.take(resolved(MB), 0)
        over.take(FINISHED, 0)
        lines = live_lines([one, two, over], 80, 24, 0)
        assert len(lines) == 6
        assert lines[-1].startswith("Total: 0B/3MB, 0/3 layers")

    def test_a_layer_that_was_not_announced(self) -> None:
        pull = Pull()  # layers of an image that is here are made good
        pull.take(at(0, "extracting", MB, MB), 0)
        assert live_lines([pull], 80, 24, 0)[0].startswith("000000000000: Extracting")
        pull.take(done(0), 0)
        assert closing_lines(pull, 80) == ["000000000000: Pull complete"]

    def test_a_rate_falls_while_nothing_comes(self) -> None:
        rate = Rate()
        assert rate.at(0) is None
        rate.add(0, 0)
        rate.add(0.5, 500)
        assert rate.at(0.5) is None
        assert rate.at(1) == 500
        assert rate.at(10) == 50
        for second in range(1, 100):
            rate.add(second, 500 + second * 100)
        assert rate.at(99) == pytest.approx(100)

    @given(st.data())
    def test_lines_fit_any_screen(self, data: st.DataObject) -> None:
        sizes = data.draw(st.lists(st.integers(0, 10**13), max_size=30))
        pull, waiting = Pull(), Pull()
        waiting.take(
            ImageRetry(reference=ALPINE, reason=data.draw(st.text(max_size=300)), wait=data.draw(st.floats(0, 1e9))), 0
        )
        pull.take(resolved(*sizes), 0)
        now = 0.0
        for number, size in enumerate(sizes):
            for phase in data.draw(st.lists(st.sampled_from(("waiting", "downloading", "extracting")), max_size=3)):
                now += data.draw(st.floats(0, 3))
                pull.take(at(number, phase, data.draw(st.integers(0, size)), size), now)  # type: ignore[arg-type]
            if data.draw(st.booleans()):
                pull.take(done(number, cached=data.draw(st.booleans())), now)
        columns, rows = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 50))
        lines = live_lines(data.draw(st.sampled_from([[pull], [waiting], [waiting, pull]])), columns, rows, now)
        assert len(lines) < rows
        assert all(len(line) < max(columns, 1) for line in lines)


class Screen:
    """A pseudo-terminal and what it shows."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.master, self.slave = pty.openpty()
        os.set_blocking(self.master, False)
        self._screen = pyte.HistoryScreen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.resize(rows, columns)

    def rows(self) -> list[str]:
        """The rows with something on them, and the one of the cursor."""
        try:
            while data := os.read(self.master, 65536):
                self._stream.feed(data)
        except BlockingIOError:
            pass
        return [row.rstrip() for row in self._screen.display[: self._screen.cursor.y + 1]]

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    monkeypatch.setattr("crungo.cli.progress._INTERVAL", 0.0)
    found = Screen()
    yield found
    found.close()


class TestDisplay:
    def test_it_ends_with_a_line_for_each_layer(self, screen: Screen) -> None:
        os.write(screen.slave, b"$ crungo pull alpine\n")
        with pull_progress(screen.slave) as progress:
            with progress.follow() as show:
                show(resolved(MB, MB))
                show(at(0, "downloading", MB // 2, MB))
                rows = screen.rows()
                assert rows[:2] == ["$ crungo pull alpine", "latest: Pulling from alpine"]
                assert rows[2].startswith("000000000000: Downloading [=")
                assert rows[3:] == ["000000000001: Waiting", "Total: 500kB/2MB, 0/2 layers", ""]
                show(done(0))
                show(done(1, cached=True))
                show(FINISHED)
            over = screen.rows()
        assert over[2:] == ["000000000000: Pull complete", "000000000001: Already exists", ""]
        assert screen.rows() == over

    def test_a_failure_wipes_it_out(self, screen: Screen) -> None:
        os.write(screen.slave, b"above\n")

        def fail(event: ProgressEvent) -> None:
            with pull_progress(screen.slave) as progress, progress.follow() as show:
                show(event)
                show(at(0, "downloading", MB // 2, MB))
                assert len(screen.rows()) > 5
                os.write(screen.slave, b"^C")  # what the terminal echoes lands on the row below, and goes too
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fail(resolved(MB, MB))
        assert screen.rows() == ["above", ""]

    def test_more_layers_than_rows(self, screen: Screen) -> None:
        screen.resize(80, 10)
        os.write(screen.slave, b"above\n")
        with pull_progress(screen.slave) as progress, progress.follow() as show:
            show(resolved(*[MB] * 40))
            for number in range(40):
                show(at(number, "downloading", 1, MB))
                assert screen.rows()[0] == "above"  # nothing has scrolled
                show(done(number))
            show(FINISHED)
        assert screen.rows() == [*(f"{number:012x}: Pull complete" for number in range(31, 40)), ""]

    def test_another_size(self, screen: Screen) -> None:
        os.write(screen.slave, b"above\n")
        with pull_progress(screen.slave) as progress, progress.follow() as show:
            show(resolved(MB, MB, MB))
            screen.rows()
            screen.resize(120, 24)
            show(at(0, "downloading", 1, MB))
            assert screen.rows()[0] == "above"
            assert len(screen.rows()) == 7
            before = screen.rows()[1:-1]
            screen.resize(30, 24)
            show(at(0, "downloading", 2, MB))
            # Most terminals have wrapped the lines that are wider than they are now (the emulator cuts them instead).
            wrapped = sum(-(-len(row) // 30) for row in before)
            assert wrapped > len(before)
            assert os.read(screen.master, 65536).startswith(f"\x1b[{wrapped}A\r".encode())

    def test_what_came_meanwhile_is_not_drawn_over(self, screen: Screen) -> None:
        """Stopped, the shell has had the terminal; what was shown until then stays above its lines."""
        with pull_progress(screen.slave) as progress, progress.follow() as show:
            show(resolved(10 * MB))
            os.write(screen.slave, b"[1]+  Stopped\n$ fg\n")
            signal.raise_signal(signal.SIGCONT)
            show(done(0))
            show(FINISHED)
        assert screen.rows()[:7] == [
            "latest: Pulling from alpine",
            "000000000000: Waiting",
            "Total: 0B/10MB, 0/1 layers",
            "[1]+  Stopped",
            "$ fg",
            "latest: Pulling from alpine",
            "000000000000: Pull complete",
        ]
        assert signal.getsignal(signal.SIGCONT) == signal.SIG_DFL

    def test_two_at_once_of_which_one_fails(self, screen: Screen) -> None:
        with pull_progress(screen.slave) as progress, progress.follow() as show:
            show(resolved(MB))

            def fail() -> None:
                with progress.follow() as other:
                    other(resolved(MB, MB))
                    assert len(screen.rows()) == 7
                    raise ValueError

            with pytest.raises(ValueError, match=r"^$"):
                fail()
            assert len(screen.rows()) == 4
            show(FINISHED)
        assert screen.rows() == ["latest: Pulling from alpine", "000000000000: Waiting", ""]

    def test_a_missing_image_is_said_to_be(self, screen: Screen) -> None:
        with pull_progress(screen.slave, missing=True).follow() as show:
            show(resolved(MB))
            show(done(0))
            show(FINISHED)
        assert screen.rows() == [
            "Unable to find image 'alpine:latest' locally",
            "latest: Pulling from alpine",
            "000000000000: Pull complete",
            "Status: Downloaded newer image for alpine:latest",
            "",
        ]

    @pytest.mark.anyio
    async def test_it_is_redrawn_though_nothing_comes(self, screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("crungo.cli.progress._TICK", 0.01)
        with pull_progress(screen.slave) as progress, progress.follow() as show:
            async with anyio.create_task_group() as group:
                group.start_soon(progress.keep_fresh)
                await anyio.wait_all_tasks_blocked()
                show(resolved(MB))
                show(at(0, "downloading", 1, MB))
                assert "[" in screen.rows()[1]
                screen.resize(40, 24)
                with anyio.fail_after(5):
                    while "[" in screen.rows()[1]:
                        await anyio.wait_readable(screen.master)
                group.cancel_scope.cancel()

    def test_a_terminal_that_takes_nothing_holds_nobody_up(self, screen: Screen) -> None:
        termios.tcflow(screen.slave, termios.TCOOFF)  # Ctrl-S
        with pull_progress(screen.slave) as progress, progress.follow() as show:
            for number in range(100):
                show(at(0, "downloading", number, MB))
            termios.tcflow(screen.slave, termios.TCOON)
            show(at(0, "downloading", 500_000, MB))
            assert "500kB/1MB" in screen.rows()[0]


def test_plain_lines() -> None:
    reader, writer = os.pipe()
    with pull_progress(writer, missing=True) as progress, progress.follow() as show:
        show(resolved(MB, MB))
        show(at(0, "downloading", 1, MB))
        show(LayerRetry(digest=digest(0), reason="reset", wait=3.2))
        show(done(0))
        show(done(1, cached=True))
        show(FINISHED)
    os.close(writer)
    text = os.read(reader, 65536).decode()
    os.close(reader)
    assert text.splitlines() == [
        "Unable to find image 'alpine:latest' locally",
        "latest: Pulling from alpine",
        "000000000000: Retrying in 3s: reset",
        "000000000000: Pull complete",
        "000000000001: Already exists",
        "Status: Downloaded newer image for alpine:latest",
    ]


def test_a_reader_that_leaves_stops_no_pull() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pull_progress(writer) as progress, progress.follow() as show:
        show(resolved(MB))
    os.close(writer)
