"""Write ONNX files with torch's exporter, and run them in onnxruntime. Models that write text have no cache there."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from decero.errors import UserError
from decero.execution.transformers_internals import attention_of
from decero.hub.engines.engine import HEADS_OF_ENCODERS, Engine, Running
from decero.hub.verification import OUTPUTS, random_batch

FILE = "model.onnx"
LARGEST = 2**31 - 2**20  # bytes; a larger model has its weights in a second file
GENERATING = ("ForConditionalGeneration",)
BY_LENGTH = ("dynamic", "longrope")  # kinds of rotary positions that change with the length of a text


class _Named(nn.Module):
    """Take a batch in a fixed order and return the outputs in a fixed order."""

    def __init__(self, model: Any, inputs: list[str], outputs: list[str]):
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs
        self.more = {"use_cache": False} if model.can_generate() else {}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = self.model(**dict(zip(self.inputs, tensors, strict=True)), **self.more)
        return tuple(found[name] for name in self.outputs)


def convert(model: Any, tokenizer: Any, folder: Path, quantization: str | None) -> None:
    """Write model.onnx, with any batch size and length, and config.json.

    The attention is the eager one: T5's does not export otherwise (its sdpa kernel gives strides that the exporter
    refuses), and all are plain matrix products in ONNX anyhow.
    """
    rope = getattr(model.config, "rope_parameters", None) or {}
    for each in (rope, *rope.values()):  # ModernBERT has one for each kind of layer
        if isinstance(each, dict) and (kind := each.get("rope_type")) in BY_LENGTH:
            why = f"onnx cannot hold rope_type {kind!r}, whose angles depend on the length of a text"
            raise UserError(f"{why}; run the stock model in transformers")
    model.config.save_pretrained(folder)
    batch = {name: tensor.repeat(2, *[1] * (tensor.dim() - 1)) for name, tensor in random_batch(model).items()}
    batch.pop("decoder_attention_mask", None)  # a dimension of 1 in the example would be 1 for ever
    kept = attention_of(model)
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            found = model(**batch)
            outputs = [name for name in OUTPUTS if found.get(name) is not None and name != "encoder_last_hidden_state"]
            program = torch.onnx.export(
                _Named(model, list(batch), outputs).eval(),
                tuple(batch.values()),
                dynamo=True,
                input_names=list(batch),
                output_names=outputs,
                dynamic_shapes=(tuple(_any_size(name, tensor) for name, tensor in batch.items()),),
                verbose=False,
            )
    finally:
        model.set_attn_implementation(kept)
    assert program is not None  # only the old exporter returns None
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    if not quantization:
        program.save(folder / FILE, external_data=size > LARGEST)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = folder / "fp32.onnx"
    program.save(whole, external_data=size > LARGEST)
    # A scale for each column: one for a whole matrix cost a classifier 1.2 points (docs/experiments/engines.md).
    large = size / 4 > LARGEST
    quantize_dynamic(
        whole, folder / FILE, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=large
    )
    for path in folder.glob("fp32.onnx*"):
        path.unlink()


def run(folder: Path, model: Any, tokenizer: Any) -> Running:
    """Open the file in onnxruntime, with as many threads as torch has."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / FILE), settings, providers=["CPUExecutionProvider"])
    inputs, names = [each.name for each in session.get_inputs()], [each.name for each in session.get_outputs()]

    def outputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        found: Any = session.run(names, {name: batch[name].numpy() for name in inputs})
        return {name: torch.from_numpy(np.asarray(each)) for name, each in zip(names, found, strict=True)}

    def write(prompt: list[int], new: int) -> list[int]:
        """Read all tokens again for each new one."""
        ids = torch.tensor([prompt])
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        written: list[int] = []
        start = model.config.decoder_start_token_id if model.config.is_encoder_decoder else None
        while len(written) < new and not (written and written[-1] in ends):
            if start is None:
                rows = torch.tensor([[*prompt, *written]])
                batch = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
            else:
                batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                batch["decoder_input_ids"] = torch.tensor([[start, *written]])
            written.append(int(outputs(batch)["logits"][0, -1].argmax()))
        return written

    return Running(outputs, write if model.can_generate() else None)


def usage(name: str, model: Any) -> str:
    """Return the lines that run the model once."""
    more = ""
    if model.config.is_encoder_decoder:
        start = model.config.decoder_start_token_id
        more = f'inputs["decoder_input_ids"] = np.array([[{start}]])  # and what is written so far\n'
    asks, pads = '["..."]', ""
    if type(model).__name__.endswith("ForMultipleChoice"):
        asks, pads = '["question"] * 2, ["choice 1", "choice 2"]', ", padding=True"
        more = "inputs = {name: each[None] for name, each in inputs.items()}  # a row of choices\n"
    return (
        "import numpy as np\nimport onnxruntime\nfrom transformers import AutoTokenizer\n\n"
        f'session = onnxruntime.InferenceSession("{name}/{FILE}")\n'
        f'inputs = dict(AutoTokenizer.from_pretrained("{name}")({asks}, return_tensors="np"{pads}))\n{more}'
        "wanted = {each.name for each in session.get_inputs()}\n"
        "outputs = session.run(None, {key: value for key, value in inputs.items() if key in wanted})"
    )


def _any_size(name: str, tensor: Tensor) -> dict[int, Any]:
    """Name the dimensions of an input, which may have any size: batch, choices, length."""
    side = "decoder_" if name.startswith("decoder_") else ""
    names = [*["batch", "choices"][: tensor.dim() - 1], f"{side}length"]
    return {number: torch.export.Dim(each) for number, each in enumerate(names)}


ONNX = Engine(
    name="onnx",
    packages=("onnx", "onnxruntime", "onnxscript"),
    heads={
        "bert": HEADS_OF_ENCODERS,
        "roberta": HEADS_OF_ENCODERS,
        "distilbert": HEADS_OF_ENCODERS,
        "electra": HEADS_OF_ENCODERS,
        "modernbert": HEADS_OF_ENCODERS,
        "eurobert": HEADS_OF_ENCODERS,
        "gpt2": ("Model", "ForCausalLM"),
        "llama": ("Model", "ForCausalLM"),
        "stablelm": ("Model", "ForCausalLM"),
        "t5": GENERATING,
        "marian": GENERATING,
    },
    quantizations=("int8",),
    weights=(f"{FILE}*",),
    convert=convert,
    run=run,
    usage=usage,
    library="onnx",
    needs_tokenizer=False,
)
