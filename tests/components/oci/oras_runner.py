"""In ORAS's own environment: push files to a registry without TLS, or pull them from it.

``oras_runner.py push TARGET FILE[:MEDIA-TYPE]…`` prints the digest of the manifest; ``oras_runner.py pull TARGET`` prints the
files that came, in this directory.
"""

import sys

from oras.client import OrasClient  # type: ignore[import-not-found]


def main(action: str, target: str, *arguments: str) -> None:
    """Do what is asked."""
    client = OrasClient(insecure=True)
    if action == "push":
        answer = client.push(target=target, files=list(arguments), disable_path_validation=True)
        sys.stdout.write(f"{answer.headers['Docker-Content-Digest']}\n")
        return
    for path in client.pull(target=target, outdir="."):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
