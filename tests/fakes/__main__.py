"""Runs one fake provider by itself; prints its origin, stops when its input closes."""

import argparse
import sys

from .bfl import FakeBfl
from .openai import FakeOpenai
from .provider import FakeProvider
from .replicate import FakeReplicate
from .script import Act, Script, Submit
from .server import serving
from .wavespeed import FakeWavespeed

KINDS: dict[str, type[FakeProvider]] = {
    "replicate": FakeReplicate,
    "bfl": FakeBfl,
    "wavespeed": FakeWavespeed,
    "openai": FakeOpenai,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--size", default="64x64", help="of the pictures, WIDTHxHEIGHT")
    parser.add_argument("--work-s", type=float, default=0.0)
    parser.add_argument("--drop", type=float, default=0.0, help="share of answers lost, 0..1")
    asked = parser.parse_args()
    width, height = (int(side) for side in asked.size.split("x"))
    script = Script(default=Act(work_s=asked.work_s), faults=(Submit.DROP_AFTER,), share=asked.drop)
    fake = KINDS[asked.kind](prefix=asked.prefix, picture_size=(width, height), script=script)
    with serving(fake.app(), port=asked.port) as origin:
        sys.stdout.write(f"{origin}\n")
        sys.stdout.flush()
        sys.stdin.read()


main()
