"""Sharing a model: a folder with its card, and an upload to the Hugging Face hub.

Only weights, tokenizer, `config.json`, the card and its pictures are written and sent. The protocol is
huggingface_hub's; ``HF_ENDPOINT`` and ``HF_TOKEN`` are its own variables.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import PixWordError
from ..inputs.processor import Processor
from ..model.network import PixWordModel, num_parameters
from . import quantized
from .directory import save_model

LIBRARY = "mlx-pixword"
TAGS = ("mlx", "pixword", "ocr", "image-generation")
PATTERNS = ("*.json", "*.safetensors", "tokenizer.model", "README.md", "samples/*.png")


@dataclass(frozen=True)
class Card:
    """What a model card says besides what follows from the model.

    Attributes:
        data: what the model was trained on, a few words or sentences.
        license: an identifier of the hub, such as mit or apache-2.0, or "" if it is not said.
        scores: what `evaluate` prints as JSON.
        scored_on: the data of the scores.
        pictures: PNG files to show, by title.
        base_model: the repository that the model was made from.
    """

    data: str = ""
    license: str = ""
    scores: Mapping[str, Any] | None = None
    scored_on: str = ""
    pictures: Mapping[str, bytes] | None = None
    base_model: str = ""


def save_pretrained(
    model: PixWordModel, processor: Processor, directory: str | Path, card: Card | None = None, *, repo: str = ""
) -> Path:
    """Write a model directory with a model card, ready to be shared.

    Args:
        model, processor: from `pw.load`.
        directory: must not exist or be empty.
        card: what is known of the model's data and quality.
        repo: where the card's commands load it from; the directory by default.

    Example:
        >>> pw.save_pretrained(model, processor, "my-model", pw.Card(data="number plates", license="mit"))
    """
    card, directory = card or Card(), Path(directory)
    pictures = {f"samples/{n}.png": content for n, content in enumerate((card.pictures or {}).values())}
    text = card_text(model, processor, repo or directory.name, card)
    return save_model(model, processor.tokenizer, directory, {"README.md": text.encode(), **pictures})


def push_to_hub(
    model: PixWordModel, processor: Processor, repo: str, card: Card | None = None, *, private: bool = False,
    revision: str | None = None, token: str | None = None,
) -> str:  # fmt: skip
    """Upload a model with its card; the repository is made if need be.

    Args:
        repo: ``owner/name``.
        private: of a new repository.
        revision: a branch instead of main.
        token: with the right to write; by default that of ``HF_TOKEN`` or of ``hf auth login``.

    Returns:
        The address of the commit.

    Raises:
        PixWordError: no token, a name that is none, or what the hub answered.
    """
    check_repo(repo, token)
    with tempfile.TemporaryDirectory() as folder:
        return upload_folder(save_pretrained(model, processor, Path(folder) / "model", card, repo=repo), repo,
                             private=private, revision=revision, token=token)  # fmt: skip


def check_repo(repo: str, token: str | None = None) -> None:
    """Find the mistakes that need no connection."""
    import huggingface_hub
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    owner, _, name = repo.partition("/")
    if not owner or not name or "/" in name:
        raise PixWordError(f"a repository is owner/name, got {repo}")
    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise PixWordError(f"{repo} is no name of a repository: {_first_line(error)}") from error
    if not (token or huggingface_hub.get_token()):
        raise PixWordError(f"no token to upload to {repo}: set HF_TOKEN, or log in once with `hf auth login`")


def upload_folder(
    folder: Path, repo: str, *, private: bool = False, revision: str | None = None, token: str | None = None
) -> str:
    """Upload a model directory; see `push_to_hub`."""
    import huggingface_hub

    api = huggingface_hub.HfApi(token=token, library_name=LIBRARY)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder, repo_id=repo, revision=revision, allow_patterns=list(PATTERNS),
            commit_message=f"Upload by {LIBRARY}",
        )  # fmt: skip
    except (huggingface_hub.errors.HfHubHTTPError, OSError, ValueError) as error:
        raise PixWordError(f"the upload to {repo} failed: {_first_line(error)}") from error
    return str(commit.commit_url)


def card_text(model: PixWordModel, processor: Processor, repo: str, card: Card) -> str:
    """The model card: metadata as the hub has it, then Markdown."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult("image-to-text", "custom", card.scored_on or "held-out images", name, value, task_name="Reading")
        for name, value in (card.scores or {}).items()
        if name in ("exact_match", "cer") and value is not None
    ]
    data = ModelCardData(
        library_name=LIBRARY, tags=[*TAGS], license=card.license or None, pipeline_tag="image-to-text",
        base_model=card.base_model or None, model_name=repo.rsplit("/", 1)[-1] if results else None,
        eval_results=results or None, ignore_metadata_errors=True,
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(_paragraphs(model, processor, repo, card)) + "\n"


def _paragraphs(model: PixWordModel, processor: Processor, repo: str, card: Card) -> Sequence[str]:
    a, how = model.args, quantized.quantization_of(model)
    bits = f"{how['bits']}-bit projections" if how else f"{num_parameters(model) / 1e6:.2f}M parameters"
    words = f"{a.vocab_size:,} words" if processor.tokenizer else "no words"
    lines = [
        f"# {repo}", "",
        f"A model that reads and writes pixels and words (arXiv 2605.14028), for {LIBRARY} on MLX: {bits}, {words}, "
        f"{a.num_pix:,} colours, images up to {a.image_size} pixels.", "",
        "```bash", f"pip install {LIBRARY}",
        f"python -m mlx_pixword.generate --model {repo} --image picture.png", "```", "",
        "```python", "import mlx_pixword as pw", f'model, processor = pw.load("{repo}")', "```", "",
    ]  # fmt: skip
    lines += ["## Data", "", card.data or "Not said.", ""]
    if card.scores:
        on = f" on {card.scored_on}" if card.scored_on else ""
        lines += ["## Figures", "", f"By `python -m mlx_pixword.evaluate`{on}:", "", "| figure | value |", "|---|---|"]
        lines += [f"| {name} | {_figure(value)} |" for name, value in card.scores.items()] + [""]
    if card.pictures:
        lines += ["## Samples", ""]
        for n, title in enumerate(card.pictures):
            lines += [f"![{title}](samples/{n}.png)", "", f"*{title}*", ""]
    return [*lines, "## Licence", "", card.license or "Not said."]


def _figure(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(_figure, value))
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
