"""The Hugging Face hub: models and licences at one commit, and one clear line for every failure.

A model is `NAME[@REVISION]`. A revision is a branch, a tag or a commit; a build resolves it to a commit at its start
and keeps to that one.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from os.path import isdir  # unlike that of Path it takes names that no disk has
from pathlib import Path
from typing import Any

from cache_tools.errors import CometError

NAME = r"[\w.-]+(?:/[\w.-]+)?(?:@[\w./-]+)?"
MODEL = re.compile(NAME)
COMMIT = re.compile("[0-9a-f]{40}")
MODEL_FILES = ["*.json", "*.txt", "*.model", "README.md", "model*.safetensors"]
PICKLED_FILES = ["pytorch_model*.bin"]
ADAPTER = "adapter_config.json"
UNKNOWN_LICENCE = "licence not stated"
GATED = ", gated"


def split_revision(name: str) -> tuple[str, str | None]:
    """Split `NAME[@REVISION]` into repository and revision."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def model_folder(name: str, what: str, way_out: str) -> Path:
    """Return the folder of a model's files: the given one, or that in the hub's cache, named after the commit.

    Downloads safetensors, and pickled weights only if there are none. If the hub cannot be reached, uses the revision
    in the hub's cache and prints a line. Raises CometError, from `what` to `way_out`, if there is no such model, or an
    adapter beside it, which transformers ignores where peft is not installed.
    """
    if isdir(name):
        folder = Path(name)
    else:
        require_model_name(name, what)
        with hub_errors(what, way_out):
            folder = _snapshot(*split_revision(name), what)
    if (folder / ADAPTER).exists():
        raise CometError(
            f"{what}: holds an adapter of peft ({ADAPTER}), which would be left out; merge it into its model with "
            "peft's merge_and_unload(), and save that and the tokenizer in a new folder",
            exit_code=2,
        )
    return folder


def require_model_name(name: str, what: str) -> None:
    """Raise CometError unless a name is that of a folder or has the form of a model's on the hub. Does not connect."""
    if not isdir(name) and (MODEL.fullmatch(name) is None or not _is_repository(split_revision(name)[0])):
        raise CometError(
            f"{what}: cannot be loaded: no such folder, and not a name on the hub such as Davlan/afro-xlmr-large",
            exit_code=2,
        )


def _is_repository(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def at_commit(name: str, folder: Path) -> str:
    """Return the name of a model with the commit that `model_folder` found for it; for a folder the name itself."""
    return name if Path(name).is_dir() else f"{split_revision(name)[0]}@{folder.name}"


def _snapshot(repository: str, revision: str | None, what: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from tqdm import tqdm

    def download(patterns: list[str], cached: bool) -> Path:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, local_files_only=cached))

    def whole(cached: bool) -> Path:
        folder = download(MODEL_FILES, cached)
        if not any(folder.glob("model*.safetensors")):
            download(MODEL_FILES + PICKLED_FILES, cached)
        return folder

    if revision is not None and COMMIT.fullmatch(revision):
        with suppress(LocalEntryNotFoundError):
            folder = whole(cached=True)
            if any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin")):
                return folder  # other programs cache parts alone
        bound_waiting()
        return whole(cached=False)
    away = unreachable(repository, "model", revision)
    if away is None:
        return whole(cached=False)
    try:
        folder = whole(cached=True)
    except LocalEntryNotFoundError as error:
        raise away from error
    if not constants.HF_HUB_OFFLINE:
        note = f"{what}: the hub cannot be reached; using revision {folder.name} from its cache on this machine"
        tqdm.write(note, file=sys.stderr)
    return folder


def unreachable(repository: str, kind: str, revision: str | None = None) -> Exception | None:
    """Return why the hub cannot be reached for a model or data set, None if it can. Raises the hub's own refusals."""
    from huggingface_hub import HfApi

    bound_waiting()
    try:
        HfApi().repo_info(repository, repo_type=kind, revision=revision)
    except (_http_library().TransportError, ConnectionError) as error:  # offline mode raises the latter
        return error
    return None


def card_licence(repository: str, kind: str, revision: str | None) -> str:
    """Return the licence in the card of a repository, read from the hub's cache if it is there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return licence_of(Path(hf_hub_download(repository, "README.md", repo_type=kind, revision=revision)))
    except RemoteEntryNotFoundError:
        return UNKNOWN_LICENCE


def licence_of(card: Path) -> str:
    """Return the licence in the metadata of a README.md; several are separated by commas. It ends in GATED if the hub
    asks for consent before it gives the files."""
    from huggingface_hub.repocard import metadata_load

    try:
        metadata = metadata_load(card) or {}
    except Exception:  # no such file, or metadata that is not YAML, for which the parser raises anything
        return UNKNOWN_LICENCE
    licence = metadata.get("license")
    if licence == "other":
        licence = metadata.get("license_name") or licence
    names = licence if isinstance(licence, list) else [licence]
    named = ", ".join(str(name) for name in names if name)[:200] or UNKNOWN_LICENCE
    return named + GATED * any(str(field).startswith("extra_gated_") for field in metadata)


def _http_library() -> Any:
    """Return the library that the hub's client sends its requests with: httpx, or its successor under another name."""
    return import_module("huggingface_hub.utils").httpx


def bound_waiting() -> None:
    """Limit every wait of the hub's client, which has calls without a limit, to HF_HUB_DOWNLOAD_TIMEOUT.

    A client that already has a time limit stays as it is.
    """
    from huggingface_hub import constants, get_session, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    limit = constants.HF_HUB_DOWNLOAD_TIMEOUT

    def bound(request: Any) -> None:
        given = request.extensions["timeout"]
        request.extensions["timeout"] = {part: min(limit, value or limit) for part, value in given.items()}

    def bounded_client() -> Any:
        client = default_client_factory()
        client.timeout = limit
        client.event_hooks["request"].append(bound)  # for calls with a limit of their own: none, or a minute
        return client

    if get_session().timeout == _http_library().Timeout(None):
        set_client_factory(bounded_client)


@contextmanager
def hub_errors(what: str, way_out: str) -> Iterator[None]:
    """Turn errors of the hub's clients into one line that begins with `what` and ends with what to do.

    Errors that have nothing to do with the hub pass through.
    """
    try:
        yield
    except CometError:
        raise
    except Exception as error:
        if explained := _explanation(error, way_out):
            raise CometError(f"{what}: {explained}") from error
        raise


def _explanation(error: BaseException, way_out: str) -> str | None:
    """Return what an error of the hub's clients means and what to do, None if it is not one of theirs."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    chain = list(_causes(error))

    def found(*kinds: type[BaseException]) -> Any:
        return next((e for e in chain if isinstance(e, kinds)), None)

    token = "with your token: `hf auth login`, or the variable HF_TOKEN"
    if found(hub.GatedRepoError):
        return f"gated on the hub: request access on its page at {constants.ENDPOINT}, then run again {token}"
    if found(hub.RevisionNotFoundError):
        return "no such revision on the hub"
    answer = found(hub.HfHubHTTPError)
    status = answer.response.status_code if answer is not None else None
    if found(hub.RepositoryNotFoundError) or status == 401:
        return f"not found on the hub; check the name, or for a private one run again {token}"
    if found(hub.OfflineModeIsEnabled) or (constants.HF_HUB_OFFLINE and found(hub.LocalEntryNotFoundError)):
        return (
            "not in the hub's cache on this machine (HF_HOME), and HF_HUB_OFFLINE is set; "
            f"unset it, copy the cache from a machine with network, or {way_out}"
        )
    if status is not None:
        advice = f"run again {token}" if status == 403 else f"try again later, or {way_out}"
        return f"the hub at {constants.ENDPOINT} answers {status}; {advice}"
    if found(_http_library().TimeoutException):
        return (
            f"the hub at {constants.ENDPOINT} does not answer within {constants.HF_HUB_DOWNLOAD_TIMEOUT} s; try again "
            f"later, set HF_HUB_DOWNLOAD_TIMEOUT=60 where the network is slow, or {way_out}"
        )
    if away := found(_http_library().TransportError) or found(ConnectionError, hub.LocalEntryNotFoundError):
        return (
            f"the hub cannot be reached at {constants.ENDPOINT} ({type(away).__name__}); "
            f"try again when the network is up, or {way_out}"
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, then those it was raised from."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop(0)
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            pending += [one.__cause__, one.__context__]
