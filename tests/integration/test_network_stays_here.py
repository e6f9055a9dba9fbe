"""Integration tests reach this machine only: what the suite's own fixtures promise."""

from __future__ import annotations

import socket

import pytest


def test_another_machine_is_out_of_reach() -> None:
    """A connection to an address that is not loopback fails before it is tried."""
    with pytest.raises(UserWarning, match=r"192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 443), timeout=1)


def test_this_machine_is_in_reach() -> None:
    """A server on loopback can be reached, by any of its addresses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
