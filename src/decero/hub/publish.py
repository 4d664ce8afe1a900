"""Save a model as an ordinary Transformers folder, and push it to the hub when that was asked for."""

from pathlib import Path

from accelerate import Accelerator
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from torch import nn
from transformers import PreTrainedTokenizerBase

from decero.errors import UserError


def publish(accelerator: Accelerator, model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, hub) -> None:
    """Write weights (safetensors), configuration and tokenizer to `folder`; push it to `hub.repo_id` if that is set.

    Raises UserError, the folder kept, when there is no token or the hub refuses.
    """
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(folder)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)
        if hub.repo_id:
            push(folder, hub.repo_id, hub.private)
    accelerator.wait_for_everyone()


def push(folder: Path, repo_id: str, private: bool) -> None:
    """Upload a model folder as one commit; a repository that is not there is made."""
    if get_token() is None:
        raise UserError(f"hub.repo_id: no token to push {folder} with; run `hf auth login` or set HF_TOKEN")
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload model trained with decero")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"hub.repo_id: {folder} is kept but {repo_id} could not be pushed: {error}") from error
