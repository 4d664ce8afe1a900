"""Define the settings of distillation: a teacher, and texts without labels."""

from pydantic import Field

from decero.config.sections import Section

TEMPERATURE = 2.0  # of DistilBERT: Sanh et al. 2019


class DistillSection(Section):
    teacher: str = Field(
        description="checkpoint that teaches: hub name, folder or package:NAME/FOLDER; train it on train only"
    )
    revision: str | None = Field(None, description="commit of a hub teacher")
    temperature: float | None = Field(
        None, ge=0.01, le=1000, description="divides the logits of both models; 2 when not set; a regression has none"
    )
    alpha: float = Field(
        0.5, gt=0, le=1, description="weight of the teacher's loss; the loss of the labels has the rest"
    )

    @property
    def heat(self) -> float:
        """The temperature, or its default."""
        return self.temperature or TEMPERATURE


class DistillTexts(DistillSection):
    unlabelled_files: str | list[str] | None = Field(
        None, description="files of texts without labels; the teacher labels them; columns as in data"
    )
    unlabelled_rest: bool = Field(
        False, description="also read the rows of train that data.max_train_rows leaves out, without their labels"
    )
