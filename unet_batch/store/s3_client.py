"""A client of the S3 API from the options of an S3 file system; it also tells where and how buckets are read.

Knows botocore: its session with profiles, SSO and web identity, its configuration, its signatures. Everything that a
job's `options`, the environment and the shared configuration files say is resolved here once, by botocore itself.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from unet_batch.store.obstore_reads import Wire

_FILE_SYSTEM = {
    "anon", "endpoint_url", "key", "secret", "token", "username", "password", "use_ssl", "client_kwargs",
    "config_kwargs", "requester_pays", "s3_additional_kwargs", "default_block_size", "default_fill_cache",
    "default_cache_type", "version_aware", "cache_regions", "asynchronous", "loop", "max_concurrency",
    "fixed_upload_size", "local_expiry_check", "use_listings_cache", "listings_expiry_time", "max_paths", "session",
}  # fmt: skip
"""Options of an S3 file system; all others are botocore's session's own, such as `profile`."""

_KEY = "k"
"""Key of the request that tells how botocore would ask for an object; it is never sent."""


def demand_botocore() -> None:
    """Raises ImportError where botocore is not installed; does not import the rest of it."""
    import botocore  # noqa: F401


@dataclass(frozen=True, slots=True)
class Place:
    """Where the objects of one bucket are, and for which region requests are signed."""

    url: str
    """Of the bucket, without a slash at its end."""
    region: str
    signed: bool


class S3Client:
    """One botocore client and its credentials. Threads may share it."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """options: those of an S3 file system, secrets resolved. Raises TypeError, ValueError and botocore's errors."""
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config

        given = dict(options.get("client_kwargs") or {})
        config = dict(options.get("config_kwargs") or {})
        self._session: Any = botocore.session.Session(**{k: v for k, v in options.items() if k not in _FILE_SYSTEM})
        self._session.register_component("data_loader", _loader(self._session.get_config_variable("data_path")))
        key: Any = given.pop("aws_access_key_id", None) or options.get("key") or options.get("username")
        secret: Any = given.pop("aws_secret_access_key", None) or options.get("secret") or options.get("password")
        token: Any = given.pop("aws_session_token", None) or options.get("token")
        if options.get("anon"):
            config["signature_version"] = UNSIGNED
        elif key or secret:
            self._session.set_credentials(key, secret, token)
        self._named = {**(options.get("s3_additional_kwargs") or {})}
        if options.get("requester_pays"):
            self._named["RequestPayer"] = "requester"
        self._verify = given.get("verify")
        given.setdefault("endpoint_url", options.get("endpoint_url"))
        given.setdefault("use_ssl", options.get("use_ssl", True))
        self._client: Any = self._session.create_client("s3", config=Config(**config), **given)
        self._asking = threading.local()
        self._client.meta.events.register("before-send.s3.GetObject", self._stop)
        self._anonymous = bool(options.get("anon"))

    def call(self, method: str, **query: Any) -> dict[str, Any]:
        """One request. The options' additional parameters are added where the method takes them."""
        answer: dict[str, Any] = getattr(self._client, method)(**{**self.additional(method), **query})
        return answer

    def additional(self, method: str) -> dict[str, Any]:
        """Those of the options' additional parameters that a method takes."""
        operation = self._client.meta.method_to_api_mapping[method]
        members = self._client.meta.service_model.operation_model(operation).input_shape.members
        return {name: value for name, value in self._named.items() if name in members}

    def on_answer(self, operation: str, parse: Any) -> None:
        """Let `parse` take the answers to an operation, such as `ListObjectsV2`, before botocore does.

        parse: is called with response_dict (status_code, body), which it may change, and customized_response_dict,
        whose entries are in what `call` returns.
        """
        self._client.meta.events.register_first(f"before-parse.s3.{operation}", parse)

    def place(self, bucket: str) -> Place | None:
        """Where a bucket is read, or None where its requests are signed in another way than with one region's key."""
        self._asking.place = True
        try:
            self._client.get_object(Bucket=bucket, Key=_KEY)
        except _Prepared as prepared:
            url, authorization = prepared.url, prepared.authorization
        else:
            return None
        finally:
            self._asking.place = False
        parts = urlsplit(url)
        if parts.query or not parts.path.endswith(f"/{_KEY}"):
            return None
        whole = f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix(f'/{_KEY}')}"
        if not authorization:
            return Place(whole, self._client.meta.region_name or "us-east-1", signed=False)
        scheme, _, fields = authorization.partition(" ")
        scope = fields.partition(",")[0].removeprefix("Credential=").split("/")[-4:]
        if scheme != "AWS4-HMAC-SHA256" or len(scope) != 4 or scope[2:] != ["s3", "aws4_request"]:
            return None
        return Place(whole, scope[1], signed=True)

    def _stop(self, request: Any, **_: Any) -> None:
        """Keep the request that `place` makes from being sent; those of other threads are sent."""
        if getattr(self._asking, "place", False):
            authorization = request.headers.get("Authorization") or ""
            text = authorization.decode() if isinstance(authorization, bytes) else authorization
            raise _Prepared(request.url, text)

    def credentials(self) -> dict[str, str | None]:
        """Access key, secret and token as they are now, renewed where they end soon. Raises botocore's errors."""
        from botocore.exceptions import NoCredentialsError

        found = self._session.get_credentials()
        if found is None:
            raise NoCredentialsError
        now = found.get_frozen_credentials()
        return {"access_key_id": now.access_key, "secret_access_key": now.secret_key, "token": now.token}

    def wire(self) -> Wire | None:
        """How the client reaches its server; None where that takes more than these words."""
        from botocore.httpsession import get_cert_path

        config = self._client.meta.config
        proxies = set((config.proxies or {}).values())
        if len(proxies) > 1 or config.proxies_config or config.client_cert:
            return None
        verify = self._session.get_config_variable("ca_bundle") if self._verify is None else self._verify
        reached = Wire(config.connect_timeout, config.read_timeout, next(iter(proxies), None), verify is not False)
        if verify is False:
            return reached
        bundle = Path(str(get_cert_path(True if verify is None else verify)))
        return replace(reached, roots=bundle.read_bytes()) if bundle.is_file() else None


@functools.cache
def _loader(data_path: str | None) -> Any:
    """botocore's loader of its descriptions of services, which keeps what it has read.

    One for a process, as all clients of one botocore session share theirs: parsing S3's takes longer than all else.
    """
    from botocore.loaders import create_loader

    return create_loader(data_path)


class _Prepared(Exception):
    """A request as botocore would send it."""

    def __init__(self, url: str, authorization: str) -> None:
        super().__init__("the request is not sent")
        self.url = url
        self.authorization = authorization
