"""AutoDistil: one super-network whose subnets of many sizes all relate words as a layer of the teacher does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.language.encoders import EncoderMethod, positions_term, sizes
from limbeck.language.initialise import copy_layers, every
from limbeck.language.subnets import Relations, Space, Subnets, space_of
from limbeck.language.supernet import Architecture
from limbeck.registry import register


@register("method")
class AutoDistil(EncoderMethod):
    """AutoDistil (Xu et al. 2022, arXiv 2201.12507): MiniLMv2's relations, for a subnet drawn anew at each step.

    The student is the super-network; a subnet has its first heads, the first rows and columns of its matrices and some
    of its layers. The loss is the KL of ``softmax(X X^T / sqrt(d_r))`` for the last layer's queries, keys and values,
    split into relation heads that all widths share (2012.15828); no labels. The stage ``search_subnet`` then chooses a
    subnet under a limit. To split a large space by size, as the paper does, train one super-network for each part: a
    recipe or an arm with its own student and choices, and search the one whose sizes the limit asks for.

    Args:
        layers: numbers of layers to choose from; by default from half of the student's up.
        heads: numbers of heads, by default likewise; a subnet is as wide as its heads.
        ratios: neurons of the feed-forward layers by the subnet's width; by default half, three quarters and all of
            the student's.
        choose: a shallower subnet has the ``first`` layers, or ``even``ly spread ones with the last among them.
        sampling: one subnet a step, all equally likely (``uniform``), or the mean loss of that, the largest and the
            smallest one (``sandwich``).
        teacher_layer: whose relations are learnt, counted from 0, negative ones from the end.
        relation_heads: by default the teacher's heads; they must share the width of every subnet.
        from_teacher: the largest subnet begins with the teacher's weights; needs a student of its width, no deeper.
    """

    needs = {"teacher": {"hidden_states"}}
    live = True

    def __init__(
        self,
        *,
        layers: list[int] | None = None,
        heads: list[int] | None = None,
        ratios: list[float] | None = None,
        choose: Literal["first", "even"] = "first",
        sampling: Literal["uniform", "sandwich"] = "uniform",
        teacher_layer: int = -1,
        relation_heads: int | None = None,
        from_teacher: bool = True,
    ) -> None:
        self.layers = layers
        self.heads = heads
        self.ratios = ratios
        self.choose = choose
        self.sampling = sampling
        self.teacher_layer = teacher_layer
        self.relation_heads = relation_heads
        self.from_teacher = from_teacher

    def setup(self, parts: Parts) -> None:
        """Settle the space, tap the teacher, and begin with its weights.

        Raises:
            UserError: a choice that the student is too small for, heads that do not share a width, or a student that
                cannot begin with the teacher's weights.
        """
        super().setup(parts)
        self.space = self.space_in(parts.student)
        self.relations = Relations(self.teacher, self.teacher_layer, self.relation_heads)
        self.relations.check(self.space)
        self._architectures = self.space.architectures
        self._subnets = Subnets()
        if self.from_teacher:
            (own, layers, _), (width, theirs, _) = sizes(parts.student), sizes(self.teacher.module)
            if own != width:
                says = f"the student is {own} wide and the teacher {width}"
                raise UserError(f"autodistil: {says}: make them alike, or set from_teacher false")
            copy_layers(parts.student, self.teacher.module, every(layers, theirs))

    def space_in(self, network: torch.nn.Module) -> Space:
        """The space of a super-network by the method's choices."""
        return space_of(network, layers=self.layers, heads=self.heads, ratios=self.ratios, choose=self.choose)

    def says(self) -> Sequence[str]:
        """How many subnets there are."""
        return [f"a super-network of {len(self._architectures)} subnets"]

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the super-network."""
        yield Update("student", self.subnet_terms(batch, self.drawn(clock)))

    def drawn(self, clock: Clock) -> dict[str, Architecture]:
        """The subnets of a step by name; the same for every piece of its batch, and after a resume."""
        known = self._architectures
        draw = clock.uniform(torch.zeros(1, dtype=torch.int64), (1,), "architecture")
        found = {"": known[int(draw * len(known))]}
        return found | {"_largest": known[-1], "_smallest": known[0]} if self.sampling == "sandwich" else found

    def subnet_terms(self, batch: Batch, subnets: dict[str, Architecture]) -> dict[str, Term]:
        """The terms ``queries``, ``keys`` and ``values`` of each subnet, whose mean is the loss."""
        theirs = self.relations.of_teacher(batch)
        terms = {}
        for name, own in zip(subnets, self._subnets(self.student, list(subnets.values()), batch), strict=True):
            for part, values in self.relations.apart(own, theirs, batch["attention_mask"]).items():
                terms[part + name] = positions_term(values, batch, 1 / len(subnets))
        return terms
