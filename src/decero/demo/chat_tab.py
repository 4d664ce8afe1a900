"""The tab of a demo that talks with a model. Each visitor has a dialogue of their own."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import gradio as gr

from decero.demo.parts import ONE_AT_A_TIME, error_message, note, place_of_message, text_of
from decero.errors import UserError
from decero.inference import Conversation
from decero.inference.loading import Loaded


def can_chat(loaded: Loaded) -> bool:
    """Tell whether a model can hold a dialogue: it has a chat template, and a cache of keys and values."""
    try:
        Conversation(loaded)
    except UserError:
        return False
    return True


class Talk:
    """Hold the dialogue of one visitor. stop: set to end the answer that is being written."""

    def __init__(self, loaded: Loaded):
        self.notes: list[str] = []
        self.stop = threading.Event()
        self.conversation = Conversation(loaded, warn=self.notes.append)

    def answer(self, text: str) -> Iterator[str]:
        """Yield the answer as far as it is written, again and again. Raises what `Conversation.ask` raises."""
        pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()
        self.stop.clear()
        self.notes.clear()

        def write() -> None:
            try:
                self.conversation.ask(text, pieces.put, self.stop.is_set)
                pieces.put(None)
            except BaseException as error:  # it is raised again where the page waits
                pieces.put(error)

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        written = ""
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                written += piece
                yield written
        finally:
            self.stop.set()  # the visitor may have left
            writer.join()


def chat_tab(loaded: Loaded) -> None:
    """Put the boxes of a dialogue into the tab that is open."""
    talk = gr.State(None)
    dialogue = gr.Chatbot(label="Dialogue", height=420, buttons=[])
    said = place_of_message()
    text = gr.Textbox(label="Your turn", lines=1, max_lines=8, autofocus=True)
    with gr.Row():
        send = gr.Button("Send", variant="primary", min_width=90)
        stop = gr.Button("Stop", min_width=90)
        reset = gr.Button("Reset", min_width=90)

    def ask(text: str, shown: list[Any], talk: Talk | None) -> Iterator[tuple[Any, ...]]:
        shown = list(shown or [])
        try:
            text = text_of(text)
            talk = talk or Talk(loaded)
            turn = [*shown, {"role": "user", "content": text}]
            yield "", turn, talk, ""
            for written in talk.answer(text):
                yield "", [*turn, {"role": "assistant", "content": written}], talk, ""
            end = [*turn, {"role": "assistant", "content": talk.conversation.messages[-1]["content"]}]
            yield "", end, talk, note(talk.notes)
        except Exception as error:  # a model of another author may raise anything
            yield text, shown, talk, error_message(error)

    outputs = [text, dialogue, talk, said]
    options: dict[str, Any] = {"concurrency_id": ONE_AT_A_TIME, "api_visibility": "private"}
    for event in (send.click, text.submit):
        event(ask, [text, dialogue, talk], outputs, **options)
    stop.click(lambda talk: talk.stop.set() if talk else None, [talk], None, api_visibility="private")
    reset.click(lambda: ("", [], None, ""), None, outputs, api_visibility="private")
