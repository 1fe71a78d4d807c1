"""Keys that gpg really makes, and what is signed with them: good ones, expired and revoked ones, subkeys."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LONG_AGO = "20200101T000000"
GOOD, OTHER, EXPIRED, REVOKED = "good@example", "other@example", "expired@example", "revoked@example"
SUBKEY, RSA = "subkey@example", "rsa@example"  # the one's subkey signs; the other's kind of key may sign by any digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """A keyring with the secret keys of all the addresses above."""

    home: Path

    def gpg(self, *arguments: str, given: bytes = b"") -> bytes:
        """What gpg prints."""
        argv = ["gpg", "--homedir", os.fspath(self.home), "--batch", "--quiet", "--no-tty", "--passphrase", "", *arguments]
        return subprocess.run(argv, input=given, check=True, capture_output=True).stdout

    def fingerprints(self, address: str) -> list[str]:
        """The fingerprints of the primary key and of the subkeys of an address."""
        lines = self.gpg("--with-colons", "--list-keys", address).decode().splitlines()
        return [line.split(":")[9] for line in lines if line.startswith("fpr:")]

    def keyring(self, path: Path, *addresses: str, armored: bool = False) -> Path:
        """A file of the public keys of these addresses."""
        path.write_bytes(self.gpg(*(["--armor"] if armored else []), "--export", *addresses))
        return path

    def detached(self, content: bytes, *addresses: str, options: tuple[str, ...] = ()) -> bytes:
        """A detached signature of the content by each address."""
        return self.gpg(*options, *_by(addresses), "--detach-sign", given=content)

    def inline(self, content: bytes, *addresses: str, options: tuple[str, ...] = ()) -> bytes:
        """The content with its signature in it."""
        return self.gpg(*options, *_by(addresses), "--clearsign", given=content)


def _by(addresses: tuple[str, ...]) -> list[str]:
    return [word for address in addresses for word in ("--local-user", address)]


@contextmanager
def made_in(home: Path) -> Iterator[Keys]:
    """Keys in a directory, whose path must be short, because gpg's agent listens on a socket in it."""
    home.chmod(0o700)
    keys = Keys(home=home)
    try:
        for address in (GOOD, OTHER, REVOKED, EXPIRED, SUBKEY, RSA):
            kind, use = "rsa2048" if address is RSA else "ed25519", "cert" if address is SUBKEY else "sign"
            end = "2d" if address is EXPIRED else "never"
            keys.gpg("--faked-system-time", LONG_AGO, "--quick-generate-key", address, kind, use, end)
        keys.gpg("--quick-add-key", keys.fingerprints(SUBKEY)[0], "ed25519", "sign", "never")
        yield keys
    finally:
        subprocess.run(["gpgconf", "--homedir", os.fspath(home), "--kill", "all"], check=True, capture_output=True)


def revocation(keys: Keys, address: str) -> bytes:
    """The certificate by which an address's key is revoked, as gpg made it beside the key; gpg would disarm it by a colon."""
    certificate = keys.home / "openpgp-revocs.d" / f"{keys.fingerprints(address)[0]}.rev"
    return certificate.read_bytes().replace(b":-----BEGIN", b"-----BEGIN")
