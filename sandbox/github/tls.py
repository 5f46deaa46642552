"""A certificate authority of the sandbox's own, made with openssl, for the stand-in for GitHub."""

import ipaddress
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sandbox.github import openssl

DAYS = "7"
# What strict clients (Python 3.13) ask of a certificate.
KEY, SIGNER = "subjectKeyIdentifier=hash", "authorityKeyIdentifier=keyid"


@dataclass(frozen=True)
class Authority:
    """The authority's certificate as PEM, and the server's side of TLS with a certificate that it has signed."""

    pem: str
    context: ssl.SSLContext


def make(host: str) -> Authority:
    """An authority and a certificate for an address or a name; no key stays on disk."""
    with tempfile.TemporaryDirectory(prefix="sandbox-ca-") as name:
        folder = Path(name)
        _request(
            folder, "ca", "/CN=Sandbox CA", "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign", KEY
        )
        signer = ("-CA", str(folder / "ca.pem"), "-CAkey", str(folder / "ca.key"))
        names = "subjectAltName=" + ",".join(sorted({_alternative(host), "DNS:localhost"}))
        _request(folder, "server", "/CN=Sandbox", names, "basicConstraints=CA:FALSE", KEY, SIGNER, signer=signer)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        return Authority((folder / "ca.pem").read_text(), context)


def _alternative(host: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(host)}"
    except ValueError:
        return f"DNS:{host}"


def _request(folder: Path, name: str, subject: str, *extensions: str, signer: tuple[str, ...] = ()) -> None:
    """A new key and its certificate, self-signed if no signer is given."""
    files = ("-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem"))
    command = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", DAYS, "-subj", subject, *files, *signer]
    for extension in extensions:
        command += ["-addext", extension]
    # The distribution's configuration would add extensions of its own.
    (folder / "openssl.cnf").write_text("[req]\ndistinguished_name = name\n[name]\n")
    openssl.run(*command, "-config", str(folder / "openssl.cnf"))
