"""What a client needs for TLS, from PEM files; what is wrong with one of them is said at once, and which one it is."""

from __future__ import annotations

import ssl
from pathlib import Path


class TlsFilesError(ValueError):
    """A PEM file cannot be used; the message names it and the way out."""


def client_context(
    ca_file: Path | str | None = None,
    certificate_file: Path | str | None = None,
    key_file: Path | str | None = None,
    key_password: str | None = None,
) -> ssl.SSLContext:
    """TLS 1.2 or later, with the server's certificate and name checked.

    Parameters
    ----------
    ca_file
        The authority that is trusted, alone; None trusts those of the system.
    certificate_file, key_file
        Of this client, for mutual TLS; both or neither. The certificate's file may hold the key too.
    key_password
        Of an encrypted key; nobody is asked for it on the terminal.

    Raises
    ------
    TlsFilesError
        If a file is missing, unreadable, not PEM, or key and certificate do not belong together.
    """
    for path in (ca_file, certificate_file, key_file):
        if path is not None:
            _check_readable(Path(path))
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        raise TlsFilesError(f"{ca_file}: no certificate in it ({_reason(error)}); wanted is a PEM file") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if key_file is not None and certificate_file is None:
        raise TlsFilesError(f"{key_file}: a key without a certificate; name the certificate_file too")
    if certificate_file is None:
        return context

    def password() -> str:
        if key_password is None:
            raise TlsFilesError(f"{key_file or certificate_file}: the key is encrypted; give it unencrypted, mode 600")
        return key_password

    try:
        context.load_cert_chain(certificate_file, key_file, password)
    except ssl.SSLError as error:
        raise TlsFilesError(
            f"{certificate_file}, {key_file or 'its key'}: {_reason(error)}; wanted are a certificate and its own key, "
            "as PEM"
        ) from error
    return context


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise TlsFilesError(f"{path}: {error.strerror}; wanted is a PEM file that this user may read") from error


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
