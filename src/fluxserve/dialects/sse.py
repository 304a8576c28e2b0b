"""Server-sent events: one response type with the keep-alive and the headers that clients need."""

from collections.abc import AsyncIterator, Mapping

from sse_starlette import EventSourceResponse, ServerSentEvent

KEEP_ALIVE_S = 15


def stream(
    events: AsyncIterator[ServerSentEvent], headers: Mapping[str, str] | None = None
) -> EventSourceResponse:
    """An event stream that is never cached, open to pages of any origin, kept alive by comments."""
    return EventSourceResponse(
        events,
        ping=KEEP_ALIVE_S,
        ping_message_factory=lambda: ServerSentEvent(comment="keep-alive"),
        sep="\n",
        headers={
            "Cache-Control": "no-store",
            "Access-Control-Allow-Origin": "*",
            **(headers or {}),
        },
    )
