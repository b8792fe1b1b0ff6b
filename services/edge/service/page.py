"""The page at /docs: the OpenAPI document, for people.

Made here and in one piece: no script, nothing from other servers. A page of a service that sees card numbers runs
nobody else's code, and it has to be readable where there is no internet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""What a browser may do with the page: show it."""
HERE = "https://edge.invalid"
_TEMPLATES = Environment(
    loader=PackageLoader("services.edge", "service"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


class Field(NamedTuple):
    """One field of an object, or one parameter."""

    name: str
    kind: str
    refers_to: str
    """Name of the object that it holds; empty for plain values."""
    required: bool
    limits: str
    text: Markup


class Operation(NamedTuple):
    """What can be done."""

    anchor: str
    method: str
    path: str
    summary: str
    text: Markup
    parameters: list[Field]
    body: str
    """Name of the object that is sent; empty for none."""
    example: str
    answers: list[tuple[str, Markup, str]]
    """(status, when, name of the object)."""


def page_of(document: Mapping[str, Any]) -> str:
    """The page of a document; `HERE` stands for the address of the edge."""
    schemas = document["components"]["schemas"]
    groups: dict[str, list[Operation]] = {}
    told: list[Operation] = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            one = _operation(method, path, operation, schemas, HERE)
            groups.setdefault(operation["tags"][0], []).append(one)
    for name, methods in document.get("webhooks", {}).items():
        told += [_operation(method, name, operation, schemas, "") for method, operation in methods.items()]
    objects = {
        name: (_text(schema.get("description", "")), _fields(schema))
        for name, schema in sorted(schemas.items())
    }
    return _TEMPLATES.get_template("page.html").render(
        title=document["info"]["title"],
        text=_text(document["info"]["description"]),
        groups=groups,
        told=told,
        objects=objects,
    )


def _operation(
    method: str, path: str, operation: Mapping[str, Any], schemas: Mapping[str, Any], base_url: str
) -> Operation:
    sent = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    return Operation(
        anchor=re.sub(r"\W+", "-", f"{method}-{path}").strip("-").lower(),
        method=method.upper(),
        path=path,
        summary=operation.get("summary", ""),
        text=_text(operation.get("description", "")),
        parameters=[
            _field(one["name"], one["schema"], one.get("required", False), one.get("description", ""))
            for one in operation.get("parameters", ())
        ],
        body=_name_in(sent),
        example=_curl(method, path, operation, sent, schemas, base_url) if base_url else "",
        answers=[
            (status, _text(answer.get("description", "")), _name_in(_schema_of(answer)))
            for status, answer in operation["responses"].items()
        ],
    )


def _curl(
    method: str,
    path: str,
    operation: Mapping[str, Any],
    sent: Mapping[str, Any],
    schemas: Mapping[str, Any],
    base_url: str,
) -> str:
    for one in operation.get("parameters", ()):
        if one["in"] == "path":
            path = path.replace(f"{{{one['name']}}}", str(_example(one["schema"], schemas)))
    lines = [f"curl -s {base_url}{path}", '-H "Authorization: Bearer $KEY"']
    if method not in {"get", "post"}:
        lines.insert(1, f"-X {method.upper()}")
    if any(one["name"].lower() == "idempotency-key" for one in operation.get("parameters", ())):
        lines.append("-H 'Idempotency-Key: of-your-choice'")
    if method == "post":
        body = _example(sent, schemas) if sent else {}
        lines.append(f"-d '{json.dumps(body)}'")
    return " \\\n  ".join(lines)


def _example(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:
    """A value that a schema permits, with required fields only."""
    if "examples" in schema:
        return schema["examples"][0]
    if "$ref" in schema:
        return _example(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return _example(schema[several][0], schemas)
    if "enum" in schema or "const" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    match schema.get("type"):
        case "object":
            wanted = schema.get("required", ())
            return {name: _example(schema["properties"][name], schemas) for name in wanted}
        case "array":
            return [_example(schema["items"], schemas)]
        case "integer":
            return schema.get("minimum", 1)
        case "boolean":
            return False
    return "A. Customer"


def _fields(schema: Mapping[str, Any]) -> list[Field]:
    required = set(schema.get("required", ()))
    return [
        _field(name, one, name in required, one.get("description", ""))
        for name, one in schema.get("properties", {}).items()
    ]


def _field(name: str, schema: Mapping[str, Any], required: bool, text: str) -> Field:
    limits = [
        f"{schema.get(least, 0):,} to {schema[most]:,}{unit}"
        for least, most, unit in (
            ("minimum", "maximum", ""),
            ("minLength", "maxLength", " characters"),
            ("minItems", "maxItems", " entries"),
        )
        if most in schema
    ]
    if isinstance(schema.get("default"), int):
        limits.append(f"default {schema['default']:,}")
    return Field(name, _kind(schema), _name_in(schema), required, ", ".join(limits), _text(text))


def _kind(schema: Mapping[str, Any]) -> str:
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_kind(one) for one in schema[several]))
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return " | ".join(str(one) for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    kind = str(schema.get("type", "any"))
    return "time" if schema.get("format") == "date-time" else kind


def _name_in(schema: Mapping[str, Any]) -> str:
    """The one object that a schema refers to; empty if there are several or none."""
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema)))
    return names.pop() if len(names) == 1 else ""


def _schema_of(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    schema: Mapping[str, Any] = next(iter(answer.get("content", {"": {}}).values())).get("schema", {})
    return schema


def _text(text: str) -> Markup:
    """What of Markdown our descriptions use: paragraphs, code, emphasis and links."""
    safe = str(escape(text.strip()))
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    safe = re.sub(r"\[([^]]+)\]\((https://[^)\s]+)\)", r'<a href="\2" rel="noreferrer">\1</a>', safe)
    safe = re.sub(r"\*([^*]+)\*", r"<em>\1</em>", safe)
    return Markup("".join(f"<p>{part}</p>" for part in re.split(r"\n\s*\n", safe) if part))  # noqa: S704 - escaped above
