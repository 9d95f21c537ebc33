"""The servers' commands: what they refuse in one line, and tokens made and used."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from live import Process, asked

from nbmf.errors import PolicyError, StoreError
from nbmf.serve import server
from nbmf.serve.client import Client


def nbmf(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nbmf.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **(environment or {})}
    )


def one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("nbmf: ") and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in last


def test_a_token_from_the_command_to_the_server(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    made = nbmf("token", str(file), "ann", "--namespace", "users/ann", "--namespace", "shared", "--read-only")
    assert made.returncode == 0, made.stderr
    ann = made.stdout.strip()
    keeper = nbmf("token", str(file), "keeper", "--namespace", "/", "--metrics").stdout.strip()
    assert ann.startswith("nbmf_") and ann not in file.read_text()
    one_line(nbmf("token", str(file), "ann", "--namespace", "x"), "one name")
    one_line(nbmf("token", str(file), "star", "--namespace", "a/*"), "*")
    with Process(tmp_path / "log", "serve", str(tmp_path / "s"), "--tokens", str(file), "--host", "0.0.0.0") as running:
        url = running.url.replace("0.0.0.0", "127.0.0.1")
        with Client(url, keeper) as client:
            client.put(("users", "ann"), "k", 1)
        with Client(url, ann) as client:
            assert client.get(("users", "ann"), "k") == 1
            with pytest.raises(PolicyError, match="only read"):
                client.put(("users", "ann"), "k", 2)
        with Client(url) as client, pytest.raises(PolicyError, match="bearer token"):
            client.get(("users", "ann"), "k")
        assert running.stop() == 0
        assert {line.get("bearer") for line in running.lines()} >= {"keeper", "ann", None}


def test_what_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    store = str(tmp_path / "s")
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    broken = tmp_path / "broken.toml"
    broken.write_text("[[token]]\nname = 1\n")
    one_line(nbmf("serve", store, "--host", "0.0.0.0"), "without tokens", "--tokens")
    one_line(nbmf("serve", store, "--tokens", str(empty)), "no token")
    one_line(nbmf("serve", store, "--tokens", str(broken)), "token 1")
    one_line(nbmf("mcp", store, "--http", "--tls-cert", str(empty)), "--tls-key")
    one_line(nbmf("mcp", store, "--import", str(tmp_path / "nowhere.jsonl")), "no file")
    one_line(nbmf("mcp", store, "--namespace", "a//b"), "non-empty")


def test_who_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NBMF_TOKEN", "NBMF_TOKENS"):
        monkeypatch.delenv(name, raising=False)
    assert server.access("127.0.0.1", None) == (None, server.LOOPBACK)
    with pytest.raises(PolicyError):
        server.access("0.0.0.0", None)
    with pytest.raises(PolicyError):
        server.access("192.0.2.1", None)
    monkeypatch.setenv("NBMF_TOKEN", "x" * 40)
    tokens, hosts = server.access("0.0.0.0", None)
    assert tokens is not None and hosts is None


def test_a_port_that_is_taken() -> None:
    with server.listen("127.0.0.1", 0) as first:
        first.listen()
        with pytest.raises(StoreError, match="cannot listen"):
            server.listen("127.0.0.1", first.getsockname()[1])
    with pytest.raises(StoreError, match="cannot listen"):
        server.listen("host.invalid", 0)


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    code = """
        import sys, importlib.abc
        class Missing(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name.split(".")[0] in {"fastapi", "mcp", "urllib3"}:
                    raise ModuleNotFoundError(name)
        import importlib.util
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *a: None if name in ("fastapi", "mcp") else real(name, *a)
        sys.meta_path.insert(0, Missing())
        from nbmf.cli import app
        app(sys.argv[1:])
    """
    for command, extra in (("serve", "nbmf[serve]"), ("mcp", "nbmf[mcp]")):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), command, str(tmp_path / "s")],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        one_line(done, extra)
    assert not (tmp_path / "s").exists()
    client = (
        "import sys; sys.modules['urllib3'] = None\ntry:\n import nbmf.serve.client\nexcept Exception as e: print(e)"
    )
    said = subprocess.run([sys.executable, "-c", client], capture_output=True, text=True, timeout=300, check=True)
    assert "nbmf[serve]" in said.stdout


def test_https(tmp_path: Path) -> None:
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nbmf test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    secure = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    with Process(tmp_path / "log", "serve", str(tmp_path / "s"), *secure) as running:
        assert running.url.startswith("https://")
        with Client(running.url, ca=str(tmp_path / "cert.pem")) as client:
            client.put(("a",), "k", 1)
            assert client.get(("a",), "k") == 1
        with Client(running.url) as client, pytest.raises(StoreError, match="certificate"):
            client.get(("a",), "k")  # not trusted
    one_line(
        nbmf("serve", str(tmp_path / "s"), "--tls-cert", str(tmp_path / "log"), "--tls-key", str(tmp_path / "log"))
    )
    assert ssl.OPENSSL_VERSION


def test_an_encrypted_store_and_a_postgresql_one(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("ab" * 32)
    with Process(tmp_path / "log", "serve", str(tmp_path / "s"), "--key-file", str(key)) as running:
        with Client(running.url) as client:
            client.put(("users", "ann"), "k", "swordfish")
            assert client.get(("users", "ann"), "k") == "swordfish"
        assert running.stop() == 0
    files = b"".join(path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file())
    assert b"swordfish" not in files
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "store"))
    from postgres_server import running_server

    with running_server() as url, Process(tmp_path / "log2", "serve", url) as running:
        with Client(running.url) as client:
            client.put(("a",), "k", {"x": 1})
            assert client.get(("a",), "k") == {"x": 1}
            assert client.forget(("a",)) == 1
        assert asked(running.url, "GET", "/ready")[0] == 200
        assert running.stop() == 0
        assert "@" not in json.dumps(running.lines())  # no password in a log
