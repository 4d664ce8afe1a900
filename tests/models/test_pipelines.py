"""Every task of transformers' `pipeline` that our classes fit works with them; a new task is noticed."""

import copy

import numpy as np
import pytest
import transformers
from PIL import Image
from transformers import AutoModel, AutoModelForTextEncoding, pipeline
from transformers.pipelines import PIPELINE_REGISTRY, get_supported_tasks

from decero.models import (
    AUTO_CLASSES,
    DeceroDetectionConfig,
    DeceroDiffusionConfig,
    DeceroVisionConfig,
)

OTHER_INPUTS = {  # tasks of no class of ours: sound, video, tables, documents, two kinds of input, maps of pictures
    "audio-classification", "automatic-speech-recognition", "text-to-audio", "zero-shot-audio-classification",
    "video-classification", "table-question-answering", "document-question-answering", "image-text-to-text",
    "zero-shot-image-classification", "zero-shot-object-detection", "any-to-any", "visual-question-answering",
    "depth-estimation", "mask-generation", "keypoint-matching", "image-to-image", "image-to-text",
}  # fmt: skip
CHAT = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
TEXT, PICTURES = "the bank in tokyo", (DeceroVisionConfig, DeceroDetectionConfig)
QUESTION = {"state": TEXT, "questions": {"town": {"type": "noul", "instructions": "Is it a town?"}}}
CALLS = {  # task -> what the pipeline is given
    "feature-extraction": ((TEXT,), {}),
    "text-classification": ((TEXT,), {"top_k": None}),
    "token-classification": ((TEXT,), {}),
    "fill-mask": (("the [MASK] in tokyo",), {"top_k": 3}),
    "text-generation": ((TEXT,), {"max_new_tokens": 3, "do_sample": False}),
    "zero-shot-classification": ((TEXT,), {"candidate_labels": ["town", "team"]}),
    "image-classification": ((), {}),
    "image-feature-extraction": ((), {}),
    "image-segmentation": ((), {}),
    "object-detection": ((), {"threshold": 0.0}),
    "decision": ((QUESTION,), {}),
}


def tasks():
    """Task and configuration class, for every task whose Auto classes have a class of ours."""
    for task in sorted(set(get_supported_tasks())):
        name, found, _ = PIPELINE_REGISTRY.check_task(task)
        for config_class, heads in AUTO_CLASSES.items():
            auto = next((auto for auto in found["pt"] if auto in heads), None)
            pictures = config_class in PICTURES
            fits = auto is not None and (auto is not AutoModel or pictures == name.startswith("image"))
            if config_class is DeceroDiffusionConfig:  # it draws: it reads noise, a time and a class
                fits = False
            elif auto is AutoModel and config_class().is_encoder_decoder:  # it would need a second text
                auto, fits = (
                    AutoModelForTextEncoding,
                    name == "feature-extraction" and AutoModelForTextEncoding in heads,
                )
            if fits and name == task and name not in OTHER_INPUTS:
                yield pytest.param(task, config_class, auto, id=f"{task} {config_class.model_type}")


def test_every_task_of_transformers_is_known():
    known = OTHER_INPUTS | CALLS.keys()
    new = {task for task in get_supported_tasks() if PIPELINE_REGISTRY.check_task(task)[0] not in known}
    assert not new, "add it to CALLS, or to OTHER_INPUTS if no class of ours fits"


def sizes(config_class):
    if config_class is DeceroVisionConfig:
        return {
            "image_size": 12, "patch_size": 4, "hidden_size": 33, "num_attention_heads": 3, "num_hidden_layers": 1,
            "intermediate_size": 41, "decoder_hidden_size": 6,
        }  # fmt: skip
    if config_class is DeceroDetectionConfig:
        return {"hidden_size": 34, "num_attention_heads": 1, "num_hidden_layers": 1, "patch_size": 4, "num_queries": 3}
    return {"hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 1, "intermediate_size": 41}


@pytest.mark.parametrize(("task", "config_class", "auto"), tasks())
def test_a_pipeline_works(task, config_class, auto, tokenizer, monkeypatch):
    labels = {"id2label": {0: "entailment", 1: "neutral"}, "label2id": {"entailment": 0, "neutral": 1}}
    if config_class in PICTURES:
        config = config_class(**sizes(config_class), **labels)
        parts = {"image_processor": processor(config_class, task)}
    else:
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.sep_token_id, "bos_token_id": 2}
        config = config_class(vocab_size=len(tokenizer), **sizes(config_class), **ids, **labels)
        tokenizer = copy.deepcopy(tokenizer)  # a pipeline may add tokens to it
        tokenizer.chat_template = CHAT
        parts = {"tokenizer": tokenizer}
    if task == "decision":
        from transformers import DecisionConfig

        parts["decision_config"] = DecisionConfig(labels={"noul": ["a", "b"]})
    args, options = CALLS[task]
    if config_class in PICTURES:
        args = (Image.fromarray((np.arange(12 * 12 * 3) % 251).astype(np.uint8).reshape(12, 12, 3)),)
    found = pipeline(task, model=auto.from_config(config).eval(), **parts, device="cpu")(*args, **options)
    assert found or task == "token-classification"


def processor(config_class, task):
    if config_class is DeceroDetectionConfig:
        return transformers.DetrImageProcessorPil(size={"height": 12, "width": 12})
    kind = (
        transformers.SegformerImageProcessorPil if task == "image-segmentation" else transformers.ViTImageProcessorPil
    )
    return kind(size={"height": 12, "width": 12})
