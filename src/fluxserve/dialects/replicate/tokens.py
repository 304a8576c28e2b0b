"""Stream tokens: four letters, a dash and 52 letters that hold a prediction's id and a signature.

Streams are read without credentials, so whoever has the token may read; it is the same at every
poll, and the id is read back from it, so nothing needs to be stored.
"""

import base64
import binascii
import hmac
import re

from fluxserve.dialects.links import Signer

PREFIX = "flux-"
TOKEN = re.compile(r"[a-z]{4}-[a-z2-7]{52}")
ID_BYTES = 16
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS = tuple(first + second for first in _LETTERS for second in _LETTERS)
_SHIFTS = range(250, -1, -10)


def stream_token(signer: Signer, prediction_id: str) -> str:
    raw = bytes.fromhex(prediction_id) + signer.mac(f"replicate stream {prediction_id}")
    number = int.from_bytes(raw) << 4  # 260 bits: 52 letters
    return PREFIX + "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


def read_token(signer: Signer, token: str) -> str | None:
    """The id of the prediction in a token; None when it is forged or no token at all."""
    if not token.startswith(PREFIX) or not TOKEN.fullmatch(token):
        return None
    try:
        raw = base64.b32decode(token[len(PREFIX) :].upper() + "====")
    except binascii.Error:
        return None
    prediction_id = raw[:ID_BYTES].hex()
    genuine = hmac.compare_digest(stream_token(signer, prediction_id), token)
    return prediction_id if genuine else None
