"""Tokenizers: made from text (characters or byte-pair encoding), loaded from a folder, compared by content.

Every tokenizer here is a real ``transformers.PreTrainedTokenizerFast``, so a student can be saved with it and load in
plain transformers.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from limbeck.errors import UserError, needs_extra

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
CLS, SEP, MASK = "<cls>", "<sep>", "<mask>"
BYTES = 256
PIECE = 4096
"""Characters that are encoded at once where a text may be cut anywhere."""


def _text_extra() -> tuple[Any, Any]:
    try:
        import tokenizers
        import transformers
    except ImportError as error:
        raise needs_extra(error.name or "transformers", "text") from error
    return tokenizers, transformers


def char_tokenizer(texts: Iterable[str]) -> Any:
    """A tokenizer with one token per character that occurs in ``texts``; decoding gives the text back exactly.

    The vocabulary is ``<pad> <eos> <unk>`` and the characters in code-point order, so it depends on their set alone.
    """
    tokenizers, _ = _text_extra()
    characters = sorted(set().union(*texts))
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, UNK, *characters])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=UNK))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    return _fast(backend, unk_token=UNK)


def symbol_tokenizer(symbols: str, end: str) -> Any:
    """A tokenizer of these characters and nothing else, in this order; ``end``, one of them, ends a text and pads."""
    tokenizers, transformers = _text_extra()
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=end))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, pad_token=end, unk_token=end, clean_up_tokenization_spaces=False
    )


def known_words(words: Iterable[str]) -> Any:
    """A tokenizer with one token per word, for texts whose words are known and stand between spaces."""
    tokenizers, _ = _text_extra()
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, UNK, *sorted(set(words))])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=UNK))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return _fast(backend, unk_token=UNK)


def bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer of at most ``vocab_size`` tokens learnt from ``texts``; it knows every character.

    Raises:
        UserError: ``vocab_size`` leaves no room for the 256 bytes and the special tokens.
    """
    tokenizers, _ = _text_extra()
    if vocab_size < BYTES + 2:
        raise UserError(f"a BPE vocabulary needs at least {BYTES + 2} tokens ({BYTES} bytes, {PAD}, {EOS})")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _fast(backend)


def word_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A tokenizer of lower-case words and punctuation marks: the ``vocab_size`` most frequent, the rest are ``<unk>``.

    Raises:
        UserError: ``vocab_size`` leaves no room for a word.
    """
    tokenizers, _ = _text_extra()
    if vocab_size < 4:
        raise UserError(f"a vocabulary of words needs at least 4 tokens ({PAD}, {EOS}, {UNK}, a word)")
    normalizer, cut = tokenizers.normalizers.Lowercase(), tokenizers.pre_tokenizers.Whitespace()
    counts = Counter(word for text in texts for word, _ in cut.pre_tokenize_str(normalizer.normalize_str(text)))
    # Frequent words first, equally frequent ones in order of the alphabet: the same on every machine.
    kept = sorted(counts, key=lambda word: (-counts[word], word))[: vocab_size - 3]
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, UNK, *kept])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=UNK))
    backend.normalizer, backend.pre_tokenizer = normalizer, cut
    return _fast(backend, unk_token=UNK)


def with_marks(tokenizer: Any) -> Any:
    """The tokenizer with the marks of an encoder (beginning, separator, mask), added where it has none."""
    marks = {"cls_token": CLS, "sep_token": SEP, "mask_token": MASK, "pad_token": PAD}
    missing = {name: mark for name, mark in marks.items() if getattr(tokenizer, name) is None}
    tokenizer.add_special_tokens(missing)
    return tokenizer


def marked(tokenizer: Any) -> Any:
    """The tokenizer, now putting its end-of-text mark before and after each text (where special tokens are asked for).

    What is saved with it does so, too.
    """
    tokenizers, _ = _text_extra()
    mark = (tokenizer.eos_token, end_of_text(tokenizer))
    template = f"{mark[0]} $A {mark[0]}"
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=template, special_tokens=[mark]
    )
    return tokenizer


def _fast(backend: Any, **special: str) -> Any:
    _, transformers = _text_extra()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False, **special
    )


def load_tokenizer(path: Path) -> Any:
    """The fast tokenizer saved in a folder (with ``tokenizer.json``), or in a ``tokenizer.json`` itself.

    Raises:
        UserError: there is none; slow tokenizers are refused because some of them unpickle their files.
    """
    _, transformers = _text_extra()
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"no tokenizer at {path}: expected a folder with tokenizer.json, or that file")
    try:
        if path.is_dir():
            words = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        else:
            words = transformers.PreTrainedTokenizerFast(tokenizer_file=str(file))
    except Exception as error:  # the backend raises bare Exception for a malformed file
        raise UserError(f"cannot read the tokenizer at {path}: {_first_line(error)}") from error
    # Some are saved with a length limit or padding of their own, which would cut texts without a word.
    words.backend_tokenizer.no_truncation()
    words.backend_tokenizer.no_padding()
    return words


def tokenizer_hash(tokenizer: Any) -> str:
    """Content hash of the map from token to id: equal for two tokenizers whose logits mean the same."""
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0]))
    return hashlib.blake2b(json.dumps(pairs).encode(), digest_size=8).hexdigest()


def encode(tokenizer: Any, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
    """Token ids of each text; ``special`` adds what the tokenizer puts around a text (often nothing)."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=special)
    return [encoding.ids for encoding in encodings]


def encode_long(tokenizer: Any, text: str) -> list[int]:
    """Token ids of one long text."""
    if not _per_character(tokenizer):
        return encode(tokenizer, [text])[0]
    # One token per character: cutting changes nothing, and pieces are encoded in parallel.
    pieces = encode(tokenizer, [text[i : i + PIECE] for i in range(0, len(text), PIECE)])
    return [i for piece in pieces for i in piece]


def _per_character(tokenizer: Any) -> bool:
    is_map = type(tokenizer.backend_tokenizer.model).__name__ == "WordLevel"
    return is_map and all(len(t) == 1 for t in tokenizer.get_vocab() if t not in tokenizer.all_special_tokens)


def end_of_text(tokenizer: Any) -> int:
    """The id that ends a document.

    Raises:
        UserError: the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-text token (eos_token); add one to its tokenizer_config.json")
    return int(tokenizer.eos_token_id)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
