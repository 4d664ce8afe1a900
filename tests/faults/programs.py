"""Programs with faults, for the tests of the attack. They import little, because each runs in a new child."""

import os
import sys
import time
from pathlib import Path


def crash():
    raise KeyError("x")


def hang():
    time.sleep(60)


def end(code):
    sys.exit(int(code))


def refuse(*lines):
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def write(path, text="x"):
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(text)


def fill_memory():
    bytearray(1 << 40)


def print_nan():
    print("LABEL_0\tnan")


def start_another(path):
    if number := os.fork():
        Path(path).write_text(str(number))
    time.sleep(60)
