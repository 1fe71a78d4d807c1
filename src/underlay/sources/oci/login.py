"""What a registry is told about who we are."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A login to a registry.

    Attributes:
        origin: where it was found, as messages say it.
        identity_token: in place of user and password, which a token server changes for a token that opens a repository.
        unusable: why it cannot be used, or None.
    """

    origin: str
    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str | None = field(default=None, repr=False)
    unusable: str | None = None
