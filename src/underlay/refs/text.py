"""What of a ref may be shown and kept: everything but what authorises somebody."""

import re
from urllib.parse import SplitResult, unquote

# Query parameters that authorise one request and say nothing about which image is meant: AWS signature versions 2 and 4,
# CloudFront, Google Cloud Storage, Azure shared access signatures, Swift temporary URLs, Alibaba and Tencent.
_SIGNATURES = (
    r"x-amz-.*|x-goog-.*|awsaccesskeyid|googleaccessid|signature|key-pair-id|sig|temp_url_sig|temp_url_expires"
    r"|x-oss-.*|ossaccesskeyid|security-token|x-cos-security-token|q-(signature|ak|sign-algorithm|sign-time|key-time)"
    r"|q-(header|url-param)-list"
)
_TOKENS = r"access_token|private_token"  # RFC 6750, 2.3; GitLab
# Their companions have names so plain that they may as well say which image is meant, where nothing is signed.
_SIGNED_WITH = r"expires|policy|se|sp|sv|sr|st|spr|sip|skoid|sktid|skt|ske|sks|skv"


def without_userinfo(text: str) -> str:
    """The text without ``user:password@``."""
    return re.sub(r"//[^/]*@", "//", text)


def without_signature(url: SplitResult) -> str:
    """A URL's query without the parameters that authorise one request."""
    pairs = [pair for pair in url.query.split("&") if pair and not re.fullmatch(_TOKENS, _name(pair), re.IGNORECASE)]
    unsigned = [pair for pair in pairs if not re.fullmatch(_SIGNATURES, _name(pair), re.IGNORECASE)]
    if len(unsigned) < len(pairs):
        unsigned = [pair for pair in unsigned if not re.fullmatch(_SIGNED_WITH, _name(pair), re.IGNORECASE)]
    return "&".join(unsigned)


def _name(pair: str) -> str:
    return unquote(pair.partition("=")[0])


def shown(text: str) -> str:
    """A text for messages that may be a ref or none: without what may be credentials or a signature in it."""
    return re.sub(r"//.*@", "//", text.partition("?")[0], flags=re.DOTALL)
