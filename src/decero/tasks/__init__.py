"""What a model is trained for: one file a task, and the table of them all."""

from decero.tasks.base import Corpus, Scores, Task, TaskData
from decero.tasks.causal_lm import CausalLM
from decero.tasks.classification import Classification
from decero.tasks.completion import Completion
from decero.tasks.denoising import Denoising
from decero.tasks.extractive import ExtractiveSummaries
from decero.tasks.finish import finish, is_finished, push_once, record_of
from decero.tasks.image_classification import ImageClassification
from decero.tasks.image_diffusion import ImageDiffusion
from decero.tasks.masked_image import MaskedImage
from decero.tasks.masked_lm import MaskedLM
from decero.tasks.multiple_choice import MultipleChoice
from decero.tasks.object_detection import ObjectDetection
from decero.tasks.permutation_lm import PermutationLM
from decero.tasks.question_answering import QuestionAnswering
from decero.tasks.replaced_tokens import ReplacedTokenDetection
from decero.tasks.semantic_segmentation import SemanticSegmentation
from decero.tasks.seq2seq import Seq2Seq
from decero.tasks.tagging import TokenClassification

TASKS: dict[str, type[Task]] = {  # recipe -> its task
    task.recipe: task
    for task in (
        MaskedLM, PermutationLM, ReplacedTokenDetection, Denoising, CausalLM, Classification, TokenClassification,
        QuestionAnswering, MultipleChoice, Seq2Seq, Completion, ExtractiveSummaries, MaskedImage, ImageDiffusion,
        ImageClassification, SemanticSegmentation, ObjectDetection,
    )
}  # fmt: skip

__all__ = [
    "TASKS", "CausalLM", "Classification", "Completion", "Corpus", "Denoising", "ExtractiveSummaries",
    "ImageClassification", "ImageDiffusion", "MaskedImage", "MaskedLM", "MultipleChoice", "ObjectDetection",
    "PermutationLM", "QuestionAnswering", "ReplacedTokenDetection", "Scores", "SemanticSegmentation", "Seq2Seq", "Task",
    "TaskData", "TokenClassification", "finish", "is_finished", "push_once", "record_of",
]  # fmt: skip
