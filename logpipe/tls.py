"""TLS at the port: whether certificate and key can be used, told in a line that says what to do."""

import ssl
from pathlib import Path

from logpipe.settings import BadSettingsError, Settings


def require_usable(settings: Settings) -> None:
    """Raises `BadSettingsError` for a certificate or a key that cannot be served."""
    if wrong := unusable(settings):
        raise BadSettingsError([wrong])


def own_context(certificate: str) -> ssl.SSLContext:
    """For a client on this machine: that very certificate is trusted, whatever its names are.
    Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(certificate)
    return context


def unusable(settings: Settings) -> str:
    """What is wrong with certificate or key, and where; empty where they can be served, or there
    are none."""
    certificate, key = settings.ssl_certfile, settings.ssl_keyfile or settings.ssl_certfile
    if not certificate:
        return ""
    named_key = f"SSL_KEYFILE={key}" if settings.ssl_keyfile else f"SSL_CERTFILE={certificate}"
    for named, path in ((f"SSL_CERTFILE={certificate}", certificate), (named_key, key)):
        try:
            Path(path).read_bytes()
        except OSError as error:
            return f"{named}: cannot be read: {error.strerror}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(certificate)
    except ssl.SSLError:
        return f"SSL_CERTFILE={certificate}: holds no certificate in PEM"
    try:
        # Always a password: OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, settings.ssl_keyfile_password or "-")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"{named_key}: is not the key of the certificate in SSL_CERTFILE"
        if b"ENCRYPTED" in Path(key).read_bytes():
            return f"{named_key}: its password is wrong or missing: SSL_KEYFILE_PASSWORD"
        return f"{named_key}: holds no private key in PEM"
    return ""
