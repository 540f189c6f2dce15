"""The settings of the server and of the demo, declared here and nowhere else; light enough for ``--help``."""

from dataclasses import dataclass
from pathlib import Path

from ..common.errors import PixWordError
from ..common.settings import flag, setting


@dataclass(frozen=True)
class _Listens:
    """What both have."""

    model: str = setting(
        "",
        "model folder, or repository on the hub (default: the reader that comes with the library)",
        metavar="DIR_OR_REPO",
        path=True,
    )
    host: str = setting("127.0.0.1", "address to listen on; the default is reached from this machine alone")
    port: int = setting(8080, "port to listen on; 0 for any that is free")
    max_waiting: int = setting(16, "requests that may wait for their turn; more are refused")
    revision: str | None = setting(None, "branch, tag or commit of a hub repository")
    dtype: str | None = setting(
        None, "compute type instead of the model's", choices=("auto", "float32", "bfloat16", "float16")
    )
    adapter_path: Path | None = setting(None, "folder of adapters (LoRA) to use", metavar="DIR")

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise PixWordError(f"--port must lie in 0..65535, got {self.port}")
        if self.max_waiting < 1:
            raise PixWordError(f"--max-waiting must be at least 1, got {self.max_waiting}")

    @property
    def model_name(self) -> str:
        """What the model is called to those who use it."""
        return self.model or "reader"

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if not 0 < getattr(self, name) < float("inf"):
                raise PixWordError(f"{flag(name)} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True)
class ServerArgs(_Listens):
    """Serve a model over HTTP as OpenAI's chat API, with images as data URLs, one request after the other."""

    max_tokens: int = setting(1024, "most words that a request may ask for")
    max_images: int = setting(8, "most images of a request")
    max_megabytes: float = setting(20.0, "largest request, megabytes")
    max_seconds: float = setting(60.0, "longest time from a request to the end of its answer, waiting included")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("max_tokens", "max_images", "max_megabytes", "max_seconds")


@dataclass(frozen=True)
class DemoArgs(_Listens):
    """Open a page that reads, scores, completes and draws pictures with a model; it requests nothing from elsewhere."""

    port: int = setting(7860, "port to listen on; 0 for any that is free")
    max_pixels: int = setting(16384, "most pixels of a drawing, a completion or a heat map")
    max_megabytes: float = setting(20.0, "largest picture, megabytes")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("max_pixels", "max_megabytes")
