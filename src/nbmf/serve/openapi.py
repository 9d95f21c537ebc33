"""The OpenAPI document: what each operation takes and answers, from the models of schema.py."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from nbmf.serve import schema
from nbmf.store.base import KEY_MOST, SEGMENTS_MOST

PUBLIC: Final = ("health", "ready")  # without a token

_TEXT: Final = {"type": "string", "minLength": 1, "maxLength": KEY_MOST, "pattern": "^[^\\x00]+$"}


def _list(least: int) -> dict[str, Any]:
    return {"type": "array", "items": _TEXT, "minItems": least, "maxItems": SEGMENTS_MOST}


def _parameter(name: str, required: bool, kind: dict[str, Any], about: str, example: Any = None) -> dict[str, Any]:
    out = {"name": name, "in": "query", "required": required, "description": about, "schema": kind}
    return out if example is None else {**out, "example": example}


_TRUTH: Final = {"type": "boolean"}
_ADDRESS: Final = [
    _parameter("namespace", True, _list(1), "The namespace, a parameter for each segment.", ["users", "ann"]),
    _parameter("key", True, _TEXT, "The record's key.", "pref-1"),
]

# Of each operation: what it does, its parameters, the model of its body, the model of its answer ("" for none), and
# the statuses it may have besides.
_OPERATIONS: Final[dict[str, tuple[str, list[dict[str, Any]], str, str, tuple[int, ...]]]] = {
    "put": ("Stores a record, in place of the one that was there.", [], "Put", "", ()),
    "get": (
        "The record at an address.",
        [*_ADDRESS, _parameter("refresh", False, _TRUTH, "Whether its time to live begins anew; true unless told.")],
        "",
        "Item",
        (404,),
    ),
    "delete": ("Deletes a record.", _ADDRESS, "", "Deleted", ()),
    "search": ("The records in and below a prefix.", [], "Search", "Items", ()),
    "list_namespaces": ("The namespaces that hold records.", [], "ListNamespaces", "NamespacesFound", ()),
    "batch": ("Runs operations in order.", [], "Batch", "Results", ()),
    "forget": ("Removes every trace of what is in and below a prefix.", [], "Forget", "Forgotten", ()),
    "stats": (
        "Counts and bytes; of the whole store, or of what a token reaches.",
        [
            _parameter("prefix", False, _list(1), "Of this prefix alone, a parameter for each segment."),
            _parameter("measure", False, _TRUTH, "Whether records are decoded for their raw bytes."),
        ],
        "",
        "Stats",
        (),
    ),
    "inspect": (
        "What a record takes, and what each of its first bytes costs under the model; it counts for no read.",
        _ADDRESS,
        "",
        "Inspected",
        (404,),
    ),
    "overview": (
        "What the token reaches, and of the whole store, for whom it is open, its tiers and rollout.",
        [],
        "",
        "Overview",
        (),
    ),
    "latency": ("How long operations took in the last hour, and what was written.", [], "", "Latency", ()),
    "metrics": ("Metrics in Prometheus' text format.", [], "", "text", ()),
    "health": ("Whether the process is alive.", [], "", "Status", ()),
    "ready": ("Whether the store can be used.", [], "", "Status", (503,)),
}
_PUT: Final = {"namespace": ["users", "ann"], "key": "pref-1", "value": {"text": "likes tea"}, "class": "fact"}
_EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "Put": _PUT,
    "Search": {"prefix": ["users"], "filter": {"text": {"$eq": "likes tea"}}},
    "Batch": {"ops": [{"op": "put", **_PUT}, {"op": "get", "namespace": ["users", "ann"], "key": "pref-1"}]},
}
_ERRORS: Final = {
    401: "No valid token.",
    403: "The token does not reach so far.",
    404: "There is no such record.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    421: "The server does not go by the name in the Host header.",
    422: "The request is understood, and refused.",
    500: "A record cannot be read, or a fault of the server.",
    503: "The store failed, or the server has too much to do.",
    504: "No answer in time.",
}


def operation(name: str, secured: bool) -> dict[str, Any]:
    """An operation's part of the document."""
    about, parameters, body, answer, more = _OPERATIONS[name]
    statuses = {421, 500, 503, 504, *more}
    out: dict[str, Any] = {"summary": about, "parameters": parameters}
    if body:
        content = _ref(body) | ({"example": _EXAMPLES[body]} if body in _EXAMPLES else {})
        out["requestBody"] = {"required": True, "content": {"application/json": content}}
        statuses |= {408, 413, 415}
    if body or parameters:
        statuses |= {422}
    if secured and name not in PUBLIC:
        out["security"] = [{"bearer": []}]
        statuses |= {401, 403}
    responses: dict[str, Any] = {}
    if answer == "text":
        responses["200"] = {"description": "Done.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    elif answer:
        responses["200"] = {"description": "Done.", "content": {"application/json": _ref(answer)}}
    else:
        responses["204"] = {"description": "Done."}
    for status in sorted(statuses):
        model = "Status" if status == 503 and name == "ready" else "Error"
        responses[str(status)] = {"description": _ERRORS[status], "content": {"application/json": _ref(model)}}
    return {**out, "responses": responses}


def _ref(model: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{model}"}}


def describe(app: FastAPI, secured: bool) -> None:
    """Has the application serve the document at /openapi.json."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title,
                version=app.version,
                summary="A memory store for AI agents.",
                routes=app.routes,
            )
            for path in made["paths"].values():
                for one in path.values():
                    # FastAPI's own guess at an answer that it knows nothing of.
                    stated = _OPERATIONS[one["operationId"]][3]
                    if not stated:
                        one["responses"].pop("200", None)
            parts = made.setdefault("components", {})
            parts["schemas"] = schema.components()
            if secured:
                parts["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
