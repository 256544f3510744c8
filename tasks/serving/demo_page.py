"""The demo page, made with Gradio: sentences in, verdicts out, flags of people written to the feedback file.

demo_gateway.py decides which of its requests are served. The page loads nothing from other hosts and sends no
statistics; its fonts are the system's.
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
from tasks.core.printable import counted
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
MAX_SENTENCE_CHARS = 500  # of a sentence that are shown
POLL_S = 3  # between two requests for the model's state
INTERNAL_ERROR = "internal error; the server's log has the details"
SubmitSentences = Callable[[list[str]], Awaitable[BatchReply]]


class DemoController:
    """The server's side of the page: judges sentences and writes flags."""

    def __init__(self, submit: SubmitSentences, feedback: Feedback, limits: RequestLimits) -> None:
        self.submit, self.feedback, self.limits = submit, feedback, limits

    async def judge(self, text: str | None) -> dict[str, Any]:
        """Judge sentences, one for each line.

        Returns:
            `html` with the answers or one line that says what is wrong, and `sentences`, which a flag sends back.
        """
        try:
            reply = await self.submit(split_lines(text or "", self.limits))
        except VerdictError as error:
            return self.refuse(error)
        except Exception as error:
            log.error("a request of the page failed: %s: %s", type(error).__name__, str(error)[:500])
            return self.refuse(VerdictError(INTERNAL_ERROR))
        return {"html": show(reply), "sentences": [answer["sentence"] for answer in reply.answers]}

    @staticmethod
    def refuse(error: VerdictError) -> dict[str, Any]:
        """Return an error in the form of answers."""
        return {"html": render("answers.html.j2", PAGE_TEMPLATES, error=f"{error}."), "sentences": []}

    def flag(self, flag: Any) -> dict[str, Any]:
        """Write a person's label of a sentence to the feedback file.

        Args:
            flag: {"sentence": text, "label": 0 or 1}.
        """
        try:
            sentence, label = (flag.get(name) for name in ("sentence", "label")) if isinstance(flag, dict) else (0, 0)
            if not isinstance(sentence, str) or type(label) is not int or label not in (0, 1):
                raise RequestError(422, 'expected {"sentence": text, "label": 0 or 1}')
            written = self.feedback.add(sentence, label)
        except VerdictError as error:
            return {"written": False, "text": f"{error}"}
        word = "written" if written.new else "already in the file"
        return {"written": True, "text": f"{word} ({counted(written.lines, 'line')})"}


def add_page(app: FastAPI, submit: SubmitSentences, feedback: Feedback, limits: RequestLimits) -> LazyApp:
    """Put the page in front of an API; it is built in a thread at its first request, which the caller closes."""
    controller = DemoController(submit, feedback, limits)
    page = LazyApp(lambda: build_page(controller))
    app.add_middleware(DemoGateway, page=page, limits=limits, refuse=controller.refuse)
    return page


def split_lines(text: str, limits: RequestLimits) -> list[str]:
    """Return the sentences of a text, one for each line, with runs of white space as single spaces.

    Raises:
        RequestError: if there is none, or they exceed the limits.
    """
    sentences = [sentence for line in text.splitlines() if (sentence := one_line(line))]
    if not sentences:
        raise RequestError(422, "there is no sentence; expected one or several, one on each line")
    if len(sentences) > limits.sentences:
        raise RequestError(413, f"{len(sentences):,} sentences are too many; expected at most {limits.sentences:,}")
    longest = max(map(len, sentences))
    if longest > limits.characters:
        raise RequestError(413, f"a line has {longest:,} characters; expected at most {limits.characters:,}")
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
    acceptable, count = sum(answer["label"] == "acceptable" for answer in reply.answers), len(answers)
    summary = f"{acceptable} of {count} are acceptable to version {reply.version}." if count > 1 else ""
    return render(
        "answers.html.j2", PAGE_TEMPLATES, error="", summary=summary, answers=answers, max_length=reply.max_length
    )


def _clip(sentence: str) -> str:
    if len(sentence) <= MAX_SENTENCE_CHARS:
        return sentence
    return f"{sentence[:MAX_SENTENCE_CHARS]} … ({len(sentence):,} characters)"


def build_page(controller: DemoController) -> ASGIApp:
    """Build the page; imports Gradio, which takes seconds."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # no statistics to Gradio's makers
    os.environ["GRADIO_TEMP_DIR"] = _scratch()
    return _mount(build_layout(controller))


@functools.cache
def _scratch() -> str:
    """Return a folder for Gradio's files of this process; its default is shared by all users of a machine."""
    folder = tempfile.mkdtemp(prefix="verdict-page-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def build_layout(controller: DemoController) -> "gr.Blocks":
    """Build the components of the page and connect them."""
    import gradio as gr

    def flag(sent: Any) -> dict[str, Any]:  # Gradio sets an attribute on it, which a method does not allow
        return controller.flag(sent)

    async def choose(example: list[str]) -> tuple[str, dict[str, Any]]:
        return example[0], await controller.judge(example[0])

    path = controller.feedback.shown
    note = render("page_note.html.j2", PAGE_TEMPLATES, path=path, quoted=shlex.quote(path))
    with gr.Blocks(title="Verdict", analytics_enabled=False) as blocks:
        gr.HTML(
            _read("page_head.html"),
            js_on_load=_read("page_model.js").replace("SECONDS", str(POLL_S)),
            apply_default_css=False,
        )
        box = gr.Textbox(
            label="Sentences, one on each line", info="Shift+Enter judges them.", lines=3, max_lines=14, autofocus=True
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
        for listen in (button.click, box.submit):
            listen(controller.judge, box, answers, **private)
        examples.click(choose, examples, [box, answers], **private)
    return blocks


def _mount(blocks: "gr.Blocks") -> ASGIApp:
    """Make the page an ASGI application without Gradio's links, settings and session history."""
    import gradio as gr

    theme = gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(
        # Gradio's own colours have too little contrast to be readable for everybody.
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
