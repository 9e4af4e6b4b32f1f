"""Models that score a text against others: encoders of one vector, of many (ColBERT) or of a sparse one, and pairs.

All read rows of texts. ``input_ids`` [B, T] is one text a row, [B, 1 + n, T] a query and its n documents. They give
``embedding`` where a text has one vector, and for lists ``logits`` [B, n]: the score of each document, so that a list
is a classification among its documents. ``score`` compares texts one by one; ``encode`` and ``match`` compare all with
all.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.encoder import bert_config
from limbeck.registry import register

Pooling = Literal["mean", "cls", "last", "max"]
Vectors = tuple[Tensor, ...]
"""What a text is encoded as: one vector [..., D], or one for each token [..., T, D] with the mask [..., T]."""


class Scorer(nn.Module):
    """What the models here share: how rows of texts are read."""

    main_input_name = "input_ids"
    encodes = True
    """Whether texts are encoded alone, so that all can be matched with all."""

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Vectors:
        """What texts [..., T] are compared by."""
        raise NotImplementedError

    def match(self, queries: Vectors, documents: Vectors) -> Tensor:
        """Scores [..., n] of encoded queries [...] and their documents [..., n]; leading axes are broadcast."""
        raise NotImplementedError

    def score(self, query: tuple[Tensor, Tensor], document: tuple[Tensor, Tensor]) -> Tensor:
        """Scores [B] of queries and documents, each ``(input_ids, attention_mask)`` [B, T]."""
        documents = tuple(x[:, None] for x in self.encode(*document))
        return self.match(self.encode(*query), documents)[:, 0]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """``embedding`` of every text, and for lists [B, 1 + n, T] ``logits`` [B, n]."""
        found = self.encode(input_ids, attention_mask)
        named = {"embedding" if len(found) == 1 else "tokens": found[0]}
        if input_ids.dim() == 3 and input_ids.shape[1] > 1:
            named["logits"] = self.match(tuple(x[:, 0] for x in found), tuple(x[:, 1:] for x in found))
        return named


class TextEncoder(Scorer):
    """A transformer, pooled to one vector, with a linear layer on top where the vector is to have another dimension.

    Args:
        backbone: gives ``last_hidden_state`` (and ``hidden_states``) for ids and mask.
        pooling: how the states of a text's tokens become one vector.
        top_layers: the last so many layers are pooled, and put side by side.
        dim: of the vector, by a linear layer; None keeps the pooled one.
        bias: of that layer.
        normalize: scale vectors to length 1.
        similarity: texts are compared by the dot product of their vectors, or by the cosine.
        scale: multiplies it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        pooling: Pooling = "mean",
        top_layers: int = 1,
        dim: int | None = None,
        bias: bool = False,
        normalize: bool = False,
        similarity: Literal["dot", "cosine"] = "dot",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        config: Any = backbone.config
        if not 1 <= top_layers <= config.num_hidden_layers:
            raise UserError(f"text_encoder: top_layers is from 1 to the {config.num_hidden_layers} layers there are")
        self.backbone, self.config = backbone, config
        self.pooling: Pooling = pooling
        self.top_layers, self.normalize = top_layers, normalize
        self.similarity, self.scale = similarity, scale
        width = config.hidden_size * top_layers
        self.dense = nn.Linear(width, dim, bias=bias) if dim is not None else None
        self.dim = dim or width

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Vectors:
        """One vector [..., D] for each text [..., T]."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.states(input_ids.flatten(0, -2), mask.flatten(0, -2))
        pooled = pool(states, mask.flatten(0, -2), self.pooling)
        vectors = pooled if self.dense is None else self.dense(pooled)
        vectors = F.normalize(vectors, dim=-1) if self.normalize else vectors
        return (vectors.view(*input_ids.shape[:-1], -1),)

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The states of the last layers side by side [B, T, width]."""
        if self.top_layers == 1:
            states: Tensor = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return states
        given = self.backbone(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        return torch.cat(given.hidden_states[-self.top_layers :], -1)

    def match(self, queries: Vectors, documents: Vectors) -> Tensor:
        """Scaled dot products or cosines."""
        if self.similarity == "cosine":
            queries, documents = (tuple(F.normalize(x, dim=-1) for x in side) for side in (queries, documents))
        return dots(queries, documents) * self.scale


class SparseEncoder(Scorer):
    """A masked language model whose word scores are a text's weights, ``max_t log(1 + relu(logit_t))`` (SPLADE).

    Formal et al. 2021 (arXiv 2109.10086).
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        config: Any = backbone.config
        self.config = config
        self.dim = int(config.vocab_size)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Vectors:
        """Weights of all words [..., V], not negative, for each text [..., T]."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ids, mask = input_ids.flatten(0, -2), mask.flatten(0, -2)
        logits = self.backbone(input_ids=ids, attention_mask=mask).logits
        weights = torch.log1p(logits.relu()).masked_fill(mask[..., None] == 0, 0.0).amax(1)
        return (weights.view(*input_ids.shape[:-1], -1),)

    def match(self, queries: Vectors, documents: Vectors) -> Tensor:
        """Dot products."""
        return dots(queries, documents)


class LateInteraction(Scorer):
    """ColBERT (Khattab and Zaharia 2020, arXiv 2004.12832): a query's every token is matched to its best in a document.

    Args:
        backbone: a transformer.
        dim: of a token's vector.
    """

    def __init__(self, backbone: nn.Module, *, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        config: Any = backbone.config
        self.config = config
        self.dense = nn.Linear(config.hidden_size, dim, bias=False)
        self.dim = dim

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Vectors:
        """Vectors of length 1 for all tokens [..., T, D], and the mask [..., T]."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.backbone(input_ids=input_ids.flatten(0, -2), attention_mask=mask.flatten(0, -2)).last_hidden_state
        vectors = F.normalize(self.dense(states), dim=-1)
        return vectors.view(*input_ids.shape, self.dim), mask

    def match(self, queries: Vectors, documents: Vectors) -> Tensor:
        """``sum_i max_j q_i . d_j`` over the tokens that are there."""
        (q, q_mask), (d, d_mask) = queries, documents
        alike = torch.einsum("...id,...njd->...nij", q, d).masked_fill(d_mask[..., :, None, :] == 0, -torch.inf)
        return (alike.amax(-1) * q_mask[..., None, :]).sum(-1)


class CrossEncoder(Scorer):
    """A transformer over a query and a document together, with a score (or classes) read from its first token.

    Args:
        backbone: a transformer with two token types and room for both texts.
        classes: of a pair; None for one score.
    """

    def __init__(self, backbone: nn.Module, *, classes: int | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        config: Any = backbone.config
        self.config = config
        self.classes = classes
        self.head = nn.Linear(config.hidden_size, classes or 1)

    encodes = False

    def score(self, query: tuple[Tensor, Tensor], document: tuple[Tensor, Tensor]) -> Tensor:
        """Scores [B] (or [B, classes]) of pairs of texts [B, T]."""
        (q, q_mask), (d, d_mask) = query, document
        types = torch.cat([torch.zeros_like(q), torch.ones_like(d)], -1)
        mask = torch.cat([q_mask, d_mask], -1)
        states = self.backbone(input_ids=torch.cat([q, d], -1), attention_mask=mask, token_type_ids=types)
        logits: Tensor = self.head(pool(states.last_hidden_state, mask, "mean"))
        return logits if self.classes else logits[..., 0]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """``logits`` for rows of texts [B, 1 + n, T]: scores [B, n], or [B, classes] of a pair.

        Raises:
            UserError: a row of one text.
        """
        if input_ids.dim() != 3 or input_ids.shape[1] < 2:
            raise UserError("cross_encoder reads a text together with others: it needs rows of at least 2 texts")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows, n = len(input_ids), input_ids.shape[1] - 1
        query = tuple(x[:, :1].expand(-1, n, -1).flatten(0, 1) for x in (input_ids, mask))
        document = tuple(x[:, 1:].flatten(0, 1) for x in (input_ids, mask))
        found = self.score(query, document).view(rows, n, -1)  # type: ignore[arg-type]
        return {"logits": found.flatten(1) if self.classes is None else found[:, 0]}


class PairEncoder(Scorer):
    """A siamese encoder with a cheap head over two vectors (InferSent's features), for classes of sentence pairs.

    Args:
        encoder: gives one vector per text.
        classes: of a pair; None for one score, the dot product or the head's only output.
        head: ``mlp`` over ``[u; v; |u - v|; u * v]``, or ``dot``.
        hidden: width of the head.
    """

    def __init__(self, encoder: TextEncoder, *, classes: int | None, head: Literal["mlp", "dot"], hidden: int) -> None:
        super().__init__()
        if head == "dot" and classes is not None:
            raise UserError("pair_encoder: the head 'dot' gives one score, and the pairs have classes: use 'mlp'")
        self.encoder, self.classes = encoder, classes
        self.config, self.dim = encoder.config, encoder.dim
        self.head = (
            nn.Sequential(nn.Linear(4 * encoder.dim, hidden), nn.ReLU(), nn.Linear(hidden, classes or 1))
            if head == "mlp"
            else None
        )

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Vectors:
        """One vector [..., D] for each text."""
        return self.encoder.encode(input_ids, attention_mask)

    def match(self, queries: Vectors, documents: Vectors) -> Tensor:
        """Scores [..., n], or logits [..., n, classes]."""
        if self.head is None:
            return self.encoder.match(queries, documents)
        u, v = torch.broadcast_tensors(queries[0][..., None, :], documents[0])
        found: Tensor = self.head(torch.cat([u, v, (u - v).abs(), u * v], -1))
        return found if self.classes else found[..., 0]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """``embedding``, and ``logits`` [B, classes] for pairs [B, 2, T]."""
        found = super().forward(input_ids, attention_mask)
        if self.classes and "logits" in found:
            found["logits"] = found["logits"][:, 0]
        return found


def pool(states: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """States [B, T, D] of the tokens that the mask [B, T] keeps, as one vector [B, D]."""
    kept = mask[..., None].to(states.dtype)
    if how == "mean":
        return (states * kept).sum(1) / kept.sum(1).clamp(min=1)
    if how == "max":
        return states.masked_fill(kept == 0, -torch.inf).amax(1)
    places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    chosen = places.masked_fill(mask == 0, mask.shape[1]).amin(1) if how == "cls" else (places * mask).amax(1)
    return states[torch.arange(len(states), device=states.device), chosen.clamp(max=mask.shape[1] - 1)]


def dots(queries: Vectors, documents: Vectors) -> Tensor:
    """Dot products of vectors [..., D] with [..., n, D], [..., n]."""
    return torch.einsum("...d,...nd->...n", queries[0], documents[0])


# ---------------------------------------------------------------------------------------------------------------------
# What recipes name


def bert(
    kind: str,
    hidden: int,
    layers: int,
    heads: int,
    vocab_size: int,
    positions: int,
    dropout: float,
    attention: str,
    data: Any = None,
) -> nn.Module:
    """A transformers BERT of these sizes with fresh weights; ``kind`` is ``BertModel`` or ``BertForMaskedLM``.

    Raises:
        UserError: sizes that do not go together, or transformers is missing.
    """
    tokens = getattr(getattr(data, "spec", None), "vocab_size", None) or 0
    if hidden % heads or vocab_size < tokens:
        says = f"hidden {hidden} and {heads} heads, vocab_size {vocab_size} and {tokens} tokens of the data"
        raise UserError(f"these sizes do not go together: {says}")
    words = getattr(data, "extra", {}).get("tokenizer")
    # The padding's table entry takes no gradient; the mask alone says what is padding.
    pad = getattr(words, "pad_token_id", None)
    config = bert_config(hidden, layers, heads, vocab_size, positions, dropout, attention, pad_token_id=pad)
    import transformers

    if kind == "BertForMaskedLM":
        return transformers.BertForMaskedLM(config)
    return transformers.BertModel(config, add_pooling_layer=False)


@register("model", gives={"embedding", "logits"})
def text_encoder(
    *,
    hidden: int,
    layers: int,
    heads: int,
    vocab_size: int,
    context: int,
    pooling: Literal["mean", "cls", "last", "max"] = "mean",
    top_layers: int = 1,
    dim: int | None = None,
    bias: bool = False,
    normalize: bool = False,
    similarity: Literal["dot", "cosine"] = "dot",
    scale: float = 1.0,
    dropout: float = 0.0,
    attention: Literal["sdpa", "eager"] = "sdpa",
    data: Any = None,
) -> TextEncoder:
    """A BERT with fresh weights that gives each text one vector, by which lists are scored.

    Args:
        hidden: width; a multiple of ``heads``.
        layers: number of blocks.
        heads: attention heads.
        vocab_size: rows of the embedding.
        context: longest text, in tokens.
        pooling: how the states of a text's tokens become one vector.
        top_layers: pool the last so many layers and put them side by side.
        dim: of the vector, by a linear layer that is kept; by default the pooled vector's own.
        bias: of that layer.
        normalize: scale vectors to length 1.
        similarity: texts are compared by the dot product of their vectors, or by the cosine.
        scale: multiplies it; the inverse of a temperature where lists are learnt by a softmax.
        dropout: on embeddings, residuals and attention.
        attention: implementation of attention.
        data: the built data; gives the padding token.
    """
    backbone = bert("BertModel", hidden, layers, heads, vocab_size, context, dropout, attention, data)
    return TextEncoder(
        backbone, pooling=pooling, top_layers=top_layers, dim=dim, bias=bias, normalize=normalize,
        similarity=similarity, scale=scale,
    )  # fmt: skip


@register("model", gives={"embedding", "logits"})
def sparse_encoder(
    *,
    hidden: int,
    layers: int,
    heads: int,
    vocab_size: int,
    context: int,
    dropout: float = 0.0,
    data: Any = None,
) -> SparseEncoder:
    """A masked language model with fresh weights as a sparse retriever (SPLADE): one weight per word.

    Args:
        hidden: width; a multiple of ``heads``.
        layers: number of blocks.
        heads: attention heads.
        vocab_size: rows of the embedding, and dimension of the vectors.
        context: longest text, in tokens.
        dropout: on embeddings, residuals and attention.
        data: the built data; gives the padding token.
    """
    return SparseEncoder(bert("BertForMaskedLM", hidden, layers, heads, vocab_size, context, dropout, "sdpa", data))


@register("model", gives={"logits"})
def late_interaction(
    *,
    hidden: int,
    layers: int,
    heads: int,
    vocab_size: int,
    context: int,
    dim: int = 16,
    dropout: float = 0.0,
    data: Any = None,
) -> LateInteraction:
    """A BERT with fresh weights whose token vectors are matched one by one (ColBERT).

    Args:
        hidden: width; a multiple of ``heads``.
        layers: number of blocks.
        heads: attention heads.
        vocab_size: rows of the embedding.
        context: longest text, in tokens.
        dim: of a token's vector.
        dropout: on embeddings, residuals and attention.
        data: the built data; gives the padding token.
    """
    return LateInteraction(
        bert("BertModel", hidden, layers, heads, vocab_size, context, dropout, "sdpa", data), dim=dim
    )


@register("model", gives={"logits"})
def cross_encoder(
    *,
    hidden: int,
    layers: int,
    heads: int,
    vocab_size: int,
    context: int,
    classes: int | None = None,
    dropout: float = 0.0,
    data: Any = None,
) -> CrossEncoder:
    """A BERT with fresh weights that reads a query and a document together.

    Args:
        hidden: width; a multiple of ``heads``.
        layers: number of blocks.
        heads: attention heads.
        vocab_size: rows of the embedding.
        context: longest text, in tokens; a pair is twice as long.
        classes: of a pair; None for one score.
        dropout: on embeddings, residuals and attention.
        data: the built data; gives the padding token.
    """
    backbone = bert("BertModel", hidden, layers, heads, vocab_size, 2 * context, dropout, "sdpa", data)
    return CrossEncoder(backbone, classes=classes)


@register("model", gives={"embedding", "logits"})
def pair_encoder(
    *,
    hidden: int,
    layers: int,
    heads: int,
    vocab_size: int,
    context: int,
    pooling: Literal["mean", "cls", "last", "max"] = "mean",
    top_layers: int = 1,
    classes: int | None = None,
    head: Literal["mlp", "dot"] = "mlp",
    head_hidden: int = 512,
    dropout: float = 0.0,
    data: Any = None,
) -> PairEncoder:
    """One encoder for both sentences of a pair and a cheap head over their vectors (siamese).

    Args:
        hidden: width; a multiple of ``heads``.
        layers: number of blocks.
        heads: attention heads.
        vocab_size: rows of the embedding.
        context: longest text, in tokens.
        pooling: how the states of a text's tokens become one vector.
        top_layers: pool the last so many layers and put them side by side.
        classes: of a pair; None for one score.
        head: ``mlp`` over ``[u; v; |u - v|; u * v]``, or ``dot``, which an index of vectors can search by.
        head_hidden: width of the ``mlp``.
        dropout: on embeddings, residuals and attention.
        data: the built data; gives the padding token.
    """
    backbone = bert("BertModel", hidden, layers, heads, vocab_size, context, dropout, "sdpa", data)
    encoder = TextEncoder(backbone, pooling=pooling, top_layers=top_layers)
    return PairEncoder(encoder, classes=classes if head == "mlp" else None, head=head, hidden=head_hidden)
