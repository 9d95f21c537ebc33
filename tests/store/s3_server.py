"""A real HTTP server that speaks S3, on loopback, with one bucket a call."""

import itertools
import logging
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nbmf.store.objects import S3

_numbers = itertools.count()


@contextmanager
def s3_server() -> Iterator[str]:
    """Its address. Requests of several connections are answered one by one: S3's conditional writes are atomic, and
    moto's are not when its threads meet between the look and the write.
    """
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = DomainDispatcherApplication(create_backend_app)
    turn = threading.Lock()

    def app(environ: Any, start_response: Any) -> list[bytes]:
        with turn:
            return list(moto(environ, start_response))

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        host, port = server.server_address[:2]
        yield f"http://{host!s}:{port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def new_bucket(address: str) -> str:
    bucket = f"bucket-{next(_numbers)}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/{bucket}", method="PUT")).close()
    return bucket


def s3(address: str, bucket: str, prefix: str = "cold/store") -> S3:
    return S3(bucket, prefix, endpoint=address, region="us-east-1", access_key="test", secret_key="test")
