"""A real HTTP server that speaks S3, on loopback, with one bucket a call."""

import itertools
import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from nbmf.store.objects import S3

_numbers = itertools.count()


@contextmanager
def s3_server() -> Iterator[str]:
    """Its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def new_bucket(address: str) -> str:
    bucket = f"bucket-{next(_numbers)}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/{bucket}", method="PUT")).close()
    return bucket


def s3(address: str, bucket: str, prefix: str = "cold/store") -> S3:
    return S3(bucket, prefix, endpoint=address, region="us-east-1", access_key="test", secret_key="test")
