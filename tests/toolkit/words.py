"""Tokenizers of every kind, made from a little text, and text that is hard on them."""

from __future__ import annotations

from functools import cache
from typing import Any

import tokenizers as hf
from transformers import PreTrainedTokenizerFast

from limbeck.data.tokenizer import bpe_tokenizer, char_tokenizer

HARD = [
    "the cat sat on the mat, the cat sat",
    "  two  spaces\tand\ttabs\r\nwindows\nlines \n",
    "naïve café, and nai\u0308ve cafe\u0301 with combining marks; a\u0301\u0323\u0308 stacked",
    "👩\u200d👩\u200d👧\u200d👦 family, 👍🏽 skin, 🇩🇪 flag, ❤\ufe0f heart",
    "漢字かな交じり文、中文。한국어",
    "שלום עליכם \u202bright to left\u202c مرحبا بالعالم",
    "control \x00\x01\x1f\x7f\x85 and \u2028 lines \ufeff marks",
    "ﬁ ligature, ①, Ⅳ, ｆｕｌｌ ｗｉｄｔｈ, ﷺ, ſ, İstanbul, ẞ",
    "literal ▁ and Ġ and ## and <0x41> and </s> and <eos> and �",
    "𝒳𝔘 beyond the plane, \U0010ffff the last \ue000 private",
]
"""Combining marks, joined emoji, CJK, right to left, control characters, compatibility forms, look-alike marks."""

PIECES = [
    *"aetc T.,\n\r\t \x00\u0301\u0308\u200d\u202e漢字שل👩🏽ﬁİ①▁Ġ",
    "the",
    " cat",
    "##s",
    "\r\n",
    "<0x41>",
    "👩\u200d👧",
    "🇩🇪",
]
"""What generated text is made of."""


def fast(backend: hf.Tokenizer, **special: str) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)


@cache
def words(kind: str) -> Any:
    """A tokenizer by name."""
    return _MAKERS[kind]()


def _char() -> Any:
    return char_tokenizer([*HARD, *PIECES])


def _byte_bpe() -> Any:
    return bpe_tokenizer(HARD * 2, 400)


def _prefix_bpe() -> Any:
    """Byte-level, with a space put before every text."""
    backend = hf.Tokenizer(hf.models.BPE())
    backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = hf.decoders.ByteLevel()
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(HARD, trainer)
    backend.post_processor = hf.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return fast(backend, bos_token="<s>", eos_token="</s>")


def _metaspace() -> Any:
    """As Llama's: spaces are written, a space goes first, unknown characters are spelt in bytes."""
    vocabulary = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))])}
    for token in [*"▁aetchmsn.,", "th", "the", "▁the", "▁c", "at", "▁cat"]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "c"), ("a", "t"), ("▁c", "at")]
    backend = hf.Tokenizer(hf.models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = hf.normalizers.Sequence([hf.normalizers.Prepend("▁"), hf.normalizers.Replace(" ", "▁")])
    backend.decoder = hf.decoders.Sequence([
        hf.decoders.Replace("▁", " "), hf.decoders.ByteFallback(), hf.decoders.Fuse(), hf.decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    backend.post_processor = hf.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return fast(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _unigram() -> Any:
    """As T5's: compatibility forms are folded before it looks."""
    backend = hf.Tokenizer(hf.models.Unigram())
    backend.normalizer = hf.normalizers.NFKC()
    backend.pre_tokenizer = hf.pre_tokenizers.Metaspace()
    backend.decoder = hf.decoders.Metaspace()
    trainer = hf.trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(HARD[:6], trainer)
    return fast(backend, unk_token="<unk>", eos_token="</s>")


def _wordpiece() -> Any:
    """As BERT's: lower-cased, without accents, and silent about spaces."""
    backend = hf.Tokenizer(hf.models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = hf.normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    backend.decoder = hf.decoders.WordPiece()
    trainer = hf.trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    backend.train_from_iterator(HARD, trainer)
    return fast(backend, unk_token="[UNK]", sep_token="[SEP]", eos_token="[SEP]")


def _nfc_bpe() -> Any:
    """As Qwen's: byte-level, after composing characters."""
    backend = hf.Tokenizer.from_str(_byte_bpe().backend_tokenizer.to_str())
    backend.normalizer = hf.normalizers.NFC()
    return fast(backend, eos_token="<eos>", pad_token="<pad>")


_MAKERS = {
    "char": _char,
    "byte_bpe": _byte_bpe,
    "prefix_bpe": _prefix_bpe,
    "metaspace": _metaspace,
    "unigram": _unigram,
    "wordpiece": _wordpiece,
    "nfc_bpe": _nfc_bpe,
}
LOSSLESS = ["char", "byte_bpe", "prefix_bpe", "metaspace"]
KINDS = list(_MAKERS)
