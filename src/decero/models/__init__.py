"""The models, registered with every Auto class that they serve."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_decero import DeceroEncoderConfig
from .modeling_encoder import (
    DeceroEncoderForMaskedLM,
    DeceroEncoderForQuestionAnswering,
    DeceroEncoderForSequenceClassification,
    DeceroEncoderForTokenClassification,
    DeceroEncoderModel,
)

AutoConfig.register(DeceroEncoderConfig.model_type, DeceroEncoderConfig)
AutoModel.register(DeceroEncoderConfig, DeceroEncoderModel)
AutoModelForMaskedLM.register(DeceroEncoderConfig, DeceroEncoderForMaskedLM)
AutoModelForSequenceClassification.register(DeceroEncoderConfig, DeceroEncoderForSequenceClassification)
AutoModelForTokenClassification.register(DeceroEncoderConfig, DeceroEncoderForTokenClassification)
AutoModelForQuestionAnswering.register(DeceroEncoderConfig, DeceroEncoderForQuestionAnswering)

__all__ = [
    "DeceroEncoderConfig",
    "DeceroEncoderForMaskedLM",
    "DeceroEncoderForQuestionAnswering",
    "DeceroEncoderForSequenceClassification",
    "DeceroEncoderForTokenClassification",
    "DeceroEncoderModel",
]
