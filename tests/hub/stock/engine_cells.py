"""Which family runs in which engine with which heads: the cells that the slow tests try."""

READING = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
ALL = ("Model", "ForMaskedLM", *READING[1:], "ForMultipleChoice")
WRITING, ANSWERING = ("Model", "ForCausalLM"), ("ForConditionalGeneration",)
DISTIL = ("Model", "ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering")
ENCODERS = {
    "bert": ALL, "roberta": ALL, "modernbert": ALL, "distilbert": DISTIL, "electra": (*DISTIL, "ForPreTraining"),
    "eurobert": ALL[:4],
}  # fmt: skip
# engine -> model -> heads; a model is a family, or a variant of one: conftest.py
BY_ENGINE = {
    "ctranslate2": {
        "bert": READING, "roberta": READING, "distilbert": DISTIL[:1] + DISTIL[2:], "t5": ANSWERING,
        "t5 1.1": ANSWERING, "marian": ANSWERING, "gpt2": WRITING[1:], "llama": WRITING[1:],
        "llama tied, with biases": WRITING[1:],
    },
    "onnx": ENCODERS | {
        "gpt2": WRITING, "llama": WRITING, "stablelm": WRITING, "stablelm tied": WRITING[1:], "t5": ANSWERING,
        "t5 1.1": ANSWERING, "marian": ANSWERING,
    },
    "gguf": {"llama": WRITING[1:], "llama tied, with biases": WRITING[1:]},
    "sentence-transformers": ENCODERS,
}  # fmt: skip
CELLS = [(engine, model, head) for engine, models in BY_ENGINE.items() for model in models for head in models[model]]
QUANTIZED = [
    *(("ctranslate2", family, "ForSequenceClassification") for family in ("bert", "roberta")),
    *(("ctranslate2", family, "ForConditionalGeneration") for family in ("t5", "marian")),
    *(("ctranslate2", family, "ForCausalLM") for family in ("gpt2", "llama")),
    ("onnx", "bert", "ForSequenceClassification"),
    *(("onnx", family, "ForConditionalGeneration") for family in ("t5", "marian")),
    *(("onnx", family, "ForCausalLM") for family in ("gpt2", "llama")),
    ("gguf", "llama", "ForCausalLM"),
]  # fmt: skip
