"""A worker killed (-9) in the middle of two hundred events: every event ends, and the highest version wins."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from broker_core.bootstrap import App
from broker_core.dev.aws import Fault
from broker_core.dev.children import Child
from broker_core.dev.stack import LocalStack
from tests.faults.flood import flooding
from tests.waiting import wait_until

#: seconds; slow enough that whoever is killed is in the middle of something
SLOW = Fault("kms:Encrypt", latency=0.05)


def children_of(child: Child) -> list[int]:
    """The processes that dramatiq's master started: from the kernel where it says so, else (macOS) from pgrep."""
    listed = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    if listed.exists():
        return [int(word) for word in listed.read_text().split()]
    found = subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True, check=True)
    return [int(line) for line in found.stdout.split()]


def test_a_working_process(stack: LocalStack, app: App) -> None:
    """When the process that works is killed, the master ends with it, and a restarted worker finishes everything."""
    stack.aws.faults.add(SLOW)
    with flooding(stack, app, "worker", "scheduler"):
        killed = stack.programs["worker"]
        working = children_of(killed)
        assert working
        for process in working:
            os.kill(process, signal.SIGKILL)
        wait_until(lambda: not killed.alive, deadline_seconds=60, what="the master's end")
        stack.run("worker")


def test_the_master(stack: LocalStack, app: App) -> None:
    """When the master is killed, what it leaves behind and a new worker do not get into each other's way."""
    stack.aws.faults.add(SLOW)
    with flooding(stack, app, "worker", "scheduler"):
        orphaned = stack.programs["worker"]
        orphaned.signal("KILL")
        stack.run("worker")
    orphaned.stop("KILL", seconds=1)
