"""The Hugging Face hub, from which models and texts come: how long to wait for it, and what its refusals mean."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from httpx2 import Client, Request
    from huggingface_hub.errors import HfHubHTTPError


@cache
def limit_waiting() -> None:
    """Let the hub's library give up on a hub that never answers: for the list of a repository's files it would not."""
    from huggingface_hub import constants, set_client_factory

    # Private, but a client of one's own would lack the library's own hooks, such as that for offline use.
    from huggingface_hub.utils._http import default_client_factory

    def limit(request: "Request") -> None:
        given = request.extensions["timeout"]
        limits = {kind: seconds or constants.HF_HUB_DOWNLOAD_TIMEOUT for kind, seconds in given.items()}
        request.extensions = {**request.extensions, "timeout": limits}

    def client() -> "Client":
        made: Client = default_client_factory()
        made.event_hooks["request"].append(limit)
        return made

    set_client_factory(client)


def gated(page: str) -> str:
    """The end of a message about a repository, with this path below the hub, whose terms nobody accepted."""
    from huggingface_hub import constants

    where = f"{constants.ENDPOINT}/{page}"
    return f", which is gated: accept its terms at {where} and set HF_TOKEN to a token of the account that did"


def unknown(kind: str) -> str:
    """The end of a message about a repository that the hub does not show, of this kind, such as `model`."""
    from huggingface_hub import constants

    return f": {constants.ENDPOINT} has no such {kind}, or it is private and HF_TOKEN has no token for it"


def answered(error: "HfHubHTTPError", where: str = "") -> str:
    """The end of a message about an answer other than the wanted one; `where` says how far the reading had come."""
    from huggingface_hub import constants

    status = error.response.status_code
    answer = f": {constants.ENDPOINT} answers {status} {error.response.reason_phrase}{where}"
    if status == 401:
        return f"{answer}: it does not know the token in HF_TOKEN (or that of `hf auth login`)"
    return f"{answer}; try again later" if status == 429 or status >= 500 else answer
