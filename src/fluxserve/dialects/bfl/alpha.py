"""Whether a picture file has an alpha channel, told from its first bytes."""

HEAD_BYTES = 64 * 1024  # of a file; what tells of alpha stands before the pixels
PNG = b"\x89PNG\r\n\x1a\n"
PNG_WITH_ALPHA = (4, 6)  # colour types: grey with alpha, RGB with alpha
CHUNKS_MAX = 64


def has_alpha(head: bytes) -> bool:
    """PNG and WebP can have one; everything else that is kept here cannot."""
    if head.startswith(PNG) and len(head) > 25:
        return head[25] in PNG_WITH_ALPHA or _has_transparency_chunk(head)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and len(head) > 24:
        if head[12:16] == b"VP8X":
            return bool(head[20] & 0x10)
        if head[12:16] == b"VP8L":  # one bit behind a signature byte and twice 14 bits of size
            return bool(head[24] & 0x10)
    return False


def _has_transparency_chunk(head: bytes) -> bool:
    """Whether a tRNS chunk comes before the pixels."""
    at = len(PNG)
    for _ in range(CHUNKS_MAX):
        kind = head[at + 4 : at + 8]
        if kind == b"tRNS":
            return True
        if len(kind) < 4 or kind == b"IDAT":
            return False
        at += 12 + int.from_bytes(head[at : at + 4])
    return False
