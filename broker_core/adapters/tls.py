"""Whom we trust when we connect: one TLS context for upstreams, for the webhook, and for the broker that ``exec`` asks.

The promise: TLS 1.2 or later; the system's CAs and those of a file that a setting of ours names, checked at the start;
nothing of the environment's. So it is not made by ``ssl.create_default_context``, which writes session keys to
SSLKEYLOGFILE, nor with ``load_default_certs``, which lets SSL_CERT_FILE and SSL_CERT_DIR replace the system's CAs.
Imports errors only.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from os import PathLike

from broker_core.errors import ConfigurationError


def client_context(ca_file: str | PathLike[str] | None, named: str = "BROKER_EGRESS_CA_FILE") -> ssl.SSLContext:
    """A context that checks certificates and names. ``ca_file``: more CAs, as PEM. Raises ConfigurationError where it
    cannot be used, by what it was ``named``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.hostname_checks_common_name = False
    _trust_the_system(context)
    try:
        if ca_file is not None:
            context.load_verify_locations(cafile=ca_file)
    except (OSError, ssl.SSLError):
        raise ConfigurationError(f"{named}: not a readable file of PEM certificates") from None
    return context


def _trust_the_system(context: ssl.SSLContext) -> None:
    """The places that OpenSSL was built with."""
    paths = ssl.get_default_verify_paths()
    for kind, path in (("cafile", paths.openssl_cafile), ("capath", paths.openssl_capath)):
        with suppress(OSError, ssl.SSLError):  # most systems have only one of the two
            context.load_verify_locations(**{kind: path})
