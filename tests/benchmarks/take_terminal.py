"""Takes pictures of a command in a terminal: it runs in a pseudo-terminal, whose screen headless Chromium draws.

    pip install pyte
    python tests/benchmarks/take_terminal.py retrain --columns 80 --at 4 60 -- verdict retrain

One picture for each of the seconds of --at, and one of the end: NAME-4s.png, NAME-60s.png, NAME-end.png.
"""

import argparse
import fcntl
import io
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pyte
from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text
from take_pictures import RESULTS, save_picture

READ_BYTES = 65_536
COLOURS = {"brown": "yellow", "default": ""}  # names of pyte's that Rich does not have


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the pictures")
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--lines", type=int, default=30)
    parser.add_argument("--at", type=float, nargs="*", default=[], help="seconds after which a picture is taken")
    parser.add_argument("--interrupt", type=float, default=0, help="send Ctrl-C after so many seconds")
    parser.add_argument("--to", type=Path, default=RESULTS)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    screen = pyte.Screen(options.columns, options.lines)
    taken = {}
    for seconds in run(options.command, screen, sorted(options.at), options.interrupt):
        taken["end" if seconds is None else f"{seconds:g}s"] = draw(screen)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"))
        page = browser.new_page()
        for name, svg in taken.items():
            page.set_content(f"<style>svg {{ width: {options.columns * 8}px }}</style>{svg}")
            picture, path = page.locator("svg").first.screenshot(), options.to / f"{options.name}-{name}.png"
            save_picture(picture, path, Image.Quantize.MAXCOVERAGE)  # others give up the green of a single word
        browser.close()


def run(command: list[str], screen: pyte.Screen, moments: list[float], interrupt: float) -> Iterator[float | None]:
    """Run a command in a terminal of the screen's size; yield each moment as it comes, and None at the end."""
    child, terminal = pty.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a script's background job ignores it, and so do its children
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(screen.columns), "LINES": str(screen.lines)}
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", screen.lines, screen.columns, 0, 0))
    stream, started = pyte.ByteStream(screen), time.monotonic()
    while True:
        ready, _, _ = select.select([terminal], [], [], 0.05)
        try:
            said = os.read(terminal, READ_BYTES) if ready else None
        except OSError:  # Linux: the command has ended
            said = b""
        stream.feed(said or b"")
        elapsed = time.monotonic() - started
        while moments and elapsed >= moments[0]:
            yield moments.pop(0)
        if interrupt and elapsed >= interrupt:
            os.write(terminal, b"\x03")
            interrupt = 0
        if said == b"":
            break
    os.waitpid(child, 0)
    yield None


def draw(screen: pyte.Screen) -> str:
    """Return the screen as SVG."""
    console = Console(record=True, width=screen.columns, height=screen.lines, file=io.StringIO())
    for number in range(screen.lines):
        line = Text()
        for column in range(screen.columns):
            cell = screen.buffer[number][column]
            line.append(cell.data or " ", style=style_of(cell))
        console.print(line, no_wrap=True, overflow="crop", end="\n")
    return console.export_svg(title="")


def style_of(cell: pyte.screens.Char) -> str:
    """Return a cell's style in Rich's words."""
    front, back = (COLOURS.get(colour, colour) for colour in (cell.fg, cell.bg))
    words = [name for name in ("bold", "italics", "underscore", "reverse") if getattr(cell, name)]
    named = {"italics": "italic", "underscore": "underline"}
    colour = f"#{front}" if len(front) == 6 and all(c in "0123456789abcdef" for c in front) else front
    return " ".join([*(named.get(word, word) for word in words), colour, *([f"on {back}"] if back else [])])


if __name__ == "__main__":
    main()
