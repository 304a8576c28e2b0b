"""A few hundred drawn requests; `python -m tests.dialects.replicate.fuzz` draws thousands."""

from pathlib import Path

from tests.dialects.replicate.fuzz import Fuzz


def test_no_request_gets_a_5xx_or_an_answer_of_another_shape(tmp_path: Path) -> None:
    fuzz = Fuzz(tmp_path)
    try:
        fuzz.run(300)
    finally:
        fuzz.close()
    # How many is drawn too (18 to 52 were seen): enough of both kinds to mean something.
    assert fuzz.codes[201] >= 5, fuzz.codes
    assert fuzz.codes[422] >= 5, fuzz.codes
