"""Frames between the server and the engine process."""

import asyncio
import io

import pytest

from fluxserve.engines.local.wire import (
    HEADER,
    HEADER_MAX,
    Beat,
    Broken,
    Ended,
    Order,
    pack,
    receive,
    receive_blocking,
)

ORDER = Order(
    id="p1",
    model="black-forest-labs/flux-kontext-dev",
    task="edit",
    prompt='make it "grün" ☂\n',
    negative_prompt="",
    width=1024,
    height=768,
    num_steps=28,
    guidance=2.5,
    strength=1.0,
    seed=2**32 - 1,
    indexes=(0, 3),
    output_format="png",
    output_quality=95,
    sizes=((640, 480), (1, 2)),
    margins=(1, 2, 3, 4),
    loras=(("name", 0.5),),
    deadline_s=12.5,
)


async def test_a_message_and_its_blobs_arrive_as_they_were_sent() -> None:
    blobs = [b"\x00\xff" * 1000, b""]
    reader = asyncio.StreamReader()
    reader.feed_data(pack(ORDER, blobs) + pack(Beat(busy_s=0.5, cost=(1.0, 2.0, 3.0, 4.0))))
    assert await receive(reader) == (ORDER, blobs)
    assert await receive(reader) == (Beat(busy_s=0.5, cost=(1.0, 2.0, 3.0, 4.0)), [])


def test_a_file_gives_the_same_frames() -> None:
    ended = Ended(id="p1", metrics={"steps": 4, "caches": {"prompts": {"hits": 1}}})
    file = io.BytesIO(pack(ORDER, [b"abc"]) + pack(ended))
    assert receive_blocking(file) == (ORDER, [b"abc"])
    assert receive_blocking(file) == (ended, [])
    with pytest.raises(Broken, match="closed"):
        receive_blocking(file)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\x00",
        pack(ORDER, [b"abc"])[:-1],
        HEADER.pack(HEADER_MAX + 1),
        HEADER.pack(4) + b"nope",
        HEADER.pack(2) + b"{}",
        HEADER.pack(27) + b'{"kind":"rumour","blobs":[]}'[:27],
    ],
)
async def test_a_broken_frame_ends_the_conversation(raw: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(raw)
    reader.feed_eof()
    with pytest.raises(Broken):
        await receive(reader)
    with pytest.raises(Broken):
        receive_blocking(io.BytesIO(raw))
