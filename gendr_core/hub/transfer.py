"""A hub of the Hugging Face kind: what it offers, and the bytes of one file, from where an earlier try stopped.

Role: the only module that uses ``huggingface_hub``, which does the transfer itself and is imported when it is needed.
What goes wrong is told as ``HubError``, never with the library's own text: addresses in it can carry a user's secrets.
"""

import errno
import importlib.util
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import TypeVar

from ..errors import HubError, OptionError
from .catalog import RemoteFile, Source

DEFAULT_ENDPOINT = "https://huggingface.co"
TRIES = 4
TIMEOUT_S = 20.0
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be another one a moment later."""
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS})
SHA256 = re.compile(r"[0-9a-f]{64}")
GIT_BLOB = re.compile(r"[0-9a-f]{40}")

_log = getLogger(__name__)
T = TypeVar("T")


class AbsentError(HubError):
    """This repository does not give the file; another may."""


class PassingError(HubError):
    """A fault that may be gone a moment later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What a hub says of a file before it is fetched; None where it does not say."""

    source: Source
    num_bytes: int | None
    sha256: str | None
    git_blob: str | None


class Hub:
    """A hub at one address."""

    def __init__(self, endpoint: str | None = None, *, wait_s: float = 1.0) -> None:
        """Take the hub at ``endpoint``, None for Hugging Face's own; nothing is asked yet.

        Args:
            endpoint: address of a mirror, such as ``https://hf-mirror.com``.
            wait_s: pause before the second try; it doubles with each.

        Raises:
            OptionError: ``endpoint`` is no address, or huggingface_hub is not installed.
        """
        self.endpoint = (endpoint or DEFAULT_ENDPOINT).rstrip("/")
        if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", self.endpoint):
            raise OptionError("expected an endpoint such as https://hf-mirror.com, without a name or password in it")
        if importlib.util.find_spec("huggingface_hub") is None:
            raise OptionError(
                'expected the package huggingface_hub for downloads, found none: pip install "gendr[hub]"'
            )
        from huggingface_hub import constants

        # Or it asks Hugging Face which programs to tell it of, whatever the endpoint, and names the version of torch.
        constants.HF_HUB_DISABLE_TELEMETRY = True
        self._wait_s = wait_s

    @property
    def _token(self) -> bool | None:
        """What the library is told of tokens: None lets it find the user's own, which mirrors never see."""
        return None if self.endpoint == DEFAULT_ENDPOINT else False

    def _address(self, source: Source, file: RemoteFile) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(source.repo, file.path, revision=source.revision, endpoint=self.endpoint)

    def offer(self, source: Source, file: RemoteFile) -> Offer:
        """Return what the hub says of a file.

        Raises:
            AbsentError: this repository does not give it.
            HubError: the hub does not answer, or refuses.
        """
        from huggingface_hub import get_hf_file_metadata  # pyright: ignore[reportUnknownVariableType] a bare dict in it

        address = self._address(source, file)
        found = self._persist(
            lambda: get_hf_file_metadata(address, token=self._token, timeout=TIMEOUT_S), f"{source.repo}: {file.path}"
        )
        tag = found.etag or ""
        return Offer(
            source=source,
            num_bytes=found.size,
            sha256=tag if SHA256.fullmatch(tag) else None,
            git_blob=tag if GIT_BLOB.fullmatch(tag) else None,
        )

    def transfer(self, offer: Offer, file: RemoteFile, part: Path) -> None:
        """Add to ``part`` what it lacks of the file; what it holds is not fetched again.

        Raises:
            HubError: the file did not arrive whole; ``part`` keeps what did, for the next time.
        """
        from huggingface_hub.file_download import http_get  # pyright: ignore[reportUnknownVariableType] a bare tqdm in it
        from huggingface_hub.utils import build_hf_headers  # pyright: ignore[reportUnknownVariableType] a bare dict in it

        address = self._address(offer.source, file)

        def go_on() -> None:
            with part.open("ab") as target:
                if offer.num_bytes is None or target.tell() > offer.num_bytes:
                    target.truncate(0)
                    target.seek(0)
                if target.tell() != offer.num_bytes:
                    http_get(
                        address,
                        target,
                        resume_size=target.tell(),
                        headers={**build_hf_headers(token=self._token), "Accept-Encoding": "identity"},
                        expected_size=offer.num_bytes,
                        displayed_filename=Path(file.name).name,
                    )

        self._persist(go_on, f"{offer.source.repo}: {file.path}")

    def _persist(self, action: Callable[[], T], what: str) -> T:
        """Return what ``action`` does, tried again while the fault may pass."""
        from huggingface_hub.errors import HfHubHTTPError

        # What its error is made of are the bases of the HTTP library's errors too, whichever library that is.
        faults = (OSError, *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)))
        for attempt in range(1, TRIES):
            try:
                return action()
            except faults as error:
                problem = self._explained(error, what)
                if not isinstance(problem, PassingError):
                    raise problem from error
                _log.warning("%s (try %d of %d)", problem, attempt, TRIES)
                time.sleep(self._wait_s * 2 ** (attempt - 1))
        try:
            return action()
        except faults as error:
            raise self._explained(error, what) from error

    def _explained(self, error: Exception, what: str) -> HubError:
        """Return the fault in words."""
        status: int | None = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            return AbsentError(
                f"{what}: {self.endpoint} refuses access ({status}): the repository is gone, private or gated. If it is"
                f' gated, accept its terms on its page at {DEFAULT_ENDPOINT} and run "hf auth login"; a token is sent'
                " to that address only, never to a mirror"
            )
        if status == 404:
            return AbsentError(f"{what}: {self.endpoint} has no such repository, revision or file (404)")
        if status is not None:
            kind = PassingError if status in PASSING else HubError
            return kind(f"{what}: {self.endpoint} answers {status}: try again later, or choose another --endpoint")
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return HubError(f"{what}: cannot be written here ({error.strerror}): make room, or choose another folder")
        return PassingError(
            f"{what}: the connection to {self.endpoint} failed ({type(error).__name__}): check the network, or choose"
            " another --endpoint; the same command goes on from where this one stopped"
        )
