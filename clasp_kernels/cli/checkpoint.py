"""Check ``--model`` before anything is loaded: on the disk, then with one request to the hub."""

from __future__ import annotations

import os
from dataclasses import dataclass

from clasp_kernels.cli.errors import CommandError, UsageError, first_line, in_one_line

_CONFIG = "config.json"
# Timeout of the one request. transformers itself would try many files, each six times.
_SECONDS_TO_ANSWER = 10


@dataclass(frozen=True)
class Checkpoint:
    """A model folder, or the id of one on the Hugging Face hub."""

    source: str
    local_only: bool
    """Whether the hub must not be used, because it is forbidden or cannot be reached."""


def check_name(path_or_id: str) -> None:
    """Raise an error if the name and the disk show that it is neither a model folder nor an id."""
    if not path_or_id:
        raise UsageError("--model must name a folder or a Hugging Face id, got an empty argument")
    try:
        path_or_id.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"--model must be valid UTF-8, as what reads models takes nothing else, got "
            f"{path_or_id!a}"
        ) from None
    if "://" in path_or_id:
        raise UsageError(
            f"--model must be a folder or a Hugging Face id such as llava-hf/llava-1.5-7b-hf, not "
            f"a URL, got {path_or_id}"
        )
    if os.path.exists(path_or_id):
        if not os.path.isdir(path_or_id):
            raise UsageError(
                f"--model {path_or_id} is a file; give the folder that holds the {_CONFIG}"
            )
        if not os.path.exists(os.path.join(path_or_id, _CONFIG)):
            raise _not_loadable(path_or_id, f"the folder holds no {_CONFIG}")
    elif path_or_id.startswith((".", "/", "~")):
        raise UsageError(f"--model: there is no folder {path_or_id}")


def find_checkpoint(path_or_id: str) -> Checkpoint:
    """Return the checkpoint of a folder or hub id. Raises a CommandError if there is none."""
    if os.path.isdir(path_or_id):
        return Checkpoint(path_or_id, local_only=True)
    if not _may_be_an_id(path_or_id):
        raise UsageError(f"--model: there is no folder {path_or_id}")
    return Checkpoint(path_or_id, local_only=not _hub_has(path_or_id))


def _may_be_an_id(name: str) -> bool:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HFValidationError

    try:
        hf_hub_url(name, _CONFIG)
    except HFValidationError:
        return False
    return True


def _hub_has(model_id: str) -> bool:
    """Return True if the hub has the model, False if only the cache has it.

    Raises a CommandError if neither has it.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
    )

    is_cached = isinstance(try_to_load_from_cache(model_id, _CONFIG), str)
    if constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids asking the hub"
    else:
        try:
            url = hf_hub_url(model_id, _CONFIG)
            get_hf_file_metadata(url, timeout=_SECONDS_TO_ANSWER)
            return True
        except GatedRepoError as error:
            why = f"access to it on the hub is restricted ({first_line(error)})"
        except RepositoryNotFoundError:
            why = "the hub has no such model, or it is private and you are not logged in"
        except EntryNotFoundError:
            why = f"on the hub it has no {_CONFIG}"
        except HfHubHTTPError as error:
            why = f"the hub does not serve it ({first_line(error)})"
        except Exception as error:  # the HTTP library, and so its errors, differ between releases
            why = f"the hub cannot be reached ({in_one_line(error)})"
    if not is_cached:
        raise _not_loadable(model_id, f"it is neither a local folder nor in the cache, and {why}")
    return False


def _not_loadable(source: str, reason: str) -> CommandError:
    return CommandError(f"--model {source} cannot be loaded as an image-text model: {reason}")
