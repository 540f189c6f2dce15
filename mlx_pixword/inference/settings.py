"""The settings of sampling, light enough for a command line's `--help`; the samplers themselves are mlx-lm's."""

from dataclasses import dataclass

from ..common.errors import PixWordError
from ..common.settings import setting


@dataclass(frozen=True)
class SampleArgs:
    """Sampling."""

    max_tokens: int = setting(64, "most words to generate")
    temp: float | None = setting(None, "temperature, 0 for the likeliest (default 0 for words, 1 for pixels)")
    top_p: float = setting(1.0, "sample from the likeliest words that hold this probability together")
    top_k: int = setting(0, "sample from this many likeliest words; 0 for all")
    min_p: float = setting(0.0, "leave out words below this fraction of the likeliest one's probability")
    repetition_penalty: float = setting(1.0, "above 1, words of the last 20 become less likely")
    seed: int = setting(0, "seed of the sampling")

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise PixWordError(f"--max-tokens must be at least 1, got {self.max_tokens}")
        if not 0 <= self.temperature(0.0) < float("inf"):
            raise PixWordError(f"--temp must be 0 or positive, got {self.temp}")
        if not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise PixWordError(f"--top-p must lie in (0, 1] and --min-p in 0..1, got {self.top_p} and {self.min_p}")
        if self.top_k < 0 or self.seed < 0 or not 0 < self.repetition_penalty < float("inf"):
            raise PixWordError(
                "--top-k and --seed must not be negative and --repetition-penalty must be positive, "
                f"got {self.top_k}, {self.seed} and {self.repetition_penalty}"
            )

    def temperature(self, default: float) -> float:
        """The temperature asked for, or ``default``."""
        return default if self.temp is None else self.temp
