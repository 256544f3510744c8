"""The try-it page: sentences in, verdicts out, and what people say of them written to the feedback file.

It is made with Gradio, and front.py says what of that can be reached. Nothing is fetched from elsewhere or told to
anybody; the fonts are the system's.
"""

import atexit
import functools
import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from tasks.core.errors import VerdictError
from tasks.reporting.templating import render
from tasks.serving.batcher import BatchReply
from tasks.serving.demo_gateway import DemoGateway, LazyApp
from tasks.serving.feedback import Feedback, one_line
from tasks.serving.request_validation import RequestError, RequestLimits

if TYPE_CHECKING:
    import gradio as gr

log = logging.getLogger(__name__)

PAGE_TEMPLATES = Path(__file__).with_name("templates")
EXAMPLE_INPUTS = (
    "The child has eaten the apple.",
    "The child have eat the apple.",
    "She gave the letter to her neighbour.",
    "She gave to the letter her neighbour.",
    "The keys were lost.\nThe keys was lost.",
)
MAX_SENTENCE_CHARS = 500  # characters of a sentence
POLL_S = 3  # seconds between two looks which model answers
INTERNAL_ERROR = "the server met a fault of its own; its log says more"
SubmitSentences = Callable[[list[str]], Awaitable[BatchReply]]


class DemoController:
    """What the page asks of the server."""

    def __init__(self, ask: SubmitSentences, feedback: Feedback, limits: RequestLimits) -> None:
        self.ask, self.feedback, self.limits = ask, feedback, limits

    async def judge(self, text: str | None) -> dict[str, Any]:
        """Judge sentences, one a line.

        Returns:
            The answers as HTML, or one line that says what is wrong, and the sentences, which the flags repeat.
        """
        try:
            reply = await self.ask(split_lines(text or "", self.limits))
        except VerdictError as error:
            return self.refuse(error)
        except Exception as error:
            log.error("the page: %s: %s", type(error).__name__, str(error)[:500])
            return self.refuse(VerdictError(INTERNAL_ERROR))
        return {"html": show(reply), "sentences": [answer["sentence"] for answer in reply.answers]}

    @staticmethod
    def refuse(error: VerdictError) -> dict[str, Any]:
        """Return what stands in the place of answers."""
        return {"html": render("answers.html.j2", PAGE_TEMPLATES, error=f"{error}."), "sentences": []}

    def flag(self, said: Any) -> dict[str, Any]:
        """Write what a person says of a sentence.

        Args:
            said: {"sentence": text, "label": 0 or 1}.
        """
        try:
            sentence, label = (said.get(name) for name in ("sentence", "label")) if isinstance(said, dict) else (0, 0)
            if not isinstance(sentence, str) or type(label) is not int or label not in (0, 1):
                raise RequestError(422, 'expected {"sentence": text, "label": 0 or 1}')
            written = self.feedback.add(sentence, label)
        except VerdictError as error:
            return {"written": False, "text": f"{error}"}
        word = "written" if written.new else "stands there already"
        return {"written": True, "text": f"{word} ({written.lines} in the file)"}


def add_page(app: FastAPI, ask: SubmitSentences, feedback: Feedback, limits: RequestLimits) -> LazyApp:
    """Put the page before an API; the first visitor has it built, in a thread that is to be closed at the end."""
    clerk = DemoController(ask, feedback, limits)
    loading = LazyApp(lambda: build_page(clerk))
    app.add_middleware(DemoGateway, page=loading, limits=limits, refuse=clerk.refuse)
    return loading


def split_lines(text: str, limits: RequestLimits) -> list[str]:
    """Return the sentences of a text, one a line, white space between words made single spaces.

    Raises:
        Refused: if there is none, or they are beyond the limits.
    """
    sentences = [sentence for line in text.splitlines() if (sentence := one_line(line))]
    if not sentences:
        raise RequestError(422, "there is no sentence; write one or several, one a line")
    if len(sentences) > limits.sentences:
        raise RequestError(413, f"{len(sentences):,} sentences are too many; at most {limits.sentences:,} at a time")
    longest = max(map(len, sentences))
    if longest > limits.characters:
        raise RequestError(413, f"a line has {longest:,} characters; a sentence may have {limits.characters:,}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(422, "the text holds half of a surrogate pair, which is no character") from None
    return sentences


def show(reply: BatchReply) -> str:
    """Return answers as HTML."""
    answers = [
        {**answer, "percent": f"{100 * answer['probability']:.1f}", "shown": _clip(answer["sentence"])}
        for answer in reply.answers
    ]
    good, count = sum(answer["label"] == "acceptable" for answer in reply.answers), len(answers)
    summary = f"{good} of {count} acceptable, says version {reply.version}." if count > 1 else ""
    return render("answers.html.j2", PAGE_TEMPLATES, error="", summary=summary, answers=answers)


def _clip(sentence: str) -> str:
    if len(sentence) <= MAX_SENTENCE_CHARS:
        return sentence
    return f"{sentence[:MAX_SENTENCE_CHARS]} … ({len(sentence):,} characters)"


def build_page(clerk: DemoController) -> ASGIApp:
    """Build the page; imports Gradio, which takes seconds."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it would tell its makers otherwise
    os.environ["GRADIO_TEMP_DIR"] = _scratch()
    return _mount(_lay_out(clerk))


@functools.cache
def _scratch() -> str:
    """Return a folder for what Gradio makes at its start; its own choice is one that all users of a machine share."""
    folder = tempfile.mkdtemp(prefix="verdict-page-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _lay_out(clerk: DemoController) -> "gr.Blocks":
    """Put the page's parts together."""
    import gradio as gr

    def flag(said: Any) -> dict[str, Any]:  # Gradio marks it, which a method does not let it do
        return clerk.flag(said)

    async def choose(example: list[str]) -> tuple[str, dict[str, Any]]:
        return example[0], await clerk.judge(example[0])

    path = clerk.feedback.shown
    note = render("page_note.html.j2", PAGE_TEMPLATES, path=path, quoted=shlex.quote(path))
    with gr.Blocks(title="Verdict", analytics_enabled=False) as blocks:
        gr.HTML(
            _read("page_head.html"),
            js_on_load=_read("page_model.js").replace("SECONDS", str(POLL_S)),
            apply_default_css=False,
        )
        box = gr.Textbox(
            label="Sentences, one a line", info="Shift+Enter judges them.", lines=3, max_lines=14, autofocus=True
        )
        button = gr.Button("Judge", variant="primary")
        examples = gr.Dataset(
            components=[box],
            samples=[[text] for text in EXAMPLE_INPUTS],
            label="Examples",
            samples_per_page=len(EXAMPLE_INPUTS),
        )
        answers = gr.HTML(
            {"html": "", "sentences": []},
            html_template="${value.html}",
            js_on_load=_read("page_answers.js"),
            apply_default_css=False,
            server_functions=[flag],
        )
        gr.HTML(note, apply_default_css=False, js_on_load=None)
        private: Any = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        for ask in (button.click, box.submit):
            ask(clerk.judge, box, answers, **private)
        examples.click(choose, examples, [box, answers], **private)
    return blocks


def _mount(blocks: "gr.Blocks") -> ASGIApp:
    """Make a page an application, with nothing that leads elsewhere."""
    import gradio as gr

    theme = gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(
        # Gradio's own is too pale to be read by everybody.
        **dict.fromkeys(("body_text_color_subdued", "block_info_text_color"), "#52525b"),
        **dict.fromkeys(("body_text_color_subdued_dark", "block_info_text_color_dark"), "#a1a1aa"),
    )
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=theme,
        css=_read("page.css"),
    )


def _read(name: str) -> str:
    return (PAGE_TEMPLATES / name).read_text(encoding="utf-8")
