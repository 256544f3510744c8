"""Takes the pictures of the documentation with headless Chromium: report, gate, demo page, pages of Prefect and MLflow.

    make up; verdict deploy --data DIR                       # and some runs: prefect deployment run retrain/retrain
    python tests/benchmarks/take_pictures.py .verdict/runs/JOB FLOW_RUN DEPLOYMENT

The servers are those of PREFECT_API_URL, MLFLOW_TRACKING_URI and, for the demo page, INFERENCE_URL.
"""

import argparse
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

RESULTS = Path(__file__).with_name("results")
SETTLE_MS = 6_000  # until pages that load their parts later have them
PREFECT_MENU = 250  # pixels on the left, left out
SENTENCES = "The child has eaten the apple.\nThe child have eat the apple.\nThe keys was lost."


def nothing(page: Page) -> None:
    """Leave a page as it is."""


def close_assistant(page: Page) -> None:
    """Close MLflow's panel beside the page."""
    page.evaluate("localStorage.clear()")
    page.get_by_role("button", name="Close").first.click()
    page.wait_for_timeout(1_000)


def judge(page: Page) -> None:
    """Judge sentences on the demo page and flag the last one."""
    page.get_by_role("textbox").first.fill(SENTENCES)
    page.get_by_role("button", name="Judge").click()
    flags = page.get_by_role("button", name="not acceptable")
    flags.last.wait_for()
    flags.last.click()
    page.wait_for_timeout(1_000)


def take(
    browser: Any, name: str, url: str, width: int, height: int, scheme: str, prepare: Callable[[Page], None]
) -> None:
    """Write one picture of a page."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    page.wait_for_timeout(0 if url.startswith("file:") else SETTLE_MS)
    prepare(page)
    left = PREFECT_MENU if name.startswith("prefect") else 0
    clip: Any = {"x": left, "y": 0, "width": width - left, "height": height}
    save_picture(page.screenshot(clip=clip), RESULTS / f"{name}.png")
    context.close()


def save_picture(picture: bytes, path: Path, method: Image.Quantize = Image.Quantize.MEDIANCUT) -> None:
    """Write a picture with at most 64 colours: pages have few, and a repository keeps every version of it."""
    with_all = Image.open(io.BytesIO(picture)).convert("RGB")
    with_all.quantize(64, method, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path)


def main() -> None:
    """Take all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path, help="folder of the job whose report and gate are shown")
    parser.add_argument("flow_run", help="id of its flow run, of a deployment")
    parser.add_argument("deployment", help="id of that")
    chosen = parser.parse_args()
    job, prefect = chosen.job.absolute(), os.environ["PREFECT_API_URL"].removesuffix("/api")
    version = json.loads((job / "result.json").read_text())["version"]
    page = f"#/models/acceptability/versions/{version}?workflowType=machine_learning"
    model = f"{os.environ['MLFLOW_TRACKING_URI']}/{page}"
    pictures = (
        ("report", (job / "report.html").as_uri(), 1200, 900, "light", nothing),
        ("gate-page", (job / "gate.html").as_uri(), 1000, 1330, "light", nothing),
        ("prefect-run", f"{prefect}/runs/flow-run/{chosen.flow_run}", 1400, 560, "dark", nothing),
        ("prefect-deployment", f"{prefect}/deployments/deployment/{chosen.deployment}", 1400, 560, "dark", nothing),
        ("mlflow-version", model, 1300, 900, "light", close_assistant),
        ("try-it-page", os.environ.get("INFERENCE_URL", "http://127.0.0.1:8080"), 820, 960, "light", judge),
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for picture in pictures:
            take(browser, *picture)


if __name__ == "__main__":
    main()
