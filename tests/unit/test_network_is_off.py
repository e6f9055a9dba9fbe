"""Unit tests reach nothing: what the suite's own fixtures promise."""

from __future__ import annotations

import socket

import pytest


def test_no_socket_opens() -> None:
    """A unit test that opens a network socket fails (pytest-socket warns first, and warnings are errors)."""
    with pytest.raises(UserWarning, match=r"socket\.socket"):
        socket.socket(socket.AF_INET)


def test_no_name_is_resolved() -> None:
    """A unit test that asks DNS fails."""
    with pytest.raises(UserWarning, match="getaddrinfo"):
        socket.getaddrinfo("example.com", 443)
