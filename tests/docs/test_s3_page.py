"""The page about S3, against a server that checks every request against the policy that the page gives."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import pytest
from blocks import ROOT, blocks, play
from folders import after_the_tutorial
from servers import S3_KEYS, moto

pytestmark = [pytest.mark.s3, pytest.mark.slow]

PAGE = ROOT / "docs" / "how-to" / "s3.md"
POLICY = json.loads(next(block.text for block in blocks(PAGE) if block.file == "policy.json"))
BUCKETS = ("models", "pictures", "tables")


UPLOAD = {"Effect": "Allow", "Action": "s3:PutObject", "Resource": ["arn:aws:s3:::models/*", "arn:aws:s3:::pictures/*"]}
"""What the reader may do who fills the buckets; a run needs it not."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a server of our own: permissions are checked for all its users."""
    pytest.importorskip("moto")
    with moto() as url:
        yield url


@pytest.fixture
def endpoint(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server without buckets, users and checks."""
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    post(f"{server}/moto-api/reset", b"")
    post(f"{server}/moto-api/reset-auth", b"inf")
    return server


def post(url: str, body: bytes) -> None:
    urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "text/plain"}), timeout=10).close()


def user_with(statements: list[dict[str, object]], endpoint: str) -> dict[str, str]:
    """Environment of a user who may do this and nothing else, in an account with the page's buckets."""
    import boto3

    for name in BUCKETS:
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=name)
    iam = boto3.client("iam", endpoint_url=endpoint)
    iam.create_user(UserName="nightly")
    document = json.dumps({**POLICY, "Statement": statements})
    iam.put_user_policy(UserName="nightly", PolicyName="run", PolicyDocument=document)
    key = iam.create_access_key(UserName="nightly")["AccessKey"]
    post(f"{endpoint}/moto-api/reset-auth", b"0")  # requests are checked from now on
    keys = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    return {**S3_KEYS, **keys, "AWS_ENDPOINT_URL": endpoint}


def test_the_page_does_what_it_says_with_the_permissions_that_it_gives(endpoint, tmp_path):
    """From an upload to verified rows; the run itself has the policy of the page."""
    after_the_tutorial(tmp_path)
    play(PAGE, tmp_path, **user_with([*POLICY["Statement"], UPLOAD], endpoint))


@pytest.mark.parametrize("sid", [statement["Sid"] for statement in POLICY["Statement"]])
def test_without_one_of_its_statements_the_page_is_not_true(endpoint, tmp_path, sid):
    """The server does check, and the policy asks for nothing that a run does not need."""
    after_the_tutorial(tmp_path)
    rest = [statement for statement in POLICY["Statement"] if statement["Sid"] != sid]
    with pytest.raises(AssertionError, match="exit code"):
        play(PAGE, tmp_path, **user_with([*rest, UPLOAD], endpoint))
