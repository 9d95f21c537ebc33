"""The shared suite's assertions explain themselves, as those of a test module do; one server for a test run."""

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("conformance", "oracle")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a running server."""
    from postgres_server import running_server

    with running_server() as url:
        yield url
