"""Give a finished model away: a student's folder, or an exported one, as a repository on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from clipdistill.errors import ConfigError, ModelError
from clipdistill.export.examining import examine
from clipdistill.search.papers import licence_lines, read_papers

#: No route, no name server, a proxy: the hub's own client has a class for these, by another name in each version.
_NETWORK: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)
#: What an editor or a file manager leaves behind.
_IGNORED = [".*", "**/.*", "**/__pycache__/**"]


def push(
    folder: str | Path,
    repository: str,
    tell: Callable[[str], object],
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Upload a folder as ``owner/name``, on the branch ``revision`` if one is named, and return its address.

    The folder is examined first, and ``tell`` gets its licences before anything leaves this machine. The token is that
    of ``HF_TOKEN`` or of ``hf auth login``. One commit, and none where nothing has changed. Raises
    :class:`ConfigError` without a token or a network, :class:`ModelError` for a folder with something wrong in it and
    for what the hub refuses.
    """
    folder = Path(folder)
    findings = examine(folder)
    if findings:
        raise ModelError(f"{folder} is not pushed, for something is wrong with it: {'; '.join(findings)}.")
    for line in licence_lines(read_papers(folder)):
        tell(line)
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing can be pushed. Unset it, or push from another machine.")
    if not get_token():
        raise ConfigError(
            "there is no token for the hub. Log in with 'hf auth login', or set HF_TOKEN to a token that may write."
        )
    return _upload(folder, repository, private, revision)


def _upload(folder: Path, repository: str, private: bool, revision: str | None) -> str:
    api: Any = HfApi(library_name="clipdistill")
    try:
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        if private and not api.repo_info(repository).private:  # it was there before, and stays as it was
            raise ConfigError(
                f"{repository} is there already and public. Make it private in its settings, name another, or leave "
                "out --private. Nothing was pushed."
            )
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            ignore_patterns=_IGNORED,
            commit_message="Upload with clipdistill",
        )
    except HFValidationError as error:
        raise ConfigError(f"'{repository}' is no name of a repository: {error} Expected owner/name.") from error
    except HfHubHTTPError as error:
        raise ModelError(
            f"the hub refused {repository}: {_first_line(error)}. Check that the token may write there, and the name."
        ) from error
    except ValueError as error:  # what the hub has against the header of README.md
        raise ModelError(f"the hub refused the card {folder / 'README.md'}: {' '.join(str(error).split())}") from error
    except _NETWORK as error:
        raise ConfigError(
            f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}: {_first_line(error)}). "
            "Check the network, or HF_ENDPOINT. Nothing was pushed, or not all of it: push again."
        ) from error
    return address


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
