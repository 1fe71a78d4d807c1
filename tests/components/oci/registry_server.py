"""A real OCI registry beside us, the distribution project's, on the loopback interface: open, behind Basic authentication, or
behind tokens. It is started with its storage below a directory and ended by its pid.
"""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

PROGRAM = "docker-registry"
USER, PASSWORD = "operator", "open sesame"
LOGIN = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
SERVICE, ISSUER = "registry-of-a-test", "token-server-of-a-test"

_PATIENCE = 30.0  # seconds
# bcrypt, the only kind that the registry takes, of `PASSWORD`.
_HTPASSWD = f"{USER}:$2b$04$UptR86l2djPS4.K5Z9m2P.c87xJe1Bo9tD35Ubr0uguWPHSu1kk7O\n"


@dataclass(frozen=True, slots=True)
class RunningRegistry:
    """A registry that answers.

    Attributes:
        host: as refs name it. storage: where it keeps what is pushed. log: what it prints.
    """

    host: str
    storage: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def blob_file(self, digest: str) -> Path:
        """Where it keeps the bytes of a blob or manifest."""
        algorithm, _, digits = digest.partition(":")
        return self.storage / "docker/registry/v2/blobs" / algorithm / digits[:2] / digits / "data"


@contextmanager
def registry(directory: Path, *, authentication: Mapping[str, Any] | None = None) -> Iterator[RunningRegistry]:
    """A registry with its files in an empty directory, ended with the block."""
    port = _free_port()
    running = RunningRegistry(f"localhost:{port}", directory / "storage", directory / "log")
    options = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {
            "filesystem": {"rootdirectory": os.fspath(running.storage)},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "http": {"addr": f"127.0.0.1:{port}", "secret": "of a test"},
        "auth": authentication or {},
    }
    if not authentication:
        del options["auth"]
    file = directory / "config.yml"
    file.write_text(json.dumps(options), encoding="utf-8")  # which is YAML as well
    with running.log.open("wb") as log:
        process = subprocess.Popen(
            [PROGRAM, "serve", os.fspath(file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"]},
        )
    try:
        _wait_until_it_answers(running, process)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def basic_authentication(directory: Path) -> Mapping[str, Any]:
    """Only `USER` with `PASSWORD` may do anything."""
    file = directory / "htpasswd"
    file.write_text(_HTPASSWD, encoding="ascii")
    return {"htpasswd": {"realm": 'a "test"', "path": os.fspath(file)}}


@dataclass(frozen=True, slots=True)
class TokenMaker:
    """Makes tokens that a registry believes: JSON Web Tokens (RFC 7519) with the certificate of their key (RFC 7515, 4.1.6)."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls) -> "TokenMaker":
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, ISSUER)])
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        )
        return cls(key, builder.sign(key, hashes.SHA256()))

    def authentication(self, directory: Path, *, realm: str) -> Mapping[str, Any]:
        """Only who brings a token may do anything; tokens are to be had at ``realm``."""
        bundle = directory / "token-ca.pem"
        bundle.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return {"token": {"realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": os.fspath(bundle)}}

    def token(self, repository: str, *actions: str, lasts: int = 300) -> str:
        """A token for a repository. The registry grants 60 s beyond the ``lasts`` seconds from now."""
        now = int(time.time())
        certificate = base64.b64encode(self.certificate.public_bytes(serialization.Encoding.DER)).decode()
        access = [{"type": "repository", "name": repository, "actions": list(actions)}]
        claims = {
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": USER,
            "exp": now + lasts,
            "nbf": now - 3600,
            "iat": now - 3600,
            "jti": "1",
        }
        signed = f"{_part({'typ': 'JWT', 'alg': 'ES256', 'x5c': [certificate]})}.{_part({**claims, 'access': access})}"
        r, s = utils.decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_unpadded(r.to_bytes(32) + s.to_bytes(32))}"


def missing() -> str | None:
    """Why no registry can be started here."""
    return None if shutil.which(PROGRAM) else f"{PROGRAM} is not installed (apt-get install {PROGRAM})"


def _part(document: Mapping[str, Any]) -> str:
    return _unpadded(json.dumps(document).encode())


def _unpadded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(running: RunningRegistry, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{running.url}/v2/", timeout=5):
                return
        except HTTPError as error:
            error.close()
            if error.code == 401:
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"the registry does not answer: {running.log.read_text(errors='replace')[-2000:]}")
