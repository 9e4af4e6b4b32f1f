"""A small encoder of text that can fill in hidden words, and say of a text what it asks for and which words say it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.encoder import encoder
from limbeck.registry import Block, register


@register("model", gives={"logits", "slot_logits", "hidden_states"})
def tagger(
    *,
    hidden: int,
    layers: int,
    heads: int,
    vocab_size: int,
    context: int,
    ffn: int | None = None,
    dropout: float = 0.0,
    classes: int | None = None,
    slots: int | None = None,
    data: Any = None,
) -> nn.Module:
    """A transformers BERT of a masked language model, with a head for a text's class and one for each token's mark.

    Args:
        hidden, layers, heads, vocab_size, context, ffn, dropout: as in model ``encoder``.
        classes: of texts.
        slots: marks of a token; by default as many as the data has.
        data: the built data; gives the marks and the ids of special tokens.

    Raises:
        UserError: nothing says how many classes or marks there are, or the sizes do not go together.
    """
    marks = slots or len(getattr(data, "extra", {}).get("slots", ()))
    if not classes or not marks:
        raise UserError("tagger: the data has no classes or no slots; take data 'commands', or give classes and slots")
    sizes: dict[str, Any] = {"hidden": hidden, "layers": layers, "heads": heads, "ffn": ffn, "dropout": dropout}
    inner = encoder(**sizes, vocab_size=vocab_size, context=context, task="masked_lm", data=data)
    made = Tagger(inner, classes, marks)
    made.portable = Block(
        "tagger", {**sizes, "vocab_size": vocab_size, "context": context, "classes": classes, "slots": marks}
    )
    return made


class Tagger(nn.Module):
    """Heads on a transformers masked language model.

    Attributes:
        portable: the block that builds it without its data; None where it was built by hand.

    Args:
        encoder: the language model.
        classes: of texts.
        slots: marks of a token.
    """

    def __init__(self, encoder: Any, classes: int, slots: int) -> None:
        super().__init__()
        self.portable: Block | None = None
        self.encoder, self.config = encoder, encoder.config
        self.intent, self.slot = (nn.Linear(self.config.hidden_size, count) for count in (classes, slots))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        words: bool = False,
        output_hidden_states: bool = False,
    ) -> dict[str, Tensor]:
        """``logits`` [B, classes] and ``slot_logits`` [B, T, slots]; or those of the words, [B, T, V]."""
        given: dict[str, Any] = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        if words:
            return dict(self.encoder(input_ids, output_hidden_states=output_hidden_states, **given))
        found = self.encoder.base_model(input_ids, output_hidden_states=output_hidden_states, **given)
        states = found.last_hidden_state
        made = {"logits": self.intent(states[:, 0]), "slot_logits": self.slot(states)}
        return made | ({"hidden_states": found.hidden_states} if output_hidden_states else {})
