"""What goes wrong in stores, in words: their libraries raise everything from `OSError` without a text to classes of
their own.

Classes are known by their names, so that no library of a store is imported to say that another failed.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tokenlabels.errors import TokenLabelsError

if TYPE_CHECKING:
    from tokenlabels.storage import Location

_LIBRARIES = frozenset(
    ("adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "requests", "s3fs", "urllib3")
)
_NO_CREDENTIALS = (
    "no valid credentials for this store were found: set its environment variables, such as AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY or GOOGLE_APPLICATION_CREDENTIALS"
)
NO_BUCKET = "the bucket does not exist: make it first, or mend its name"
_DENIED = "access is denied: these credentials do not allow it"
_UNREACHABLE = "the store cannot be reached: check the network and the endpoint, such as AWS_ENDPOINT_URL"
_SILENT = "the store does not answer in time"

_MEANINGS = {
    "NoCredentialsError": _NO_CREDENTIALS,
    "PartialCredentialsError": _NO_CREDENTIALS,
    "CredentialRetrievalError": _NO_CREDENTIALS,
    "DefaultCredentialsError": _NO_CREDENTIALS,
    "RefreshError": _NO_CREDENTIALS,
    "PermissionError": _DENIED,
    "ReadTimeoutError": _SILENT,
    "FSTimeoutError": _SILENT,
    "TimeoutError": _SILENT,
    "ConnectTimeoutError": _UNREACHABLE,
    "EndpointConnectionError": _UNREACHABLE,
    "ClientConnectorError": _UNREACHABLE,
    "ConnectionError": _UNREACHABLE,
}
"""By class, a subclass before its parents."""

_CODES = {
    "InvalidAccessKeyId": _NO_CREDENTIALS,
    "SignatureDoesNotMatch": _NO_CREDENTIALS,
    "ExpiredToken": _NO_CREDENTIALS,
    "InvalidToken": _NO_CREDENTIALS,
    "NoSuchBucket": NO_BUCKET,
    401: _NO_CREDENTIALS,
    403: _DENIED,
}
"""By what S3 and Google's store answer."""


def reason_of(fault: BaseException) -> str:
    """Why a file cannot be read or written, as a clause for a sentence: what the system says, or what a store means."""
    if isinstance(fault, OSError) and fault.strerror and not is_store_fault(fault):
        return fault.strerror
    causes = [fault, *filter(None, (fault.__cause__, fault.__context__))]
    for cause in causes:
        code = _code(cause)
        if code in _CODES:
            return _CODES[code]
    for cause in causes:
        meant = next((_MEANINGS[kind.__name__] for kind in type(cause).__mro__ if kind.__name__ in _MEANINGS), None)
        if meant:
            return meant
    text = (str(fault).splitlines() or [""])[0].strip().rstrip(".")
    if text.startswith("Forbidden"):
        return _DENIED
    return text or type(fault).__name__


def _code(fault: BaseException) -> object:
    """What the store answered, of botocore's `ClientError` or gcsfs's `HttpError`."""
    response = getattr(fault, "response", None)
    if isinstance(response, dict) and isinstance(response.get("Error"), dict):
        return response["Error"].get("Code")
    return getattr(fault, "code", None)


def is_unsupported(fault: BaseException) -> bool:
    """Whether a store refused a request that it does not know."""
    codes = {_code(cause) for cause in (fault, fault.__cause__, fault.__context__) if cause is not None}
    return isinstance(fault, (NotImplementedError, TypeError, ValueError)) or bool(codes & {"NotImplemented", 501})


def is_store_fault(fault: BaseException) -> bool:
    """Whether a library of a store raised it; its plain `OSError`s cannot be told from others."""
    return any(kind.__module__.partition(".")[0] in _LIBRARIES for kind in type(fault).__mro__)


@contextlib.contextmanager
def as_os_error() -> Iterator[None]:
    """Make every fault of a store an `OSError` that says why in its `strerror`; its class stays where it is one."""
    try:
        yield
    except OSError as fault:
        if is_store_fault(fault):
            raise OSError(errno.EIO, reason_of(fault)) from fault
        if fault.strerror is None:
            number = fault.errno or errno.EIO
            fault.args, fault.errno, fault.strerror = (number, reason_of(fault)), number, reason_of(fault)
        raise
    except Exception as fault:
        if not is_store_fault(fault):
            raise
        raise OSError(errno.EIO, reason_of(fault)) from fault


@contextlib.contextmanager
def explained(place: Location | None = None) -> Iterator[None]:
    """Word a fault of a store that nobody has worded; also a decorator.

    Args:
        place: what is used, for the sentence; where it is on disk, only what libraries of stores raise is worded.

    Raises:
        TokenLabelsError: the store cannot be used.
    """
    try:
        yield
    except TokenLabelsError:
        raise
    except Exception as fault:
        stored = place is not None and not isinstance(place, Path)
        if not is_store_fault(fault) and not (stored and isinstance(fault, OSError)):
            raise
        what = str(place) if stored else "a store"
        raise TokenLabelsError(f"{what}: cannot be used ({reason_of(fault)}).") from fault
