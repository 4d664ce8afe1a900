"""Register the models with the Auto classes of transformers."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForObjectDetection,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSemanticSegmentation,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
    PreTrainedConfig,
)
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from .configuration_decero import DeceroDecoderConfig, DeceroEncoderConfig, DeceroEncoderDecoderConfig
from .configuration_diffusion import DeceroDiffusionConfig
from .configuration_object_detection import DeceroDetectionConfig
from .configuration_recurrent import DeceroRecurrentConfig, DeceroRecurrentSeq2SeqConfig, DeceroTextCNNConfig
from .configuration_vision import DeceroVisionConfig
from .modeling_choice import DeceroEncoderForMultipleChoice
from .modeling_decoder import (
    DeceroDecoderForCausalLM,
    DeceroDecoderForQuestionAnswering,
    DeceroDecoderForSequenceClassification,
    DeceroDecoderForTokenClassification,
    DeceroDecoderModel,
)
from .modeling_detection import DeceroEncoderForPreTraining
from .modeling_diffusion import DeceroDiffusionModel
from .modeling_encoder import (
    DeceroEncoderForMaskedLM,
    DeceroEncoderForQuestionAnswering,
    DeceroEncoderForSequenceClassification,
    DeceroEncoderForTokenClassification,
    DeceroEncoderModel,
)
from .modeling_encoder_decoder import DeceroEncoderDecoderForConditionalGeneration, DeceroEncoderDecoderModel
from .modeling_encoder_decoder_heads import (
    DeceroEncoderDecoderEncoderModel,
    DeceroEncoderDecoderForQuestionAnswering,
    DeceroEncoderDecoderForSequenceClassification,
    DeceroEncoderDecoderForTokenClassification,
)
from .modeling_hybrid import DeceroDecoderForMaskedLM
from .modeling_object_detection import DeceroDetectionForObjectDetection, DeceroDetectionModel
from .modeling_recurrent import (
    DeceroRecurrentForCausalLM,
    DeceroRecurrentForSequenceClassification,
    DeceroRecurrentForTokenClassification,
    DeceroRecurrentModel,
)
from .modeling_recurrent_seq2seq import DeceroRecurrentSeq2SeqForConditionalGeneration, DeceroRecurrentSeq2SeqModel
from .modeling_textcnn import DeceroTextCNNForSequenceClassification, DeceroTextCNNModel
from .modeling_vision import (
    DeceroVisionBackbone,
    DeceroVisionForImageClassification,
    DeceroVisionForMaskedImageModeling,
    DeceroVisionForSemanticSegmentation,
    DeceroVisionModel,
)

AUTO_CLASSES: dict[type[PreTrainedConfig], dict[type, type]] = {
    DeceroEncoderConfig: {
        AutoModel: DeceroEncoderModel,
        AutoModelForMaskedLM: DeceroEncoderForMaskedLM,
        AutoModelForSequenceClassification: DeceroEncoderForSequenceClassification,
        AutoModelForTokenClassification: DeceroEncoderForTokenClassification,
        AutoModelForQuestionAnswering: DeceroEncoderForQuestionAnswering,
        AutoModelForMultipleChoice: DeceroEncoderForMultipleChoice,
        AutoModelForPreTraining: DeceroEncoderForPreTraining,
        AutoModelForTextEncoding: DeceroEncoderModel,
    },
    DeceroDecoderConfig: {
        AutoModel: DeceroDecoderModel,
        AutoModelForCausalLM: DeceroDecoderForCausalLM,
        AutoModelForMaskedLM: DeceroDecoderForMaskedLM,
        AutoModelForSequenceClassification: DeceroDecoderForSequenceClassification,
        AutoModelForTokenClassification: DeceroDecoderForTokenClassification,
        AutoModelForQuestionAnswering: DeceroDecoderForQuestionAnswering,
        AutoModelForPreTraining: DeceroDecoderForCausalLM,
    },
    DeceroEncoderDecoderConfig: {
        AutoModel: DeceroEncoderDecoderModel,
        AutoModelForSeq2SeqLM: DeceroEncoderDecoderForConditionalGeneration,
        AutoModelForSequenceClassification: DeceroEncoderDecoderForSequenceClassification,
        AutoModelForTokenClassification: DeceroEncoderDecoderForTokenClassification,
        AutoModelForQuestionAnswering: DeceroEncoderDecoderForQuestionAnswering,
        AutoModelForPreTraining: DeceroEncoderDecoderForConditionalGeneration,
        AutoModelForTextEncoding: DeceroEncoderDecoderEncoderModel,
    },
    DeceroRecurrentConfig: {
        AutoModel: DeceroRecurrentModel,
        AutoModelForCausalLM: DeceroRecurrentForCausalLM,
        AutoModelForSequenceClassification: DeceroRecurrentForSequenceClassification,
        AutoModelForTokenClassification: DeceroRecurrentForTokenClassification,
    },
    DeceroRecurrentSeq2SeqConfig: {
        AutoModel: DeceroRecurrentSeq2SeqModel,
        AutoModelForSeq2SeqLM: DeceroRecurrentSeq2SeqForConditionalGeneration,
    },
    DeceroTextCNNConfig: {
        AutoModel: DeceroTextCNNModel,
        AutoModelForSequenceClassification: DeceroTextCNNForSequenceClassification,
    },
    DeceroVisionConfig: {
        AutoModel: DeceroVisionModel,
        AutoBackbone: DeceroVisionBackbone,
        AutoModelForImageClassification: DeceroVisionForImageClassification,
        AutoModelForSemanticSegmentation: DeceroVisionForSemanticSegmentation,
        AutoModelForMaskedImageModeling: DeceroVisionForMaskedImageModeling,
    },
    DeceroDetectionConfig: {
        AutoModel: DeceroDetectionModel,
        AutoModelForObjectDetection: DeceroDetectionForObjectDetection,
    },
    DeceroDiffusionConfig: {
        AutoModel: DeceroDiffusionModel,
    },
}

for config_class, heads in AUTO_CLASSES.items():
    AutoConfig.register(config_class.model_type, config_class)
    for auto_class, head in heads.items():
        auto_class.register(config_class, head)  # type: ignore[attr-defined]
# A saved processor has the name ViTImageProcessor: with torchvision that is a faster one, equal up to rounding.
AutoImageProcessor.register(DeceroVisionConfig, image_processor_classes={"pil": ViTImageProcessorPil})
AutoImageProcessor.register(DeceroDiffusionConfig, image_processor_classes={"pil": ViTImageProcessorPil})
AutoImageProcessor.register(DeceroDetectionConfig, image_processor_classes={"pil": DetrImageProcessorPil})

__all__ = [
    "AUTO_CLASSES",
    "DeceroDecoderConfig",
    "DeceroDecoderForCausalLM",
    "DeceroDecoderForMaskedLM",
    "DeceroDecoderForQuestionAnswering",
    "DeceroDecoderForSequenceClassification",
    "DeceroDecoderForTokenClassification",
    "DeceroDecoderModel",
    "DeceroDetectionConfig",
    "DeceroDetectionForObjectDetection",
    "DeceroDetectionModel",
    "DeceroDiffusionConfig",
    "DeceroDiffusionModel",
    "DeceroEncoderConfig",
    "DeceroEncoderDecoderConfig",
    "DeceroEncoderDecoderEncoderModel",
    "DeceroEncoderDecoderForConditionalGeneration",
    "DeceroEncoderDecoderForQuestionAnswering",
    "DeceroEncoderDecoderForSequenceClassification",
    "DeceroEncoderDecoderForTokenClassification",
    "DeceroEncoderDecoderModel",
    "DeceroEncoderForMaskedLM",
    "DeceroEncoderForMultipleChoice",
    "DeceroEncoderForPreTraining",
    "DeceroEncoderForQuestionAnswering",
    "DeceroEncoderForSequenceClassification",
    "DeceroEncoderForTokenClassification",
    "DeceroEncoderModel",
    "DeceroRecurrentConfig",
    "DeceroRecurrentForCausalLM",
    "DeceroRecurrentForSequenceClassification",
    "DeceroRecurrentForTokenClassification",
    "DeceroRecurrentModel",
    "DeceroRecurrentSeq2SeqConfig",
    "DeceroRecurrentSeq2SeqForConditionalGeneration",
    "DeceroRecurrentSeq2SeqModel",
    "DeceroTextCNNConfig",
    "DeceroTextCNNForSequenceClassification",
    "DeceroTextCNNModel",
    "DeceroVisionBackbone",
    "DeceroVisionConfig",
    "DeceroVisionForImageClassification",
    "DeceroVisionForMaskedImageModeling",
    "DeceroVisionForSemanticSegmentation",
    "DeceroVisionModel",
]
