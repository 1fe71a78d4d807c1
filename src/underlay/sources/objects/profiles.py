"""AWS's shared files: what one profile in ``~/.aws/credentials`` and ``~/.aws/config`` says.

Their form is AWS's ("Shared config and credentials files" in its SDK reference): INI, where a section of the credentials file
is a profile's name, and one of the configuration file is ``profile NAME`` but for ``default``. Only what is written there is
used: a profile that has another service hand out its keys is refused by name.
"""

from collections.abc import Mapping, Sequence
from configparser import Error, RawConfigParser
from dataclasses import dataclass, field
from pathlib import Path

from underlay.errors import ConfigError, NotAuthorized
from underlay.sources.objects.access import Keys

DEFAULT = "default"

# Settings by which a profile has somebody else hand out its keys.
_HANDED_OUT = (
    "role_arn",
    "sso_session",
    "sso_start_url",
    "credential_process",
    "credential_source",
    "web_identity_token_file",
    "login_session",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a profile says. ``keys`` is None when it has none."""

    name: str
    keys: Keys | None = field(default=None, repr=False)
    region: str | None = None
    endpoint: str | None = None


def read_profile(files: Sequence[Path], name: str | None) -> Profile:
    """The profile in the files; one without a name is ``default`` and may be missing.

    Raises:
        NotAuthorized: there is no such profile, or it has its keys from somewhere else.
        ConfigError: a file cannot be read or is not of that form. No message repeats what stands in a file.
    """
    wanted = name or DEFAULT
    sections = [section for file in files for section in _sections(file, wanted)]
    if name is not None and not sections:
        where = " or ".join(map(str, files)) or "any file"
        raise NotAuthorized(f"there is no profile {name!r} in {where}", hint="name another in profile or AWS_PROFILE")
    settings: dict[str, str] = {}
    for section in reversed(sections):
        settings |= section
    keys = _keys(settings)
    if keys is None and (other := next((one for one in _HANDED_OUT if one in settings), None)):
        raise NotAuthorized(
            f"the profile {wanted!r} has its keys by {other}, which Underlay does not ask",
            hint=f"put them into the environment: aws configure export-credentials --profile {wanted} --format env",
        )
    return Profile(name=wanted, keys=keys, region=settings.get("region"), endpoint=settings.get("endpoint_url"))


def _keys(settings: Mapping[str, str]) -> Keys | None:
    key, secret = settings.get("aws_access_key_id", ""), settings.get("aws_secret_access_key", "")
    if not (key or secret):
        return None
    return Keys(access_key_id=key, secret_access_key=secret, session_token=settings.get("aws_session_token") or None)


def _sections(file: Path, wanted: str) -> list[Mapping[str, str]]:
    parser = RawConfigParser(default_section="", strict=False, allow_no_value=True)
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is no text in UTF-8") from None  # the error would hold the content
    try:
        parser.read_string(text)
    except Error:
        raise ConfigError(f"{file} is no file of profiles", hint="it has sections such as [default], and KEY = VALUE") from None
    names = [name for name in parser.sections() if " ".join(name.split()) in (wanted, f"profile {wanted}")]
    return [{key: value or "" for key, value in parser.items(name)} for name in names]
