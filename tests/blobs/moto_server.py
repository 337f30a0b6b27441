"""One S3 for all tests of a process: moto's server, started with the first use; every test has its own bucket."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
from collections.abc import Callable

import boto3
from moto.server import ThreadedMotoServer

REGION = "eu-west-1"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
}
_numbers = itertools.count(1)


@functools.cache
def endpoint() -> str:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    atexit.register(server.stop)
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


def set_environment(changes: dict[str, str], later: Callable[..., object]) -> None:
    """Set variables until ``later`` (a test's addCleanup) takes them back."""
    for name, value in changes.items():
        before = os.environ.get(name)
        os.environ[name] = value
        if before is None:
            later(os.environ.pop, name, None)
        else:
            later(os.environ.__setitem__, name, before)


def new_bucket() -> str:
    """Its name; the credentials must be in the environment."""
    name = f"bucket-{next(_numbers)}"
    client = boto3.client("s3", region_name=REGION, endpoint_url=endpoint())
    try:
        client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    finally:
        client.close()
    return name
