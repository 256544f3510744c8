"""The demo page in a real browser, what of it can be reached, and the command that serves it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from browser import CHROMIUM, Visit, launched_browser, visits
from http_server import BAD, GOOD, copy_registry_home, running_server, wait_until

from flows.cli import app as cli
from tasks.core.errors import VerdictError
from tasks.data.ingestion import ingest
from tasks.data.snapshots import iter_snapshot
from tasks.data.sources import locate_sources
from tasks.data.table_format import TableFormat
from tasks.inference.bundle import CHAMPION_URI
from tasks.serving import demo_page as module
from tasks.serving.champion import Champion
from tasks.serving.demo_gateway import CALL_PATH, RUN_PATH
from tasks.serving.demo_page import EXAMPLE_INPUTS
from tasks.serving.feedback import Feedback
from tasks.serving.request_validation import RequestLimits
from tasks.serving.server import ServerConfig, serve

ROOT = Path(__file__).parents[2]
SMALL = RequestLimits(body=100_000, sentences=20, characters=2_500, seconds=2)
BOX = "Sentences, one on each line"
HOSTILE = "${alert(1)} {{constructor}} `x` <img src=x onerror=alert(1)> <script>alert(1)</script> \\u202e"


@pytest.fixture(scope="module")
def feedback(tmp_path_factory: pytest.TempPathFactory) -> Feedback:
    return Feedback(str(tmp_path_factory.mktemp("feedback") / "a place" / "said.tsv"))


@pytest.fixture(scope="module")
def client(champion: Champion, feedback: Feedback) -> Iterator[httpx.Client]:
    with running_server(champion, SMALL, feedback=feedback) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched_browser() as browser:
        yield browser


@contextlib.contextmanager
def page_visits(browser: Any) -> Iterator[Visit]:
    """Yield what opens the page of a server; it must send no request to other hosts and log no error."""

    def is_own(url: str) -> bool:
        return url.startswith(("data:", "blob:")) or urlsplit(url).hostname == "127.0.0.1"

    def may_log(message: Any) -> bool:
        # Servers without a champion answer 503, and some stop; what the policy forbids is forbidden on purpose.
        expected = message.text.startswith("Failed to load resource") or "Content Security Policy" in message.text
        return message.type != "error" or expected

    with visits(browser, is_own, may_log) as visit:

        def run(client: httpx.Client, **settings: Any) -> Any:
            page = visit(f"{client.base_url}/", **settings)
            page.get_by_label(BOX).wait_for()
            return page

        yield run


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    with page_visits(browser) as visit:
        yield visit


@pytest.fixture(scope="module")
def open_page(browser: Any, client: httpx.Client) -> Iterator[Any]:
    """The page of `client`, which takes a second to load."""
    with page_visits(browser) as visit:
        yield visit(client)


@pytest.fixture
def page(open_page: Any) -> Any:
    """That page without answers, in a large light window."""
    open_page.set_viewport_size({"width": 1280, "height": 720})
    open_page.emulate_media(color_scheme="light")
    judge(open_page, "")
    refusal(open_page, "there is no sentence")
    return open_page


def judge(page: Any, *lines: str) -> None:
    """Put lines into the box and press the button."""
    page.get_by_label(BOX).fill("\n".join(lines))
    page.get_by_role("button", name="Judge").click()


def answers(page: Any, count: int) -> list[str]:
    """Return what stands of each sentence once there are so many."""
    items = page.locator(".answers li")
    wait_until(lambda: items.count() == count)
    return [" ".join(text.split()) for text in items.all_inner_texts()]


def refusal(page: Any, part: str) -> str:
    """Wait for the error line with a text, and return it."""
    alert = page.get_by_role("alert").filter(has_text=part)
    alert.wait_for()
    assert page.locator(".answers li").count() == 0
    return str(alert.inner_text())


def test_a_person_types_judges_and_sees_answer_probability_and_version(
    client: httpx.Client, champion: Champion, page: Any
) -> None:
    version = champion.current().version
    page.get_by_text(f"Version {version} of ").wait_for()
    judge(page, GOOD)
    (text,) = answers(page, 1)
    answer = client.post("/v1/judge", json={"sentences": [GOOD]}).json()["predictions"][0]
    percent = f"{100 * answer['probability']:.1f}%"
    assert text == f"{GOOD} acceptable {percent} version {version} Flag as acceptable not acceptable"
    bar = page.get_by_role("meter", name="probability of acceptable")
    assert f"{bar.get_attribute('aria-valuenow')}%" == percent
    assert bar.locator("span").evaluate("bar => bar.style.width") == percent


def test_several_sentences_are_judged_at_once_and_from_the_keyboard_alone(page: Any) -> None:
    page.get_by_label(BOX).focus()
    page.keyboard.insert_text(f"  {GOOD}\n\n{BAD}\t{BAD}\n{GOOD} ")
    page.keyboard.press("Shift+Enter")
    texts = answers(page, 3)
    assert [text.startswith(start) for text, start in zip(texts, (GOOD, f"{BAD} {BAD}", GOOD), strict=True)]
    assert ["unacceptable" in text for text in texts] == [False, True, False]
    assert page.locator(".summary").inner_text().startswith("2 of 3 are acceptable to version ")
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText").strip())
    assert reached[0] == "Judge"
    assert reached[1:6] == [" ".join(text.split()) for text in EXAMPLE_INPUTS]
    assert reached[6:] == ["acceptable", "not acceptable"]
    page.keyboard.press("Enter")
    page.get_by_text(re.compile(r" lines?\)")).wait_for()


def test_an_example_is_judged_with_one_click(page: Any) -> None:
    page.get_by_role("button", name=" ".join(EXAMPLE_INPUTS[-1].split())).click()
    texts = answers(page, 2)
    assert page.get_by_label(BOX).input_value() == EXAMPLE_INPUTS[-1]
    assert [text.startswith(line) for text, line in zip(texts, EXAMPLE_INPUTS[-1].splitlines(), strict=True)] == [
        True
    ] * 2


def test_a_flag_stands_in_the_file_and_trains_with_the_next_run(
    feedback: Feedback, page: Any, toy_data: Path, tmp_path: Path
) -> None:
    feedback.path.unlink(missing_ok=True)
    assert str(feedback.path) in page.inner_text("body")
    judge(page, f"quite {GOOD}", f"quite {BAD}")
    answers(page, 2)
    first, second = (page.get_by_role("group", name=f"Flag sentence {number} as") for number in (1, 2))
    button = first.get_by_role("button", name="not acceptable")
    button.click()
    first.get_by_text("written (1 line)").wait_for()
    assert button.get_attribute("aria-pressed") == "true"
    second.get_by_role("button", name="acceptable", exact=True).click()
    second.get_by_text("written (2 lines)").wait_for()
    button.click()
    first.get_by_text("already in the file (2 lines)").wait_for()
    assert feedback.path.read_text() == f"feedback\t0\t*\tquite {GOOD}\nfeedback\t1\t\tquite {BAD}\n"
    sources = locate_sources([str(toy_data), str(feedback.path)], "", "", str(tmp_path))
    train = ingest(sources, str(tmp_path), TableFormat(), 0.2)["train"]
    rows = [row for batch in iter_snapshot(train["path"]) for row in batch.to_pylist() if row["source"] == "feedback"]
    assert train["quarantined"] == 0
    assert {row["sentence"]: row["label"] for row in rows} == {f"quite {GOOD}": 0, f"quite {BAD}": 1}


def test_what_the_reader_would_quarantine_is_not_written(feedback: Feedback, page: Any) -> None:
    judge(page, "x" * 2_100)
    (text,) = answers(page, 1)
    assert "x … (2,100 characters)" in text
    page.get_by_role("button", name="acceptable", exact=True).click()
    page.get_by_text("not written: sentence of 2100 characters, more than 2000").wait_for()
    assert not feedback.path.exists() or "xxx" not in feedback.path.read_text()


def test_the_page_shows_the_new_version_when_the_alias_moves(
    original_home: Path, tmp_path: Path, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(module, "POLL_S", 0.2)
    home = copy_registry_home(original_home, tmp_path / "home")
    following = Champion.open(CHAMPION_URI, 0.05, "cpu", str(home.folder), require_model=False)
    with following as champion, running_server(champion, feedback=Feedback(str(tmp_path / "f.tsv"))) as client:
        page = visit(client)
        page.get_by_text("No model is loaded yet: there is no champion yet").wait_for()
        judge(page, GOOD)
        assert "no model is loaded yet: there is no champion yet" in refusal(page, "no model")
        for version in ("1", "2"):
            home.set_champion(version)
            page.get_by_text(f"Version {version} of {CHAMPION_URI} is loaded.").wait_for()
            judge(page, GOOD)
            page.get_by_text(f"version {version}", exact=True).wait_for()
            (text,) = answers(page, 1)
            assert f"version {version}" in text


def test_what_cannot_be_judged_is_refused_in_one_line(page: Any) -> None:
    lines = {
        "": "there is no sentence; expected one or several, one on each line.",
        "a\n" * 21: "21 sentences are too many; expected at most 20.",
        " \n\t\u2028 \n": "there is no sentence; expected one or several, one on each line.",
        f"a\n{'x' * 2_501}": "a line has 2,501 characters; expected at most 2,500.",
        "x" * 200_000: "the body is longer than 100000 bytes; send fewer sentences at a time.",
    }
    # What is typed goes through the browser's editor, which is slow for as much as this.
    fill = "(box, text) => { box.value = text; box.dispatchEvent(new Event('input', { bubbles: true })); }"
    for text, line in lines.items():
        page.get_by_label(BOX).evaluate(fill, text)
        page.get_by_role("button", name="Judge").click()
        assert refusal(page, line[:20]) == line
    judge(page, GOOD)
    answers(page, 1)


def test_a_sentence_of_ten_megabytes_is_refused_where_a_person_sees_it(client: httpx.Client) -> None:
    answer = client.post(RUN_PATH, json={"data": ["x" * 10_000_000], "fn_index": 0})
    (value,) = answer.json()["data"]
    assert '<p class="refused" role="alert">the body is longer than 100000 bytes' in value["html"]
    assert len(answer.content) < 500


def test_a_full_queue_refuses_people_as_it_refuses_programs(
    champion: Champion, feedback: Feedback, visit: Visit
) -> None:
    def ask() -> int:
        return client.post("/v1/judge", json={"sentences": [GOOD]}).status_code

    with (
        running_server(champion, slow=1.5, max_batch=1, max_requests=1, feedback=feedback) as client,
        ThreadPoolExecutor(2) as programs,
    ):
        page = visit(client)
        judge(page, "")  # the page's programs are loaded once it answers
        refusal(page, "there is no sentence")
        first = programs.submit(ask)  # is computed
        page.wait_for_timeout(200)
        second = programs.submit(ask)  # waits
        page.wait_for_timeout(200)
        judge(page, GOOD)
        assert refusal(page, "requests wait").startswith(
            "the queue is full: 1 requests wait, at most 1 may; try again in"
        )
        assert (first.result(), second.result()) == (200, 200)


def test_hostile_text_is_shown_and_not_executed(
    client: httpx.Client, champion: Champion, feedback: Feedback, page: Any
) -> None:
    judge(page, HOSTILE)
    (text,) = answers(page, 1)
    assert text.startswith(HOSTILE.replace("\\u202e", r"\u202e"))
    page.get_by_role("button", name="not acceptable").click()
    page.get_by_text(re.compile(r" lines?\)")).wait_for()
    assert f"\t{HOSTILE}\n" in feedback.path.read_text()
    # A script that got into the page could not send anything to another host.
    send = "url => fetch(url, { mode: 'no-cors' }).then(() => 'sent', () => 'refused')"
    with running_server(champion) as other:
        assert page.evaluate(send, f"{other.base_url}/healthz") == "refused"
        assert page.evaluate(send, f"{client.base_url}/healthz") == "sent"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(page: Any, scheme: str) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    page.emulate_media(color_scheme=scheme)
    judge(page, GOOD, BAD, "w" * 300)
    answers(page, 3)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    whole = page.locator(".option").evaluate_all("found => found.map(each => each.getClientRects().length)")
    assert whole == [1, 1]  # no line ends within --data
    back, ink = page.locator(".answers li").first.evaluate(
        "item => [getComputedStyle(item).backgroundColor, getComputedStyle(item.querySelector('.sentence')).color]"
    )
    light, dark = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (back, ink))
    assert light > 600 > 200 > dark if scheme == "light" else dark > 600 > 200 > light


def test_programs_get_the_api_as_before(client: httpx.Client) -> None:
    html = client.get("/", headers={"accept": "text/html"})
    assert html.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in html.headers["content-security-policy"]
    assert client.get("/").json()["documentation"] == "/openapi.json"
    assert client.get("/healthz").json() == {"live": True}
    assert client.get("/readyz").status_code == 200
    assert client.get("/v1/judge").status_code == 405
    assert client.get("/nowhere").json() == {"error": "Not Found; see: GET /"}
    assert client.post("/v1/judge", json={"sentences": [GOOD]}).status_code == 200
    metrics = client.get("/metrics").text
    assert 'verdict_requests_total{code="200",route="page"}' in metrics
    assert set(re.findall(r'route="([^"]*)"', metrics)) <= {
        "page", "/", "/healthz", "/readyz", "/v1/judge", "/metrics", "unknown",
    }  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        "/config", "/gradio_api/info", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/queue/data?session_hash=a", "/gradio_api/heartbeat/a", "/gradio_api/startup-events",
        "/gradio_api/runs", "/monitoring", "/logout", "/gradio_api/vibe-code/", "/gradio_api/openapi.json",
    ],
)  # fmt: skip
def test_no_other_page_of_gradio_is_served(client: httpx.Client, path: str) -> None:
    answer = client.get(path, headers={"accept": "text/html"})
    assert (answer.status_code, list(answer.json())) == (404, ["error"])


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/call/judge", "/login"])
def test_no_other_endpoint_of_gradio_is_served(client: httpx.Client, path: str) -> None:
    assert client.post(path, json={"data": []}).status_code == 404
    assert client.post(path, files={"files": b"x"}).status_code == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (RUN_PATH, []),
        (RUN_PATH, {"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}], "fn_index": 0}),
        (RUN_PATH, {"data": ["a", "b"], "fn_index": 0}),
        (RUN_PATH, {"data": [True], "fn_index": 0}),
        (RUN_PATH, {"data": ["a"], "fn_index": "0"}),
        (CALL_PATH, {"data": [], "component_id": 1, "fn_name": "flag"}),
        (CALL_PATH, {"data": {}, "component_id": 1, "fn_name": "load"}),
        (CALL_PATH, {"data": {}, "component_id": "1", "fn_name": "flag"}),
    ],
)
def test_requests_that_the_page_never_sends_are_rejected(client: httpx.Client, path: str, body: Any) -> None:
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()) == (
        422,
        {"error": "this is no request of the page; for programs: POST /v1/judge"},
    )


@pytest.mark.parametrize(
    ("data", "written"),
    [
        ({"sentence": "by hand", "label": 1}, True),
        ({"sentence": "by hand", "label": 2}, False),
        ({"sentence": "by hand", "label": True}, False),
        ({"sentence": ["by hand"], "label": 1}, False),
        ({"sentence": "\ud800", "label": 1}, False),
        ({"sentence": "a\0b", "label": 1}, False),
        ({}, False),
    ],
)
def test_a_flag_is_a_sentence_and_a_label(client: httpx.Client, data: Any, written: bool) -> None:
    html = client.get("/", headers={"accept": "text/html"}).text
    config = json.loads(re.search(r"window\.gradio_config = (\{.*?\});</script>", html)[1])  # type: ignore[index]
    (flagging,) = (part["id"] for part in config["components"] if "flag" in str(part["props"].get("server_fns")))
    body = json.dumps({"data": data, "component_id": flagging, "fn_name": "flag"})
    answer = client.post(CALL_PATH, content=body)
    assert answer.json()["written"] is written


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 422),
        ({"sec-fetch-site": "same-origin", "origin": "https://proxied.example"}, 422),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_another_sites_page_cannot_flag(client: httpx.Client, headers: dict[str, str], code: int) -> None:
    assert client.post(CALL_PATH, json={}, headers=headers).status_code == code
    own = f"http://{client.base_url.host}:{client.base_url.port}"
    assert client.post(CALL_PATH, json={}, headers={"origin": own}).status_code == 422


def test_a_site_whose_name_resolves_to_this_machine_cannot_flag(client: httpx.Client) -> None:
    foreign = {"host": "evil.example:8080", "origin": "http://evil.example:8080", "sec-fetch-site": "same-origin"}
    answer = client.post(CALL_PATH, json={}, headers=foreign)
    assert (answer.status_code, "host name 'evil.example:8080' is not this server's" in answer.text) == (421, True)
    assert client.get("/", headers={"host": "evil.example", "accept": "text/html"}).status_code == 421


def test_the_page_is_built_for_its_first_visitor_and_once(
    champion: Champion, feedback: Feedback, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, build = [], module.build_layout
    monkeypatch.setattr(module, "build_layout", lambda clerk: built.append(clerk) or build(clerk))
    with running_server(champion, feedback=feedback) as client, ThreadPoolExecutor(4) as pool:
        assert client.get("/").json()["documentation"] == "/openapi.json"
        assert client.get("/readyz").status_code == 200
        assert built == []
        codes = pool.map(lambda _: httpx.get(f"{client.base_url}/theme.css", timeout=60).status_code, range(4))
        assert (list(codes), len(built)) == ([200] * 4, 1)


def test_a_page_that_cannot_be_built_is_an_error_and_the_api_works(
    champion: Champion, feedback: Feedback, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "build_layout", lambda clerk: 1 / 0)
    with running_server(champion, feedback=feedback) as client:
        answer = client.get("/", headers={"accept": "text/html"})
        assert client.get("/readyz").status_code == 200
    assert (answer.status_code, answer.json()) == (
        500,
        {"error": "the page could not be built; the server's log says why"},
    )
    assert "the page could not be built: ZeroDivisionError: division by zero; the API" in caplog.text


def test_without_gradio_the_command_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        VerdictError, match=r"the page needs gradio, which is not installed; .* verdict serve --no-page"
    ):
        serve(ServerConfig(), str(tmp_path))


def test_feedback_without_a_page_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["serve", "--no-page", "--feedback", "a.tsv"])
    assert left.value.code == 2
    assert capsys.readouterr().err == (
        "error: --feedback is an option of the page, which --no-page turns off; use only one of them\n"
    )


def test_the_server_without_the_page_needs_nothing_of_what_the_page_needs() -> None:
    unwanted = {"gradio", "pyarrow", "jinja2", "pandas", "filelock"}
    script = f"import sys, tasks.serving.server; print({unwanted} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_command_serves_the_page_and_stops_with_it_open(
    exported: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    command = [
        sys.executable,
        "-m",
        "flows.cli.app",
        "serve",
        "--device",
        "cpu",
        "--port",
        "0",
        "--model",
        exported["bundle"],
    ]
    command += ["--feedback", str(tmp_path / "said.tsv")]
    environment = os.environ | {"VERDICT_HOME": str(tmp_path / "home")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            found = re.search(r"on (http://\S+) ", process.stdout.readline())
            assert found
            with httpx.Client(base_url=found[1], timeout=60) as client:
                shown = client.get("/", headers={"accept": "text/html"}).headers["content-type"]
                assert shown.startswith("text/html")
                if CHROMIUM:
                    visitor = request.getfixturevalue("visit")(client)
                    judge(visitor, GOOD)
                    answers(visitor, 1)
                process.send_signal(signal.SIGTERM)
                assert process.wait(10) == 0
                if CHROMIUM:
                    visitor.get_by_text("The server does not answer.").wait_for()
                    visitor.get_by_role("button", name="not acceptable").click()
                    visitor.get_by_text("not written: the server does not answer").wait_for()
            assert process.stderr.read().count("\n") == 2  # which version answers, and that it stopped
        finally:
            process.kill()
    assert {path.name for path in tmp_path.glob("home/*")} <= {
        "cache"
    }  # of matplotlib, which the page's library imports
