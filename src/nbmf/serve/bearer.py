"""ASGI middleware that asks for a bearer token and notes what it grants."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from nbmf.serve.auth import OPEN, Grant, Tokens

GRANT: Final = "nbmf.grant"  # the entry of a scope with what its token grants


def bearer_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The token of a request's headers; None for none, for more than one, and for another scheme."""
    given = [value for name, value in headers if name == b"authorization"]
    if len(given) != 1:
        return None
    scheme, _, token = given[0].decode("latin-1").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token else None


def granted(tokens: Tokens | None, headers: Iterable[tuple[bytes, bytes]]) -> Grant | None:
    """What a request's token grants; everything where no tokens are asked for; None: it is refused."""
    if tokens is None:
        return OPEN
    token = bearer_of(headers)
    return None if token is None else tokens.grant(token)


class Bearer:
    """Lets requests through whose token is known, with its grant in their scope; all others get 401."""

    def __init__(self, app: ASGIApp, tokens: Tokens | None) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            grant = granted(self._tokens, scope["headers"])
            if grant is None:
                headers = [(b"www-authenticate", b"Bearer"), (b"content-length", b"0")]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return
            scope[GRANT] = grant
        await self._app(scope, receive, send)


__all__ = ["GRANT", "Bearer", "bearer_of", "granted"]
