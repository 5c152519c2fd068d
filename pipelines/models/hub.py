"""Folders from and to the Hugging Face hub; a local folder is used as it is."""

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from pipelines.base.errors import UserError
from pipelines.base.output_folder import MARKER


def local_folder(name_or_path: str | Path, revision: str | None = None, files: list[str] | None = None) -> Path:
    """The folder itself where it exists, else a download of the hub's repository of that name.

    `files`: patterns of the names of those that are wanted [all].

    Raises:
        UserError: neither a folder here nor a repository that can be reached.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(str(name_or_path), revision=revision, allow_patterns=files))
    except HFValidationError as error:
        raise UserError(f"{name_or_path}: no such folder, nor a repository name of the form owner/name") from error
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(f"{name_or_path}: no such folder here, and the hub cannot serve it ({error})") from error


def push(folder: str | Path, repo_id: str, private: bool = False, message: str = "Upload by smalti") -> str:
    """Upload a finished model, token or image pipeline folder; returns the address of the commit."""
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    ours = [MARKER, f"*/{MARKER}"]  # which say that a folder on this machine may be overwritten
    uploaded = api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message=message, ignore_patterns=ours)
    return str(uploaded)
