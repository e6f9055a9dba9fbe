"""The platform's endpoint for notices: ``ports.Notifier`` over HTTP.

Promises: those of ``exchange``; of the answer the status is read and nothing else, so nothing of it can be logged.
Imports no other adapter.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from os import PathLike

import urllib3
from urllib3.exceptions import NewConnectionError

from broker_core.adapters.exchange import Endpoint
from broker_core.errors import ConfigurationError
from broker_core.events import Notice
from broker_core.notice_signature import EVENT_HEADER, ID_HEADER, SIGNATURE_HEADER, signature
from broker_core.ports import Answer, Clock, Delivery

#: answers of a receiver that can take nothing now, whatever it is sent
_AWAY = frozenset({408, 429, *range(500, 600)})
#: seconds for each single wait; the sum is what ``send`` is given
_ONE_WAIT = 5.0


class Webhook:
    """Signs and sends notices to one URL."""

    def __init__(self, url: str, secret: str, clock: Clock, ca_file: str | PathLike[str] | None = None) -> None:
        """``url`` as ``Settings`` accepts it; it may hold a token, so it is never shown. ``ca_file``: CAs trusted
        beside the system's. Raises ConfigurationError."""
        try:
            self._endpoint = Endpoint(url, ca_file, connect_seconds=_ONE_WAIT, wait_seconds=_ONE_WAIT)
        except ValueError:
            raise ConfigurationError("BROKER_WEBHOOK_URL must be https:// off loopback") from None
        self._secret = secret
        self._clock = clock

    def send(self, notice: Notice, seconds: float) -> Delivery:
        """See ``ports.Notifier``."""
        body = notice.body()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "axiorank-secrets-broker",
            "Accept-Encoding": "identity",
            "Connection": "close",
            ID_HEADER: str(notice.id),
            EVENT_HEADER: notice.type.value,
            SIGNATURE_HEADER: signature([self._secret], int(self._clock.now().timestamp()), body),
        }
        return _told(
            lambda: self._endpoint.request("POST", headers, lambda answer: answer.status, seconds=seconds, body=body)
        )


def _told(run: Callable[[], int]) -> Delivery:
    """An exchange's end as the port says it: no exception gets out, since its text could quote what was sent."""
    try:
        status = run()
    except ssl.SSLError:
        return Delivery(Answer.AWAY, "tls")
    except NewConnectionError:  # in urllib3 a kind of time-out
        return Delivery(Answer.AWAY, "unreachable")
    except (TimeoutError, urllib3.exceptions.TimeoutError):
        return Delivery(Answer.AWAY, "timeout")
    except Exception:  # noqa: BLE001 - no name, refused, reset, no HTTP: whatever it is, nobody took the notice
        return Delivery(Answer.AWAY, "unreachable")
    if 200 <= status < 300:
        return Delivery(Answer.TAKEN, status=status)
    return Delivery(Answer.AWAY if status in _AWAY else Answer.REFUSED, "status", status)
