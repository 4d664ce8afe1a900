"""Build the Gradio page of a checkpoint: a tab for its task, one for attention, one for its dimensions."""

import importlib.util
import os
from typing import Any

from decero.errors import UserError
from decero.execution.threads import set_threads
from decero.inference import commands_of, load
from decero.inference.loading import Loaded

INSTALL = "the demo needs the package gradio: pip install 'decero[demo]'"
HOST = "127.0.0.1"  # this machine only
CSS = """
.gradio-container { width: 100%; max-width: 900px !important; margin: 0 auto !important; }
.gradio-container .bars { border: 0 !important; width: 100%; table-layout: fixed; border-collapse: collapse;
  font-size: 15px; margin: 0 0 12px; }
.gradio-container .html-container { padding: 0 !important; }
.gradio-container .bars :is(th, td, tr) { border: 0 !important; padding: 5px 8px; text-align: left; }
.gradio-container .bars tr { border-bottom: 1px solid #8883 !important; }
.gradio-container .bars th { font-weight: 600; overflow-wrap: anywhere; }
.gradio-container .bars td.number { width: 5.5em; text-align: right; font-variant-numeric: tabular-nums; }
.gradio-container .bars .bar { height: 14px; border-radius: 3px; background: #0072B2; min-width: 1px; }
.gradio-container .bars caption { text-align: left; padding: 4px 8px; }
.said-line { margin: 0 !important; padding: 8px 12px; border-radius: 6px; border-left: 4px solid #D55E00;
  overflow-wrap: anywhere; background: color-mix(in srgb, #D55E00 10%, transparent); }
.said-line.note { border-color: #0072B2; background: color-mix(in srgb, #0072B2 10%, transparent); }
.said:not(:has(.said-line)) { display: none; }
iframe.attention { width: 100%; height: 880px; border: 1px solid #8886; border-radius: 6px; background: Canvas; }
footer { display: none !important; }
@media (max-width: 480px) { .gradio-container [role="tablist"] button, .gradio-container .tab-container button {
  padding: 0 7px !important; font-size: 14px; } }
"""


def require_gradio() -> None:
    """Raise UserError when gradio is not installed. Otherwise keep it from calling home."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError(INSTALL)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


def build_app(model: str | Loaded, **loading: Any) -> Any:
    """Return the `gradio.Blocks` of a checkpoint. Its tasks are those of its head.

    model: folder, name on the hub, or package:NAME/FOLDER, or what `inference.load` gave. loading: options of `load`.

    Raises UserError as `load` does, without gradio, and for a checkpoint that no command works with.
    """
    require_gradio()
    import gradio as gr

    from decero.demo.attention_tab import attention_tab
    from decero.demo.chat_tab import can_chat, chat_tab
    from decero.demo.dimensions_tab import dimensions_tab
    from decero.demo.parts import short_name
    from decero.demo.task_tabs import TITLES, kinds_of, task_tab

    set_threads()
    if isinstance(model, Loaded):
        loaded = model
    else:
        pins = {name: value for name, value in loading.items() if name != "bf16"}
        loaded = load(model, commands_of(model, **pins)[0], **loading)
    name = short_name(loaded)
    with gr.Blocks(title=f"{name} - decero", analytics_enabled=False) as app:
        gr.Markdown(f"# {_plain(name)}\nA {loaded.model.config.model_type} model.")
        with gr.Tabs():
            for kind in kinds_of(loaded):
                if kind == "generate" and can_chat(loaded):
                    with gr.Tab("Chat"):
                        chat_tab(loaded)
                with gr.Tab(TITLES[kind]):
                    task_tab(loaded, kind)
            with gr.Tab("Attention"):
                attention_tab(loaded)
            with gr.Tab("Sizes"):
                dimensions_tab(loaded)
    return app


def serve(app: Any, port: int | None = None, *, host: str = HOST, wait: bool = True) -> str:
    """Serve a page, on this machine only unless another host is given; return its address.

    port: None takes the first free one from 7860 on. wait: return only after Ctrl-C.

    Raises UserError for a port that is not free.
    """
    import gradio as gr

    sans, mono = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    theme = gr.themes.Default(primary_hue="blue", font=sans, font_mono=mono)
    try:
        app.queue(default_concurrency_limit=1).launch(
            server_name=host, server_port=port, share=False, quiet=True, theme=theme, css=CSS, footer_links=[],
            ssr_mode=False, mcp_server=False, pwa=False, inbrowser=False, prevent_thread_lock=True,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"port {port or '7860 to 7959'} is not free; choose another one with --port") from error
    print(f"{app.local_url}  (Ctrl-C ends it)", flush=True)
    if wait:
        app.block_thread()
    return app.local_url


def _plain(text: str) -> str:
    """Keep Markdown from reading a name as markup."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()#+!|<>~$" else letter for letter in text)
