"""The tab of a demo that does what the checkpoint was trained for."""

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from decero import inference
from decero.data.languages import language_ids
from decero.demo.parts import bars, bind, place_of_message, text_of
from decero.errors import UserError
from decero.inference.chosen_sentences import is_extractive
from decero.inference.fill_mask import MASKS
from decero.inference.generation import TASK_NAMES
from decero.inference.loading import Loaded

Warn = Callable[[str], Any]
CANDIDATES = 5  # words for a hole, and answers to a question
MOST_NEW_TOKENS = 512
TITLES = {
    "fill": "Fill", "classify": "Classify", "extract": "Extract", "answer": "Answer", "generate": "Generate",
    "translate": "Translate", "summarize": "Summarize", "write": "Text to text",
}  # fmt: skip


def task_tab(loaded: Loaded, kind: str) -> None:
    """Put the boxes of a task into the tab that is open. kind: a key of TITLES."""
    if kind in ("translate", "summarize", "write"):
        _write_tab(loaded, kind)
    else:
        {"fill": _fill_tab, "classify": _classify_tab, "extract": _extract_tab, "answer": _answer_tab,
         "generate": _generate_tab}[kind](loaded)  # fmt: skip


def kinds_of(loaded: Loaded) -> list[str]:
    """Return the tasks of a checkpoint, keys of TITLES. An encoder-decoder states in its configuration what it does."""
    commands = inference.commands_of(loaded)
    if commands[0] != "translate":
        return [command for command in commands if command in TITLES]
    named = getattr(loaded.model.config, "task_specific_params", None) or {}
    stated = [kind for kind, task in TASK_NAMES.items() if any(name.startswith(task) for name in named)]
    languages = language_ids(loaded.tokenizer) or loaded.model.config.model_type == "marian"
    return stated or ["translate" if languages else "write"]


def _text_box(label: str = "Text", lines: int = 4, **options: Any) -> Any:
    return gr.Textbox(label=label, lines=lines, max_lines=20, **options)


def _fill_tab(loaded: Loaded) -> None:
    mask = str(loaded.tokenizer.mask_token)
    text = _text_box("Text with a hole", 2, placeholder=f"Write {mask} where a word is missing.")
    button = gr.Button("Fill", variant="primary")
    said, filled, holes = place_of_message(), gr.Textbox(label="Filled", interactive=False), gr.HTML("", padding=False)

    def answer(text: str, warn: Warn) -> tuple[str, str]:
        if not any(sign in text_of(text) for sign in (*MASKS, mask)):
            raise UserError(f"the text has no hole; write {mask} where a word is missing")
        [found] = inference.fill(loaded, [text], top_k=CANDIDATES, warn=warn)
        several = len(found.holes) > 1
        tables = [bars(hole, f"Hole {i}" if several else "") for i, hole in enumerate(found.holes, start=1)]
        return found.text, "".join(tables)

    bind(button, [text], answer, [filled, holes], said)


def _classify_tab(loaded: Loaded) -> None:
    boxes = [_text_box("Text" if not inference.reads_pairs(loaded) else "First text")]
    if inference.reads_pairs(loaded):
        boxes.append(_text_box("Second text"))
    button = gr.Button("Classify", variant="primary")
    said, labels = place_of_message(), gr.HTML("", padding=False)
    regression = loaded.model.config.num_labels == 1

    def answer(*values: Any) -> str:
        *texts, warn = values
        texts = [text_of(text) for text in texts]
        [found] = inference.classify(loaded, [texts[0] if len(texts) == 1 else tuple(texts)], warn=warn)
        if regression:
            return "".join(f"<p>{escape(name)}: {value:.4f}</p>" for name, value in found.items())
        return bars(found.items())

    bind(button, boxes, answer, [labels], said)


def _extract_tab(loaded: Loaded) -> None:
    text = _text_box()
    button = gr.Button("Extract", variant="primary")
    said, marked = place_of_message(), gr.HighlightedText(label="Found", combine_adjacent=False)

    def answer(text: str, warn: Warn) -> list[tuple[str, str | None]]:
        [found] = inference.extract(loaded, [text_of(text)], warn=warn)
        if not found:
            warn("No entity was found.")
        return _marked(text, [(each["start"], each["end"], each["label"]) for each in found])

    bind(button, [text], answer, [marked], said)


def _answer_tab(loaded: Loaded) -> None:
    context = _text_box("Document", 7)
    question = gr.Textbox(label="Question", lines=1)
    button = gr.Button("Answer", variant="primary")
    said, found_text = place_of_message(), gr.Textbox(label="Answer", interactive=False)
    marked, spans = gr.HighlightedText(label="Where it is", combine_adjacent=False), gr.HTML("", padding=False)

    def answer(question: str, context: str, warn: Warn) -> tuple[str, list[tuple[str, str | None]], str]:
        pair = text_of(question, "question"), text_of(context, "document")
        [found] = inference.answer(loaded, [pair], n_best=CANDIDATES)
        where = [(found.start, found.end, "answer")] if found.text else []
        rows = [(text, score) for text, _, _, score in found.n_best] + [("(no answer)", found.no_answer)]
        rows.sort(key=lambda row: -row[1])
        return found.text or "(no answer)", _marked(context, where), bars(rows[:CANDIDATES])

    bind(button, [question, context], answer, [found_text, marked, spans], said)


def _generate_tab(loaded: Loaded) -> None:
    text = _text_box("Beginning")
    with gr.Row():
        most = gr.Slider(1, MOST_NEW_TOKENS, 64, step=1, label="Most new tokens")
        temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature (0: no sampling)")
        seed = gr.Number(0, precision=0, minimum=0, label="Seed")
    button = gr.Button("Generate", variant="primary")
    said, written = place_of_message(), gr.Textbox(label="Continuation", lines=6, interactive=False)

    def answer(text: str, most: float, temperature: float, seed: float | None, warn: Warn) -> str:
        drawing = {"temperature": float(temperature), "seed": int(seed or 0)} if temperature else {}
        [found] = inference.generate(loaded, [text_of(text)], max_new_tokens=int(most), warn=warn, **drawing)
        return found

    bind(button, [text, most, temperature, seed], answer, [written], said)


def _write_tab(loaded: Loaded, kind: str) -> None:
    run = inference.summarize if kind == "summarize" else inference.translate
    codes = sorted(language_ids(loaded.tokenizer))
    prefixes = [] if is_extractive(loaded) else _prefixes(loaded, kind)
    text = _text_box(lines=6)
    boxes, names = [text], []
    with gr.Row(visible=bool(codes) or len(prefixes) > 1):
        if len(prefixes) > 1:
            boxes.append(gr.Dropdown(prefixes, value=prefixes[0], label="Task"))
            names.append("prefix")
        if codes:
            boxes += [gr.Dropdown(["", *codes], value="", label=f"{end} language") for end in ("Source", "Target")]
            names += ["source_lang", "target_lang"]
    button = gr.Button(TITLES[kind] if kind != "write" else "Write", variant="primary")
    said, written = place_of_message(), gr.Textbox(label="Answer", lines=6, interactive=False)

    def answer(text: str, *values: Any) -> str:
        *chosen, warn = values
        options = {name: value for name, value in zip(names, chosen, strict=True) if value}
        [found] = run(loaded, [text_of(text)], warn=warn, **options)
        return found

    bind(button, boxes, answer, [written], said)


def _prefixes(loaded: Loaded, kind: str) -> list[str]:
    """Return the texts that choose among the tasks of a checkpoint, such as `translate English to German: `."""
    named = getattr(loaded.model.config, "task_specific_params", None) or {}
    task = TASK_NAMES.get(kind, "")
    found = [each["prefix"] for name, each in named.items() if name.startswith(task) and isinstance(each, dict)
             and each.get("prefix")]  # fmt: skip
    return list(dict.fromkeys(found))


def _marked(text: str, spans: list[tuple[Any, Any, str]]) -> list[tuple[str, str | None]]:
    """Cut a text at spans (start, end, label) into pieces with their label, None for what lies between."""
    pieces: list[tuple[str, str | None]] = []
    at = 0
    for start, end, label in sorted(spans):
        pieces += [(text[at:start], None), (text[start:end], label)]
        at = end
    return [piece for piece in [*pieces, (text[at:], None)] if piece[0]]
