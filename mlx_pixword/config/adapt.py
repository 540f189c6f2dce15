"""The settings of a run that starts from a model that is there."""

from dataclasses import dataclass
from typing import Any

from ..common.errors import PixWordError
from ..common.settings import setting, shown

# For some hundreds of pictures: a few minutes on two cores with a model like `tiny`.
FINETUNE: dict[str, Any] = {
    "out": "runs/finetune", "factored_colors": True, "zero_init": False, "optimizer": "muon", "learning_rate": 0.005,
    "muon_learning_rate": 0.01, "weight_decay": 0.0, "warmup": 20, "word_weight": 50.0, "steps": 400,
    "eval_every": 25, "patience": 4, "save_every": 100, "draw_images": 0,
}  # fmt: skip
MOST_BYTES = 100  # of a new word
FINETUNE_LORA = {**FINETUNE, "factored_colors": False, "optimizer": "adamw", "learning_rate": 0.003}


@dataclass(frozen=True)
class AdaptArgs:
    """Starting from a model."""

    init: str | None = setting(
        None, "start from this model: its weights, shape and tokenizer", metavar="DIR_OR_REPO", path=True
    )
    language_from: str | None = setting(
        None,
        "start the language block as this model of mlx-lm: Llama, Mistral, Qwen2, Qwen3, SmolLM",
        metavar="DIR_OR_REPO",
        path=True,
    )
    new_words: str = setting(
        "", "add these words, separated by spaces, to the tokenizer of the model of --init", metavar="WORDS"
    )
    freeze_language: bool = setting(False, "with --language-from: train the image block and the new rows alone")
    lora: int = setting(0, "train adapters of this rank instead of the weights; 0: the weights", metavar="RANK")
    lora_scale: float = setting(20.0, "factor of the adapters' sum")
    lora_layers: int = setting(0, "adapt this many of the language block's last layers; 0 for all")
    lora_dropout: float = setting(0.0, "share of an adapter's inputs that is left out in training")
    lora_image_block: bool = setting(False, "adapt the image block too")
    mask_prompt: bool = setting(False, "learn a document's last text or image alone, not what comes before it")
    patience: int = setting(
        0, "end after this many evaluations without a lower held-out loss, with the best model as final/; 0: never"
    )

    def __post_init__(self) -> None:
        new = self.new_words.split()
        for name in ("lora", "lora_layers", "patience"):
            if not 0 <= getattr(self, name) < 2**31:
                raise PixWordError(f"{name} must be 0 or positive, got {getattr(self, name)}")
        if not 0 < self.lora_scale < float("inf") or not 0 <= self.lora_dropout < 1:
            raise PixWordError(
                "lora_scale must be positive and lora_dropout lie in 0..1, "
                f"got {self.lora_scale} and {self.lora_dropout}"
            )
        if self.init is not None and self.language_from is not None:
            raise PixWordError("init and language_from both say where weights come from; give one of them")
        if self.lora and self.init is None and self.language_from is None:
            raise PixWordError("lora adapts a model that is there: give --init or --language-from DIR_OR_REPO too")
        if not all(word.isprintable() and len(word.encode("utf-8", "replace")) <= MOST_BYTES for word in new):
            raise PixWordError(
                f"new_words can be printed and have at most {MOST_BYTES} bytes each, got {shown(self.new_words)}"
            )
        if new and (self.init is None or self.lora):
            raise PixWordError(
                "new_words gives a model rows that adapters have no place for: give --init (finetune: --model) and no "
                f"--lora, got {shown(self.new_words)}"
            )
        if self.language_from is not None and (self.lora_image_block or (self.lora and self.freeze_language)):
            raise PixWordError("with --language-from the image block is new, and --freeze-language needs no --lora")
        if self.freeze_language and self.language_from is None:
            raise PixWordError("freeze_language keeps a language model as it is: give --language-from DIR_OR_REPO too")
        if not self.lora and (self.lora_image_block or self.lora_layers):
            raise PixWordError("lora_image_block and lora_layers are about adapters: give --lora RANK too")
