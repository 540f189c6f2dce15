"""A tokenizer in the files that transformers reads, and so mlx-lm: `tokenizer.json` and `tokenizer_config.json`.

A sentencepiece model of this library (BPE, bytes for what is no piece, text as it stands) is written as a `tokenizers`
model that gives the same ids. Source of the merges: a pair is merged in the order of the scores of the pieces it makes.
"""

import json
from collections.abc import Mapping
from typing import Any

from ..common.errors import PixWordError
from ..inputs.tokenizer import HuggingFaceTokenizer, Tokenizer
from ..model.document import SPECIAL_WORDS

SPACE = "\u2581"  # stands for a space in pieces


def tokenizer_files(tokenizer: Tokenizer, first: int, ids: Mapping[str, int]) -> dict[str, bytes]:
    """The files by name.

    Args:
        tokenizer: of the model.
        first: of our ids that is 0 in the files, where the model's special words are left out.
        ids: as the files count them, of what transformers calls ``bos_token_id``, ``eos_token_id`` and so on.

    Raises:
        PixWordError: the words of the tokenizer's own file are not counted like the model's.
    """
    own = tokenizer.id_of(SPECIAL_WORDS[1]) == 1  # the file has our special words itself
    if own != (first == 0):
        raise PixWordError(
            f"{tokenizer.filename} counts its words from 0 and the model's follow {len(SPECIAL_WORDS)} special ones; "
            "mlx-lm takes words that are counted as in their file, of models that trained their own tokenizer or "
            "started from one of its models (pretrain --language-from)"
        )
    contents = tokenizer.contents if isinstance(tokenizer, HuggingFaceTokenizer) else _as_json(tokenizer.contents)
    words = _words(contents)
    names = {name.removesuffix("_id"): words[number] for name, number in ids.items() if number in words}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names, "clean_up_tokenization_spaces": False}
    return {"tokenizer.json": contents, "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode()}


def _words(contents: bytes) -> dict[int, str]:
    from tokenizers import Tokenizer as Model

    return {number: word for word, number in Model.from_str(contents.decode()).get_vocab().items()}


def _as_json(contents: bytes) -> bytes:
    """A sentencepiece model with our special words as a `tokenizer.json`; texts begin with ``<s>`` there."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, decoders, models, normalizers, processors
    from tokenizers import Tokenizer as Model

    messages: Any = sentencepiece_model_pb2  # made when it is imported, so that no checker knows what it holds
    proto = messages.ModelProto.FromString(contents)
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE or proto.normalizer_spec.name != "identity":
        raise PixWordError(
            "tokenizer.model is not of the kind that this library trains (BPE, text as it stands), and cannot be "
            "written for mlx-lm"
        )
    pieces = proto.pieces
    normal, defined = pieces[0].NORMAL, pieces[0].USER_DEFINED
    ids = {piece.piece: number for number, piece in enumerate(pieces)}
    scores = {piece.piece: piece.score for piece in pieces if piece.type == normal}
    made = Model(models.BPE(vocab=ids, merges=_merges(scores), byte_fallback=True, unk_token=SPECIAL_WORDS[0]))
    made.normalizer = normalizers.Replace(" ", SPACE)
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    made.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in SPECIAL_WORDS])
    made.add_tokens([AddedToken(piece.piece, normalized=False) for piece in pieces if piece.type == defined])
    return str(made.to_str()).encode()


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Pairs of pieces that make another one, those of the highest score first."""
    pairs = [
        (piece[:n], piece[n:])
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for n in range(1, len(piece))
    ]
    return [(left, right) for left, right in pairs if left in scores and right in scores]
