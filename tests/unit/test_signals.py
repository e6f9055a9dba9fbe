"""Waiting for signals: none is missed, whichever thread got it and whenever."""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from broker_core.signals import Bell, Stop
from tests.waiting import wait_until

OURS = signal.SIGUSR1


class TestStop:
    def test_a_signal(self) -> None:
        """It is set by its signal."""
        with Stop(OURS) as stop:
            signal.raise_signal(OURS)
            stop.wait()
            assert stop.is_set()

    def test_a_signal_that_another_thread_gets(self) -> None:
        """Nothing interrupts the main thread then, and yet its wait ends."""
        us = threading.get_ident()

        def when_we_wait() -> None:
            wait_until(lambda: sys._current_frames()[us].f_code is Bell.wait.__code__)
            signal.pthread_kill(threading.get_ident(), OURS)

        with Stop(OURS) as stop:
            thread = threading.Thread(target=when_we_wait)
            thread.start()
            stop.wait()
            thread.join()
            assert stop.is_set()

    def test_set_by_a_thread(self) -> None:
        """It need be no signal."""
        with Stop() as stop:
            thread = threading.Thread(target=stop.set)
            thread.start()
            stop.wait()
            thread.join()
            assert stop.is_set()

    def test_no_longer_than(self) -> None:
        """With a time, the wait ends without being set."""
        with Stop(OURS) as stop:
            stop.wait(0)
            stop.wait(-1.0)
            stop.wait(0.001)
            assert not stop.is_set()

    def test_once_set_it_waits_no_more(self) -> None:
        """It stays set."""
        with Stop(OURS) as stop:
            stop.set()
            for _ in range(3):
                stop.wait()

    def test_puts_back(self) -> None:
        """Handlers and the wakeup descriptor are as before."""
        handler = signal.getsignal(OURS)
        with Stop(OURS):
            assert signal.getsignal(OURS) != handler
        assert signal.getsignal(OURS) == handler
        assert signal.set_wakeup_fd(-1) == -1

    def test_set_after_its_end(self) -> None:
        """Nothing is written to whatever has the descriptor by then."""
        with Stop() as stop:
            pass
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        stop.set()
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
        os.close(reader)
        os.close(writer)


class TestBell:
    def test_only_in_the_main_thread(self) -> None:
        """Elsewhere no signal could be waited for: it is refused, and leaves nothing open."""
        before = os.listdir("/dev/fd")
        with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="main thread"):
            pool.submit(Bell().__enter__).result()
        assert os.listdir("/dev/fd") == before

    def test_rings_before_the_wait(self) -> None:
        """What rang since the last wait ends the next one at once."""
        with Bell() as bell:
            bell.ring()
            bell.wait()

    def test_a_full_pipe(self) -> None:
        """Ringing never blocks."""
        with Bell() as bell:
            for _ in range(100_000):
                bell.ring()
            bell.wait()
