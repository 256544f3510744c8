"""A real browser for the tests of pages: Debian's Chromium, driven by Playwright; without one they are skipped."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
Visit = Callable[..., Any]


@contextlib.contextmanager
def launched_browser() -> Iterator[Any]:
    """Start Chromium; skip the test where there is none."""
    if CHROMIUM is None:
        pytest.skip("no chromium; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # A sandbox is not to be had as root or in most containers; the pages are our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def visits(
    browser: Any, may_request: Callable[[str], bool], may_log: Callable[[Any], bool] = lambda message: False
) -> Iterator[Visit]:
    """Yield a function that opens a URL in a context of its own, with Playwright's settings of contexts.

    At the end, no page may have sent a request that `may_request` refuses, opened a dialog, raised an error, or written
    to the console what `may_log` refuses.
    """
    contexts, urls, errors = [], [], []

    def visit(url: str, **settings: Any) -> Any:
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: urls.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.on("console", lambda message: None if may_log(message) else errors.append(message.text))
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [url for url in urls if not may_request(url)] == []
    assert errors == []
