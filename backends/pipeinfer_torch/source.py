"""From a model's name to a folder with its files, fetched from the Hugging Face hub where the name is of one there."""

import re
from collections.abc import Iterable
from pathlib import Path

from pipeinfer.engine.backend import BadModel
from pipeinfer.engine.huggingface.checkpoint import INDEX, Checkpoint
from pipeinfer.engine.huggingface.folder import find_folder
from pipeinfer.engine.model_cache import expanded
from pipeinfer.errors import one_line

HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
DESCRIPTION = ("*.json", "*.jinja")


def find_weights(model: str, tensors: Iterable[str]) -> Checkpoint:
    """The checkpoint of `model`, with at least those files that hold `tensors`. Raises BadModel."""
    files = Checkpoint(find_model(model, [INDEX])).files(tensors)
    return Checkpoint(find_model(model, files))


def find_model(model: str, files: Iterable[str] = DESCRIPTION) -> Path:
    """The folder of `model`. From the hub come only `files` (names or patterns), and only what is not yet here.

    Raises BadModel.
    """
    name, _, revision = model.partition("@")
    if expanded(model).is_dir() or not HUB_NAME.fullmatch(name):
        return find_folder(model)
    if not revision:
        raise BadModel(f"expected a model folder or a pinned hub model, came {model!r}, which is no folder: name the"
                       f" revision of a hub model too, as in {name}@main or, better, {name}@<commit>")
    return fetch(name, revision, files)


def fetch(name: str, revision: str, files: Iterable[str]) -> Path:
    """Download `files` of one revision, or find them among earlier downloads."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except RevisionNotFoundError:
        reason = "the hub has no such revision"
    except RepositoryNotFoundError:
        reason = "the hub has no such model, or not for you: check the name and your HF_TOKEN"
    except LocalEntryNotFoundError:
        reason = "the hub cannot be reached and the files are not here: download the model first, or give its folder"
    except Exception as error:  # its HTTP client's own errors come through
        reason = one_line(error)
    raise BadModel(f"expected {name} at revision {revision} from the Hugging Face hub, came {reason}") from None
