"""moto's own WSGI applications, called in-process: the store of IAM and KMS, and everything that the guard leaves to
it.

Promise: moto is asked only after the guard has authenticated and authorised; the account is the one the guard names,
and a header from outside cannot choose another. One call at a time: moto's backends are not made for threads. Its
exceptions become an InternalFailure without their text. moto's state is global to the process: `reset` empties it,
and that is why only one double may run in a process.
"""

from __future__ import annotations

import io
import threading
from typing import Any

from moto.core.base_backend import BackendDict
from moto.kms import models as kms_models
from moto.kms import utils as kms_utils
from moto.moto_server.werkzeug_app import create_backend_app

from broker_core.dev.aws.inbound import Inbound
from broker_core.dev.aws.wire import Answer, AwsError


def reset() -> None:
    """Empties every backend of this process."""
    BackendDict.reset()


class MotoApp:
    """moto's KMS and IAM."""

    def __init__(self) -> None:
        # moto makes an RSA key for every symmetric key too, 100 ms of work that nothing uses
        kms_models.generate_private_key = _private_key  # type: ignore[attr-defined,assignment]  # moto has no seam
        self._lock = threading.Lock()
        self._apps: dict[str, Any] = {service: create_backend_app(service) for service in ("kms", "iam")}

    def ask(self, inbound: Inbound, account: str, body: bytes) -> Answer:
        """moto's answer to the request in that account, with `body` for its body. Raises AwsError."""
        seen: dict[str, Any] = {}

        def start_response(status: str, headers: list[tuple[str, str]], _info: object = None) -> None:
            seen.update(status=int(status[:3]), headers=dict(headers))

        try:
            with self._lock:
                parts = b"".join(self._apps[inbound.service](_environ(inbound, account, body), start_response))
        except Exception:  # noqa: BLE001 - whatever breaks inside moto is a failure of the service, not of the guard
            raise AwsError("InternalFailure", "The double could not do this.") from None
        return Answer(seen["status"], parts, seen["headers"].get("Content-Type", "text/xml"))


def _private_key(spec: str) -> Any:
    return None if spec == "SYMMETRIC_DEFAULT" else kms_utils.generate_private_key(spec)


def _environ(inbound: Inbound, account: str, body: bytes) -> dict[str, Any]:
    host = "iam.amazonaws.com" if inbound.service == "iam" else f"kms.{inbound.region}.amazonaws.com"
    return {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "SERVER_NAME": host,
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_TYPE": inbound.headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_HOST": host,
        "HTTP_AUTHORIZATION": inbound.headers.get("authorization", ""),
        "HTTP_X_AMZ_TARGET": inbound.headers.get("x-amz-target", ""),
        "HTTP_X_MOTO_ACCOUNT_ID": account,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
