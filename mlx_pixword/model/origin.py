"""What a model remembers of the language model that its language block started from."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from ..common.errors import PixWordError
from ..common.settings import shown

KEY = "_language_model"  # in config.json


@dataclass(frozen=True)
class Origin:
    """Where its words begin behind the special ones, and ids of its own special words, as it counts them."""

    word_offset: int
    pad_token_id: int | None = None
    unk_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Origin | None":
        """Read `config.json`; raises `PixWordError` for what are no ids."""
        values = config.get(KEY)
        if values is None:
            return None
        known = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or not set(values) <= known or "word_offset" not in values:
            raise PixWordError(f"config.json: {KEY} must hold word_offset and ids, got {shown(values)}")
        if any(type(value) is not int or value < 0 for value in values.values()):
            raise PixWordError(f"config.json: {KEY} must hold ids of words, got {shown(values)}")
        return cls(**values)

    def to_dict(self) -> dict[str, int]:
        """What `config.json` keeps."""
        return {name: value for name, value in asdict(self).items() if value is not None}
