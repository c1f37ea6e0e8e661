"""Links to images in a private bucket. They expire.

On Google Cloud they are V4 signed URLs. The service's own account signs them through IAM's
signBlob, so there is no private key to keep:
https://cloud.google.com/storage/docs/access-control/signed-urls
The storage emulator checks no signature, so with it links lead to the API, which does.
"""

import base64
from datetime import timedelta
from typing import Any

from google.auth.credentials import Credentials, Signing
from google.auth.exceptions import TransportError
from google.auth.transport.requests import AuthorizedSession, Request
from google.cloud import storage

from core.backends.google.blocking_calls import BlockingCalls
from core.backends.links import LinkSigner
from core.clock import Clock

TIMEOUT = (2.0, 3.0)  # seconds to connect, and between bytes, of one try
DEADLINE = 5.0  # seconds for a link, including the wait for a thread


class LocalLinks:
    """`core.backends.google.blobs.Links` that the API serves itself."""

    def __init__(self, signer: LinkSigner, clock: Clock) -> None:
        self._signer = signer
        self._clock = clock

    async def url(self, name: str, expires_in: timedelta) -> str:
        return self._signer.url(name, self._clock() + expires_in)

    async def close(self) -> None:
        pass


class IamLinks:
    """`core.backends.google.blobs.Links` that Cloud Storage serves.

    Signing blocks. It has threads of its own, so that an IAM that does not answer does not block
    the storage's threads.
    """

    THREADS = 4

    def __init__(
        self,
        credentials: Credentials,
        session: AuthorizedSession,
        bucket: str,
        *,
        iam_url: str,
        storage_url: str,
    ) -> None:
        self._signer = IamSigner(credentials, session, iam_url)
        self._storage_url = storage_url
        # The client only names the object. It never sends a request.
        self._bucket = storage.Client(project="unused", credentials=credentials).bucket(bucket)
        self._session = session
        self._calls = BlockingCalls("signing service", self.THREADS, DEADLINE)

    async def url(self, name: str, expires_in: timedelta) -> str:
        return await self._calls.run(lambda: self._sign(name, expires_in))

    async def close(self) -> None:
        await self._calls.close()
        self._session.close()

    def _sign(self, name: str, expires_in: timedelta) -> str:
        self._signer.prepare()
        url: str = self._bucket.blob(name).generate_signed_url(
            version="v4",
            expiration=expires_in,
            method="GET",
            credentials=self._signer,
            api_access_endpoint=self._storage_url,
        )
        return url


class IamSigner(Signing):
    """Signs as a service account through IAM, with time limits.

    google-auth's `iam.Signer` and the Storage client's own call retry for two minutes.
    https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/signBlob
    """

    def __init__(self, credentials: Credentials, session: AuthorizedSession, iam_url: str) -> None:
        self._credentials = credentials
        self._session = session
        self._account = ""
        self._iam_url = iam_url

    def prepare(self) -> None:
        """Find the account's e-mail address. Cloud Run's credentials have it after a refresh."""
        if self._account:
            return
        email = getattr(self._credentials, "service_account_email", "")
        if email in ("", "default"):
            self._credentials.refresh(Request())
            email = getattr(self._credentials, "service_account_email", "")
        if email in ("", "default"):
            raise TransportError("the credentials do not belong to a service account")
        self._account = email

    @property
    def signer_email(self) -> str:
        return self._account

    @property
    def signer(self) -> Any:
        return self

    def sign_bytes(self, message: bytes) -> bytes:
        url = f"{self._iam_url}/v1/projects/-/serviceAccounts/{self._account}:signBlob"
        body = {"payload": base64.b64encode(message).decode("ascii")}
        response = self._session.post(url, json=body, timeout=TIMEOUT)
        if response.status_code != 200:
            raise TransportError(f"signBlob answered {response.status_code}")
        return base64.b64decode(response.json()["signedBlob"])
