"""Objects on a directory and on S3 over HTTP: one suite for both, and what is each one's own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_server import new_bucket, s3, s3_server

from nbmf.errors import NbmfError, StoreError
from nbmf.store.objects import S3, Directory, ObjectMissing, Objects, open_objects


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(params=["directory", "s3"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Objects]:
    """Opens the same objects again and again."""
    if request.param == "directory":
        return lambda: Directory(tmp_path / "a" / "b")
    address = request.getfixturevalue("server")
    bucket = new_bucket(address)
    return lambda: s3(address, bucket)


@pytest.fixture
def objects(opener: Callable[[], Objects]) -> Objects:
    return opener()


# -- both --------------------------------------------------------------------------------------------------------------


def test_what_was_put_is_there(objects: Objects, opener: Callable[[], Objects]) -> None:
    data = os.urandom(100_000)
    objects.put("archives/one.nba", data)
    objects.put("empty", b"")
    again = opener()
    assert again.get("archives/one.nba") == data
    assert again.size("archives/one.nba") == len(data)
    assert again.get("empty") == b"" and again.size("empty") == 0


@pytest.mark.parametrize(
    ("start", "length"), [(0, 1), (10, 20), (99, 1), (0, 100), (50, None), (0, 0), (90, 50), (100, 1), (200, 5)]
)
def test_a_range(objects: Objects, start: int, length: int | None) -> None:
    data = bytes(range(100))
    objects.put("x", data)
    assert objects.get("x", start, length) == data[start : None if length is None else start + length]


def test_an_object_is_not_overwritten_unless_told(objects: Objects) -> None:
    objects.put("x", b"one")
    with pytest.raises(StoreError, match="already"):
        objects.put("x", b"two")
    assert objects.get("x") == b"one"
    objects.put("x", b"two", overwrite=True)
    assert objects.get("x") == b"two"


def test_what_is_missing_is_said_to_be(objects: Objects) -> None:
    for call in (
        lambda: objects.get("no"),
        lambda: objects.get("no", 1, 2),
        lambda: objects.get("no", 1),
        lambda: objects.size("archives/no"),
    ):
        with pytest.raises(ObjectMissing, match="no"):
            call()
    objects.delete("no")
    objects.delete("archives/no")


def test_list_and_delete(objects: Objects) -> None:
    assert list(objects.list()) == [] and list(objects.list("archives/")) == []
    for name in ("archives/a", "archives/b", "archives/deep/c", "archivesque/d", "manifest"):
        objects.put(name, name.encode())
    names = ["archives/a", "archives/b", "archives/deep/c"]
    assert sorted(objects.list("archives/")) == [(name, len(name)) for name in names]
    assert sorted(name for name, _ in objects.list()) == [*names, "archivesque/d", "manifest"]
    objects.delete("archives/a")
    assert sorted(name for name, _ in objects.list("archives/")) == names[1:]
    with pytest.raises(ObjectMissing):
        objects.get("archives/a")
    objects.put("archives/a", b"again")
    objects.tidy()
    assert objects.get("archives/a") == b"again"


def test_swap_happens_only_over_what_was_seen(objects: Objects, opener: Callable[[], Objects]) -> None:
    assert objects.load("m") == ("", None)
    assert objects.swap("m", b"no", "0" * 32) == ""
    first = objects.swap("m", b"1", "")
    assert first
    assert objects.swap("m", b"other", "") == ""
    tag, data = opener().load("m")
    assert (tag, data) == (first, b"1")
    assert objects.load("m", first) == (first, None)
    second = opener().swap("m", b"2", first)
    assert second and second != first
    assert objects.swap("m", b"3", first) == ""
    assert objects.load("m", first) == (second, b"2")


def test_a_swap_whose_answer_was_lost_counts(objects: Objects) -> None:
    """The same bytes again: a request that was sent twice finds what its first sending did."""
    first = objects.swap("m", b"1", "")
    if isinstance(objects, S3):
        assert objects.swap("m", b"1", "") == first
        objects.put("x", b"1")
        objects.put("x", b"1")
    second = objects.swap("m", b"2", first)
    assert objects.load("m") == (second, b"2")


def test_many_swappers_lose_no_step(opener: Callable[[], Objects]) -> None:
    opener().swap("m", b"0 -1", "")
    failures: list[BaseException] = []

    def work(me: int) -> None:
        try:
            objects = opener()
            for _ in range(8):
                while True:
                    tag, data = objects.load("m")
                    assert data is not None
                    if objects.swap("m", b"%d %d" % (int(data.split()[0]) + 1, me), tag):
                        break
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert int(opener().get("m").split()[0]) == 32


@pytest.mark.parametrize("name", ["", "../x", "/x", "a//b", ".lock", "a/../b", "a b", "a\n", "é", "a/"])
def test_a_name_that_leads_elsewhere_is_refused(objects: Objects, name: str) -> None:
    for call in (objects.get, objects.size, objects.delete, objects.load, lambda name: objects.put(name, b"")):
        with pytest.raises(StoreError, match="cannot name"):
            call(name)


# -- a directory -------------------------------------------------------------------------------------------------------


def test_a_put_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """As on a full disk: the write stops half way."""
    objects = Directory(tmp_path)
    objects.put("x", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        for call in (
            lambda: objects.put("new", bytes(5000)),
            lambda: objects.put("x", bytes(5000), overwrite=True),
            lambda: objects.swap("x", bytes(5000), objects.load("x")[0]),
        ):
            with pytest.raises(StoreError, match=f"^{tmp_path}.*: File too large"):
                call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(objects.list()) == [("x", 3)]
    assert objects.get("x") == b"old"


def test_a_directory_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file"):
        Directory(tmp_path / "file" / "below")


def test_tidy_deletes_what_the_dead_left_and_nothing_of_the_living(tmp_path: Path) -> None:
    """One process is killed while it puts, one is stopped in it."""
    code = """
import os, signal, sys
from nbmf.store import objects
directory = objects.Directory(sys.argv[1])
def stop(descriptor):
    print("writing", flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
real, objects.os.fsync = os.fsync, stop
directory.put(sys.argv[2], b"content of " + sys.argv[2].encode())
"""
    objects = Directory(tmp_path)
    objects.put("first", b"")  # so that all folders are there
    run = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen([*run, "live"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as live:
        assert live.stdout and live.stdin
        assert live.stdout.readline() == b"writing\n"
        assert subprocess.run([*run, "die"], stdout=subprocess.PIPE).returncode == -9
        assert len(list(objects.list("tmp/"))) == 2
        objects.tidy()
        assert len(list(objects.list("tmp/"))) == 1
        live.stdin.close()
        assert live.wait() == 0
    assert list(objects.list()) == [("first", 0), ("live", 15)]


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    Directory(tmp_path).put("archives/x", b"secret")
    assert (tmp_path / "archives" / "x").stat().st_mode & 0o077 == 0
    assert (tmp_path / "archives").stat().st_mode & 0o077 == 0


# -- S3 ----------------------------------------------------------------------------------------------------------------


def test_an_address_says_where(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_objects(tmp_path / "x"), Directory)
    bucket = new_bucket(server)
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    open_objects(f"s3://{bucket}/a/b").put("x", b"1")
    assert s3(server, bucket, "a/b").get("x") == b"1"
    assert s3(server, bucket, "").get("a/b/x") == b"1"


def test_a_bucket_that_is_not_there(server: str) -> None:
    objects = s3(server, "nowhere")
    for call in (
        lambda: objects.put("x", b""),
        lambda: objects.swap("x", b"", ""),
        lambda: list(objects.list()),
        lambda: objects.get("x"),
    ):
        with pytest.raises(StoreError, match="nowhere") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(NbmfError, match=r"needs nbmf\[s3\]"):
        S3("bucket")
