"""Write and run CTranslate2 models, with the loaders of CTranslate2's own converter.

Its loaders expect files of transformers 4. What transformers 5 changed is set on the model in memory.
"""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from decero.errors import UserError
from decero.hub.engines.engine import Engine, Running

HEAD_FILE = "head.safetensors"
OF_ENCODERS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def convert(model: Any, tokenizer: Any, folder: Path, quantization: str | None) -> None:
    """Write model.bin, config.json and the vocabulary; of an encoder's head its last layer, which the engine lacks."""
    _check_options(model)
    model = deepcopy(model)  # the loaders change the configuration, and empty some models
    config, kind = model.config, model.config.model_type
    loaders = _loaders()
    head = None
    if kind in ("bert", "roberta", "distilbert"):
        config.position_embedding_type = "absolute"  # transformers 5 has no other
        base, head = _encoder_and_head(model)
        loader = loaders["distilbert" if kind == "distilbert" else "encoder"]
    else:
        base, loader = model, loaders[kind]
    if kind == "marian":  # the loader is that of BART, which reads these
        config.normalize_before = config.normalize_embedding = False
    if kind == "t5":  # the loader scales the outputs where embeddings are tied; the configuration always says so
        config.tie_word_embeddings = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)

    with torch.no_grad():
        _converter(loader, base, tokenizer).convert(str(folder), quantization=quantization, force=True)
    if head is not None:
        save_file({name: tensor.detach().clone() for name, tensor in head.state_dict().items()}, folder / HEAD_FILE)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written["layer_norm_epsilon"] = _epsilon(config)
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def run(folder: Path, model: Any, tokenizer: Any) -> Running:
    """Open a folder in CTranslate2, with as many threads as torch has."""
    import ctranslate2

    options: dict[str, Any] = {"device": "cpu", "intra_threads": torch.get_num_threads()}
    tokens = _tokens(model, tokenizer)
    numbers = {token: number for number, token in enumerate(tokens)}

    def text(ids: list[int]) -> list[str]:
        return [tokens[i] for i in ids]

    if model.config.is_encoder_decoder:
        translator = ctranslate2.Translator(str(folder), **options)

        def score(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            targets = _rows(batch, "decoder_")
            found = translator.score_batch(
                [text(ids) for ids in _rows(batch)], [text(ids[1:]) for ids in targets], max_input_length=0
            )
            scores = torch.zeros(batch["decoder_input_ids"].shape)
            for row, result in zip(scores, found, strict=True):
                row[: len(result.log_probs)] = torch.tensor(result.log_probs)
            return {"token_log_probs": scores}

        def translate(prompt: list[int], new: int) -> list[int]:
            found = translator.translate_batch(
                [text(prompt)], beam_size=1, max_decoding_length=new, return_end_token=True, max_input_length=0
            )
            return [numbers[token] for token in found[0].hypotheses[0]]

        return Running(score, translate)
    if model.can_generate():
        generator = ctranslate2.Generator(str(folder), **options)

        def logits(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"logits": _tensor(generator.forward_batch(_rows(batch)))}

        def continue_text(prompt: list[int], new: int) -> list[int]:
            found = generator.generate_batch(
                [text(prompt)], max_length=new, include_prompt_in_result=False, return_end_token=True
            )
            return found[0].sequences_ids[0]

        return Running(logits, continue_text)
    encoder = ctranslate2.Encoder(str(folder), **options)
    head = load_file(folder / HEAD_FILE) if (folder / HEAD_FILE).is_file() else None

    def outputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        types = {"token_type_ids": _rows(batch, name="token_type_ids")} if "token_type_ids" in batch else {}
        found = encoder.forward_batch(_rows(batch), **types)
        hidden, pooled = (_tensor(each) for each in (found.last_hidden_state, found.pooler_output or []))
        if head is None:
            return {"last_hidden_state": hidden} | ({} if _pooler(model) is None else {"pooler_output": pooled})
        kind = type(model).__name__
        if kind.endswith("ForQuestionAnswering"):
            start, end = linear(hidden, head["weight"], head["bias"]).unbind(-1)
            return {"start_logits": start, "end_logits": end}
        states = pooled if kind.endswith("ForSequenceClassification") else hidden
        return {"logits": linear(states, head["weight"], head["bias"])}

    return Running(outputs)


def usage(name: str, model: Any) -> str:
    """Return the lines that run the model; an encoder's head is one matrix, applied by hand."""
    start = "import ctranslate2\nfrom transformers import AutoTokenizer\n"
    load = f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
    tokens = 'tokens = tokenizer.convert_ids_to_tokens(tokenizer("...")["input_ids"])\n'
    if model.config.is_encoder_decoder:
        return (
            f'{start}\ntranslator = ctranslate2.Translator("{name}")\n{load}{tokens}'
            "best = translator.translate_batch([tokens], beam_size=1)[0].hypotheses[0]\n"
            "text = tokenizer.decode(tokenizer.convert_tokens_to_ids(best), skip_special_tokens=True)"
        )
    if model.can_generate():
        return (
            f'{start}\ngenerator = ctranslate2.Generator("{name}")\n{load}{tokens}'
            "ids = generator.generate_batch([tokens], max_length=64)[0].sequences_ids[0]\ntext = tokenizer.decode(ids)"
        )
    kind = type(model).__name__
    lines = (
        f'import numpy as np\n{start}\nencoder = ctranslate2.Encoder("{name}")\n{load}'
        'found = encoder.forward_batch([tokenizer("...")["input_ids"]])\n'
    )
    if kind.endswith("Model"):
        return f"{lines}hidden_states = np.array(found.last_hidden_state)"
    states = "pooler_output" if kind.endswith("ForSequenceClassification") else "last_hidden_state"
    return (
        f'from safetensors.numpy import load_file\n{lines}head = load_file("{name}/{HEAD_FILE}")\n'
        f'logits = np.array(found.{states}) @ head["weight"].T + head["bias"]'
    )


def _check_options(model: Any) -> None:
    """Raise UserError for an option that CTranslate2 has no counterpart of; it would ignore it."""
    config, kind = model.config, model.config.model_type
    problem = None
    if kind == "gpt2" and not config.scale_attn_weights:
        problem = "scale_attn_weights=False; it always divides by the root of the head size"
    if kind == "llama" and config.hidden_act not in ("silu", "swish"):
        problem = f"hidden_act={config.hidden_act!r}; its Llama has silu only"
    if kind == "llama" and config.head_dim * config.num_attention_heads != config.hidden_size:
        problem = f"head_dim={config.head_dim}; it takes hidden_size / num_attention_heads"
    if model.can_generate() and _end(model) is None:
        problem = "no eos_token_id; it needs the token that ends a text"
    if problem:
        raise UserError(f"ctranslate2 cannot run this {kind}, which has {problem}")


def _encoder_and_head(model: Any) -> tuple[Any, Any]:
    """Return the encoder, with the pooler that its head reads, and the head's last layer; None without a head.

    RoBERTa's sequence classifier has its pooler inside the head.
    """
    base, kind = model.base_model, type(model).__name__
    pooler, head = getattr(base, "pooler", None), None
    if kind.endswith("ForQuestionAnswering"):
        head = model.qa_outputs
    elif hasattr(model, "classifier"):
        inner = getattr(model.classifier, "out_proj", None)
        head = model.classifier if inner is None else inner
        pooler = pooler if inner is None else SimpleNamespace(dense=model.classifier.dense)
    if model.config.model_type == "distilbert":
        return base, head
    return SimpleNamespace(
        config=model.config, embeddings=base.embeddings, encoder=base.encoder, pooler=pooler
    ), head  # fmt: skip


def _pooler(model: Any) -> Any:
    return getattr(model.base_model, "pooler", None)


def _epsilon(config: Any) -> float:
    if config.model_type == "distilbert":
        return 1e-12  # its configuration does not say it
    names = ("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps")
    return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), 1e-5)  # Marian's


def _end(model: PreTrainedModel) -> int | None:
    end = model.config.eos_token_id
    return end[0] if isinstance(end, list) else end


def _tokens(model: PreTrainedModel, tokenizer: Any) -> list[str]:
    """Return a name for each row of the embedding; rows without a token get one that no text has."""
    known = {number: token for token, number in tokenizer.get_vocab().items()}
    return [known.get(number, f"<unused_{number}>") for number in range(model.config.vocab_size)]


def _rows(batch: dict[str, Tensor], prefix: str = "", name: str = "input_ids") -> list[list[int]]:
    """Return the rows of a padded batch as lists, without padding."""
    lengths = batch[f"{prefix}attention_mask"].sum(1).tolist()
    return [row[:length] for row, length in zip(batch[prefix + name].tolist(), lengths, strict=True)]


def _tensor(view: Any) -> Tensor:
    return torch.from_numpy(np.array(view, dtype=np.float32))


def _converter(loader: Any, model: Any, tokenizer: Any) -> Any:
    """Return CTranslate2's converter for a model in memory."""
    from ctranslate2.converters.converter import Converter

    class FromMemory(Converter):
        def _load(self):  # the method that its documentation asks converters to define
            return loader(model, tokenizer)

    return FromMemory()


@cache
def _loaders() -> dict[str, Any]:
    """Return CTranslate2's loaders, with the vocabulary and the special tokens of the model's configuration."""
    from ctranslate2.converters import transformers as stock

    class Named:
        def get_vocabulary(self, model, tokenizer):
            return _tokens(model, tokenizer)

        def set_config(self, config, model, tokenizer):
            tokens = _tokens(model, tokenizer)
            at = _end(model)
            end = tokenizer.sep_token if at is None else tokens[at]
            config.unk_token = tokenizer.unk_token or ""
            config.eos_token = end
            start = getattr(model.config, "bos_token_id", None)
            config.bos_token = end if start is None else tokens[start]
            if model.config.is_encoder_decoder:
                config.decoder_start_token = tokens[model.config.decoder_start_token_id]

    class Encoder(stock.RobertaLoader):
        """BERT and RoBERTa: with a pooler or without. RoBERTa's first position is the padding token's id + 1."""

        get_vocabulary = Named.get_vocabulary

        def set_position_encodings(self, spec, module):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            spec.encodings = module.weight[first:]

    class DistilBert(stock.DistilBertLoader):
        get_vocabulary = Named.get_vocabulary

    class T5(Named, stock.T5Loader):
        pass

    class Marian(Named, stock.BartLoader):
        """BART's loader keeps every token where it is; Marian's wants <pad> last, and drops it."""

    class GPT2(Named, stock.GPT2Loader):
        pass

    class Llama(Named, stock.LlamaLoader):
        pass

    return {
        "encoder": Encoder(), "distilbert": DistilBert(), "t5": T5(), "marian": Marian(), "gpt2": GPT2(),
        "llama": Llama(),
    }  # fmt: skip


CTRANSLATE2 = Engine(
    name="ctranslate2",
    packages=("ctranslate2",),
    heads={
        "bert": OF_ENCODERS,
        "roberta": OF_ENCODERS,
        "distilbert": OF_ENCODERS,
        "t5": ("ForConditionalGeneration",),
        "marian": ("ForConditionalGeneration",),
        "gpt2": ("ForCausalLM",),
        "llama": ("ForCausalLM",),
    },
    quantizations=("int8",),
    weights=("model.bin", HEAD_FILE),
    convert=convert,
    run=run,
    usage=usage,
    library="ctranslate2",
)
