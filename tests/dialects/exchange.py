"""Runs `.http` exchange files: what is asked of a server, and what it must answer.

    # A comment starts a line of its own.

    POST /v1/models/acme/fox/predictions
    Prefer: wait
    {"input": {"prompt": "a fox", "image": "<picture>"}}

    201
    Location: <base>/v1/predictions/<id>
    {"id": "<id>", "status": "succeeded", "metrics": {"...": "..."}, "...": "..."}

    GET /v1/predictions/<id>

    200 within 5 s
    {"status": "succeeded", "...": "..."}

Request: method and target, headers, body (until the status line). An absolute target goes to that
path and query; a body of a multipart request gets CRLF line ends.
Answer: status, `within` to ask again until it fits, headers that must be there (`<absent>`: must
not), body. A JSON body must be equal; `"..."` as a key, or as the last item of an array, lets more
be there. `<name>` matches anything and remembers it; used again it must be the same. `<_>` matches
anything each time. Names are also filled in where something is asked. `values` gives names from
the start: text, bytes or any JSON. A body that is no JSON is matched as text.
"""

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import httpx

from fluxserve.core.request import JSON

Value: TypeAlias = JSON | bytes

NAME = re.compile(r"<([a-z_][a-z0-9_]*)>")
ASK = re.compile(r"(GET|POST|PUT|PATCH|DELETE|HEAD|OPTIONS|QUERY) (\S+)$")
ANSWER = re.compile(r"(\d{3})(?: within (\d+(?:\.\d+)?) s)?$")
HEADER = re.compile(r"([A-Za-z][A-Za-z0-9-]*): ?(.*)$")
MORE = "..."
POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and the answer it must get; `line` is where it stands in its file."""

    line: int
    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    body: str
    status: int
    within_s: float
    answer_headers: Sequence[tuple[str, str]]
    answer_body: str


def files_in(folder: Path) -> list[Path]:
    """Every exchange file of a folder; at least one, so that a moved folder is noticed."""
    found = sorted(folder.glob("*.http"))
    assert found, f"no exchanges in {folder}"
    return found


def parse(text: str) -> list[Exchange]:
    """The exchanges of a file's text, in order; ValueError with the line number."""
    lines = text.splitlines()
    exchanges: list[Exchange] = []
    at = 0
    while (at := _skip(lines, at)) < len(lines):
        start = at
        ask = ASK.match(lines[at])
        if not ask:
            raise ValueError(f"line {at + 1}: a request is expected, not {lines[at]!r}")
        headers, at = _headers(lines, at + 1)
        body, at = _until(lines, at, ANSWER)
        if at >= len(lines):
            raise ValueError(f"line {start + 1}: this request has no answer")
        answer = ANSWER.match(lines[at])
        assert answer
        answer_headers, at = _headers(lines, at + 1)
        answer_body, at = _until(lines, at, ASK)
        exchanges.append(
            Exchange(
                line=start + 1,
                method=ask[1],
                target=ask[2],
                headers=headers,
                body=body,
                status=int(answer[1]),
                within_s=float(answer[2] or 0),
                answer_headers=answer_headers,
                answer_body=answer_body,
            )
        )
    return exchanges


async def play(
    path: Path, client: httpx.AsyncClient, values: Mapping[str, Value] | None = None
) -> dict[str, Value]:
    """Run a file against a server; returns the names it gathered. AssertionError where it fails."""
    known: dict[str, Value] = {"base": str(client.base_url).rstrip("/"), **(values or {})}
    text = await asyncio.to_thread(path.read_text, "utf-8")
    for exchange in parse(text):
        await _run(exchange, client, known, f"{path.name}:{exchange.line}")
    return known


async def _run(
    exchange: Exchange, client: httpx.AsyncClient, known: dict[str, Value], where: str
) -> None:
    end = time.monotonic() + exchange.within_s
    while True:
        response = await _ask(exchange, client, known)
        fresh = dict(known)
        wrong = _compare(exchange, response, fresh)
        if not wrong:
            known.update(fresh)
            return
        if time.monotonic() >= end:
            said = "\n  ".join(wrong)
            shown = response.text[:4000]
            raise AssertionError(
                f"{where} {exchange.method} {exchange.target}\n  {said}\n"
                f"answer {response.status_code}: {shown}"
            )
        await asyncio.sleep(POLL_S)


async def _ask(
    exchange: Exchange, client: httpx.AsyncClient, known: Mapping[str, Value]
) -> httpx.Response:
    target = _fill(exchange.target, known).decode()
    if "://" in target:
        parts = urlsplit(target)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
    headers = [(name, _fill(value, known).decode()) for name, value in exchange.headers]
    body = exchange.body
    if any(v.lower().startswith("multipart/") for n, v in headers if n.lower() == "content-type"):
        body = body.replace("\n", "\r\n") + "\r\n"
    content = _fill_body(body, known)
    return await client.request(exchange.method, target, headers=headers, content=content)


def _compare(exchange: Exchange, response: httpx.Response, known: dict[str, Value]) -> list[str]:
    wrong: list[str] = []
    if response.status_code != exchange.status:
        wrong.append(f"status: {exchange.status} is expected, not {response.status_code}")
    for name, pattern in exchange.answer_headers:
        given = response.headers.get(name)
        if pattern == "<absent>":
            if given is not None:
                wrong.append(f"{name}: must not be there, but is {given!r}")
        elif given is None:
            wrong.append(f"{name}: is missing")
        elif not _fits(pattern, given, known):
            wrong.append(f"{name}: {pattern!r} is expected, not {given!r}")
    if not exchange.answer_body:
        return wrong
    try:
        pattern_json = json.loads(exchange.answer_body)
    except ValueError:
        if not _fits(exchange.answer_body, response.text.strip("\n"), known):
            wrong.append("the body is another text")
        return wrong
    try:
        given_json = response.json()
    except ValueError:
        return [*wrong, "the body is no JSON"]
    return wrong + match(pattern_json, given_json, known)


def match(pattern: JSON, given: JSON, known: dict[str, Value], path: str = "") -> list[str]:
    """What of `given` does not fit `pattern`; names that matched are put into `known`."""
    at = path or "body"
    if isinstance(pattern, str) and isinstance(given, str):
        return [] if _fits(pattern, given, known) else [f"{at}: {pattern!r} is not {given!r}"]
    if isinstance(pattern, str) and (name := NAME.fullmatch(pattern)):
        if name[1] == "_" or known.setdefault(name[1], given) == given:
            return []
        return [f"{at}: <{name[1]}> was {known[name[1]]!r} and is {given!r}"]
    if isinstance(pattern, Mapping) and isinstance(given, Mapping):
        wrong = [f"{at}.{key}: is missing" for key in pattern if key not in given and key != MORE]
        if MORE not in pattern:
            wrong += [f"{at}.{key}: was not expected" for key in given if key not in pattern]
        for key in pattern.keys() & given.keys():
            wrong += match(pattern[key], given[key], known, f"{path}.{key}" if path else key)
        return wrong
    if isinstance(pattern, list) and isinstance(given, list):
        is_open = bool(pattern) and pattern[-1] == MORE
        wanted = pattern[:-1] if is_open else pattern
        if len(given) < len(wanted) or (len(given) > len(wanted) and not is_open):
            return [f"{at}: {len(wanted)} items are expected, not {len(given)}"]
        return [
            problem
            for position, (one, other) in enumerate(zip(wanted, given, strict=False))
            for problem in match(one, other, known, f"{path}[{position}]")
        ]
    same = type(pattern) is type(given) and pattern == given
    return [] if same else [f"{at}: {pattern!r} is expected, not {given!r}"]


def _fits(pattern: str, given: str, known: dict[str, Value]) -> bool:
    """Whether a text fits a text with names in it; names that are new are remembered."""
    parts: list[str] = []
    seen: set[str] = set()
    end = 0
    for name in NAME.finditer(pattern):
        parts.append(re.escape(pattern[end : name.start()]))
        end = name.end()
        if name[1] == "_":
            parts.append(".*?")
        elif name[1] in known:
            parts.append(re.escape(_text(known[name[1]])))
        elif name[1] in seen:
            parts.append(f"(?P={name[1]})")
        else:
            seen.add(name[1])
            parts.append(f"(?P<{name[1]}>.*?)")
    parts.append(re.escape(pattern[end:]))
    found = re.fullmatch("".join(parts), given, re.DOTALL)
    if found:
        known.update(found.groupdict())
    return found is not None


def _fill(text: str, known: Mapping[str, Value]) -> bytes:
    """A text with the names in it filled in; an unknown name stays as it is."""
    parts: list[bytes] = []
    end = 0
    for name in NAME.finditer(text):
        value = known.get(name[1], name[0])
        parts.append(text[end : name.start()].encode())
        parts.append(value if isinstance(value, bytes) else _text(value).encode())
        end = name.end()
    parts.append(text[end:].encode())
    return b"".join(parts)


def _fill_body(body: str, known: Mapping[str, Value]) -> bytes:
    """The same for a body; in JSON, a string that is one name becomes the value itself."""
    try:
        value = json.loads(body)
    except ValueError:
        return _fill(body, known)
    return json.dumps(_filled(value, known)).encode()


def _filled(value: JSON, known: Mapping[str, Value]) -> JSON:
    if isinstance(value, str):
        name = NAME.fullmatch(value)
        whole = known.get(name[1]) if name else None
        if whole is not None and not isinstance(whole, bytes):
            return whole
        return _fill(value, known).decode()
    if isinstance(value, Mapping):
        return {key: _filled(item, known) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, known) for item in value]
    return value


def _text(value: Value) -> str:
    if isinstance(value, str):
        return value
    return value.decode("latin-1") if isinstance(value, bytes) else json.dumps(value)


def _skip(lines: Sequence[str], at: int) -> int:
    while at < len(lines) and (not lines[at].strip() or lines[at].startswith("#")):
        at += 1
    return at


def _headers(lines: Sequence[str], at: int) -> tuple[list[tuple[str, str]], int]:
    headers: list[tuple[str, str]] = []
    while at < len(lines) and (header := HEADER.match(lines[at])):
        headers.append((header[1], header[2].strip()))
        at += 1
    return headers, at


def _until(lines: Sequence[str], at: int, end: re.Pattern[str]) -> tuple[str, int]:
    """The text up to a line that matches `end`, without empty lines around it and comments."""
    start = at
    while at < len(lines) and not end.match(lines[at]):
        at += 1
    kept = [line for line in lines[start:at] if not line.startswith("#")]
    return "\n".join(kept).strip("\n"), at
