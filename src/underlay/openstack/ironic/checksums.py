"""The checksum that Ironic expects of an image, read as Ironic's documentation has it and judged before any transfer.

``is_checksum_url`` and ``get_checksum_from_url`` are called as in ``ironic.common.checksum_utils``.
"""

from underlay.checksumlist import LIMIT
from underlay.checksums import algorithm_of, find_checksum, is_checksum_url as is_url, name_in_url, parse_checksum
from underlay.errors import InvalidDigest
from underlay.model import Digest
from underlay.openstack.ironic.exceptions import failure, translated
from underlay.openstack.ironic.options import Options
from underlay.openstack.ironic.sources import http_source, located
from underlay.refs import parse_ref


def expected_digest(checksum: str | None, algorithm: str | None, *, href: str, options: Options) -> Digest | None:
    """The digest that an image is to have; None when it may have any.

    Raises:
        ImageChecksumAlgorithmFailure: an unknown algorithm, or MD5 where it is not allowed.
        ImageChecksumError: digits that are not the algorithm's. ImageChecksumURLNotSupported, ImageDownloadFailed: as
            `get_checksum_from_url`.
    """
    if checksum is None or options.disable_file_checksum:
        return None
    if is_checksum_url(checksum):
        checksum = get_checksum_from_url(checksum, href)
    try:
        named = algorithm_of(checksum, algorithm=algorithm)
    except InvalidDigest as error:
        is_named = bool(algorithm) or ":" in checksum
        name = "ImageChecksumAlgorithmFailure" if is_named else "ImageChecksumError"
        raise failure(name, str(error), href=href) from error
    if named == "md5" and not options.allow_md5_checksum:
        raise failure("ImageChecksumAlgorithmFailure", "MD5 is not allowed (allow_md5_checksum)", href=href)
    try:
        return parse_checksum(checksum, algorithm=named)
    except InvalidDigest as error:
        raise failure("ImageChecksumError", str(error), href=href) from error


def is_checksum_url(checksum: str) -> bool:
    """Whether a checksum is the URL of a list of checksums.

    Raises:
        ImageChecksumURLNotSupported: it is, and those are not allowed.
    """
    if not is_url(checksum):
        return False
    if Options.load().disable_support_for_checksum_files:
        reason = "lists of checksums are not allowed (disable_support_for_checksum_files)"
        raise failure("ImageChecksumURLNotSupported", reason, href=checksum)
    return True


def get_checksum_from_url(checksum: str, image_source: str) -> str:
    """The checksum that a list of checksums at a URL lists for an image: ``algorithm:hex``.

    Raises:
        ImageRefValidationFailed, ImageDownloadFailed: it does not come, is too long, or does not list the image.
    """
    with translated(checksum, where=checksum):
        text = _fetched(checksum)
    try:
        return str(find_checksum(text, name_in_url(image_source)))
    except InvalidDigest as error:
        raise failure("ImageDownloadFailed", str(error), href=checksum) from error


def _fetched(url: str) -> str:
    options = Options.load()
    ref = located(parse_ref(url), options)
    return http_source(options).web.document(str(ref), ref.location, limit=LIMIT).decode(errors="replace")
