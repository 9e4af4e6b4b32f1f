"""A causal language model's last hidden states and its output layer, without the logits of all positions.

The model is called as it is, through all its wrappers, and asked for the logits of one position alone
(``logits_to_keep``); a hook keeps what the layers below the output layer gave. What the architecture does to its logits
afterwards (a scale, a soft cap) is read from its configuration, and the one position proves it: where these logits are
not those of the model, it is not used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.method import Batch, Term
from limbeck.engine.progress import say
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.fused import Head, fused_sums
from limbeck.language.gradients import CLOSED
from limbeck.language.losses import scored
from limbeck.models.forward import Signals, forward

if TYPE_CHECKING:
    from limbeck.language.base import TokenMethod

WORTH = 1 << 22
"""Logits (tokens times vocabulary) from which on the chunked head is used by itself: 16 MiB in float32."""


class UnfitError(Exception):
    """Why a model's head cannot be taken apart; its text ends a sentence."""


class Body:
    """A causal language model of the transformers library, cut below its output layer.

    Args:
        module: the model, wrapped or not.

    Raises:
        UnfitError: it is none, or its output layer is no plain one.
    """

    def __init__(self, module: nn.Module) -> None:
        self.inner = _pretrained(module)
        decoder = getattr(self.inner, "base_model", self.inner)
        head = self.inner.get_output_embeddings()
        if decoder is self.inner or head is None:
            raise UnfitError(f"{type(self.inner).__name__} has no output layer of its own")
        if "logits_to_keep" not in inspect.signature(self.inner.forward).parameters:
            raise UnfitError(f"{type(self.inner).__name__} cannot keep the logits of one position alone")
        if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
            raise UnfitError(f"its output layer is a {type(head).__name__}, not a plain linear one")
        self.decoder, self.head = decoder, head
        config = self.inner.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale = float(getattr(config, "logit_scale", None) or 1.0)
        self.scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        self.proved = False

    def __call__(self, run: Callable[..., Signals]) -> Head:
        """Hidden states [B, T, H] and the head they go into.

        Args:
            run: calls the whole model with these keyword arguments more.

        Raises:
            UnfitError: the model's logits are not those of the head.
        """
        seen: dict[str, Any] = {}
        hooks = [
            self.decoder.register_forward_hook(lambda m, i, out: seen.update(hidden=out[0])),
            self.head.register_forward_hook(lambda m, i, out: seen.update(kind=out.dtype)),
        ]
        try:
            logits = run(logits_to_keep=1).logits
        finally:
            for hook in hooks:
                hook.remove()
        weight, bias = _whole(self.head.weight), _whole(self.head.bias)
        hidden = seen["hidden"].to(seen["kind"])
        if self.scale != 1:
            hidden, bias = hidden * self.scale, None if bias is None else bias * self.scale
        found = Head(hidden, weight, bias, self.softcap)
        if not self.proved:
            self._prove(found, logits)
        return found

    @torch.no_grad()
    def _prove(self, head: Head, logits: Tensor) -> None:
        bias = None if head.bias is None else head.bias.float()
        own = F.linear(head.hidden[:, -1:].float(), head.weight.float(), bias)
        if head.softcap is not None:
            own = head.softcap * torch.tanh(own / head.softcap)
        error = 1e-3 if head.hidden.dtype.itemsize >= 4 else 5e-2
        if logits.shape != own.shape or not torch.allclose(own, logits.float(), rtol=error, atol=error):
            raise UnfitError(f"{type(self.inner).__name__} does more to its logits than its output layer")
        self.proved = True


def _pretrained(module: nn.Module) -> Any:
    try:
        from transformers import PreTrainedModel
    except ImportError as error:
        raise UnfitError("transformers is not installed") from error
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            return part
    raise UnfitError(f"{type(module).__name__} is no model of transformers")


def _whole(weight: Any) -> Any:
    """A parameter that the processes share by parts cannot be taken out of its model's own forward pass."""
    if hasattr(weight, "full_tensor"):
        raise UnfitError("its output layer is sharded over the processes")
    return weight


class ChunkedTerms:
    """The terms ``ce`` and ``kd`` of a token method from hidden states, or word that the plain path is to be taken.

    Args:
        method: gives the models, the divergence and the way to average.
    """

    def __init__(self, method: TokenMethod) -> None:
        self.method = method
        self.bodies: tuple[nn.Module, Body, Body | None] | None = None
        self.unfit: str | None = None

    def __call__(self, batch: Batch, weights: dict[str, float], wanted: bool | None) -> dict[str, Term] | None:
        """The terms of a batch, or None where the plain path is to be taken.

        Args:
            batch: rows of tokens.
            weights: of ``kd`` and ``ce``; one that is zero is left out.
            wanted: whether to compute in chunks; None where that saves memory or time.

        Raises:
            UserError: it is wanted, and not possible.
        """
        if wanted is False or (wanted is None and (self.unfit or not self._worth(batch))):
            return None
        try:
            return self._terms(batch, weights)
        except UnfitError as error:
            if wanted:
                raise _refused(error) from error
            self.unfit = str(error)
            say(f"the vocabulary head is computed as a whole, not in chunks: {error}")
            return None

    def check(self) -> None:
        """Refuse models whose heads cannot be taken apart, before any training.

        Raises:
            UserError: such a model.
        """
        try:
            self._check_teacher()
            self._parts(True)
        except UnfitError as error:
            raise _refused(error) from error

    def _worth(self, batch: Batch) -> bool:
        vocabulary = getattr(getattr(self.method.student, "config", None), "vocab_size", None) or 0
        return batch["labels"].numel() * vocabulary >= WORTH

    def _parts(self, teacher: bool) -> tuple[Body, Body | None]:
        student = self.method.student
        if self.bodies is None or self.bodies[0] is not student or (teacher and self.bodies[2] is None):
            theirs = Body(self.method.teacher.module) if teacher else None
            self.bodies = student, Body(student), theirs
        return self.bodies[1], self.bodies[2]

    def _terms(self, batch: Batch, weights: dict[str, float]) -> dict[str, Term]:
        method = self.method
        teaches = weights["kd"] != 0
        if teaches:
            self._check_teacher()
        own, theirs = self._parts(teaches)
        student = own(lambda **more: forward(method.student, batch, **more))
        teacher = theirs(lambda **more: method.teacher.compute(batch, **more)) if teaches and theirs else None
        labels = batch["labels"][:, 1:]
        kept = scored(labels)
        # The term is linear in its values, so its gradient is the weight that each of them has.
        values = torch.zeros(labels.shape, device=labels.device, requires_grad=True)
        with torch.enable_grad():
            shape = method.term(values, labels)
        rows = torch.autograd.grad(shape.sum, values)[0][kept]
        width = None
        if teacher is not None:
            width = method.shared(len(student.weight), len(teacher.weight))
        sums = fused_sums(
            _rows(student, kept),
            None if teacher is None else _rows(teacher, kept),
            labels=labels[kept] if weights["ce"] != 0 else None,
            rows=rows,
            weights=(weights["kd"], weights["ce"]),
            direction=method.direction,
            temperature=method.temperature,
            beta=method.beta,
            skew=method.skew,
            width=width,
        )
        found = {"ce": sums.cross_entropy, "kd": sums.divergence}
        return {n: Term(s, shape.count, weights[n], shape.unit) for n, s in found.items() if s is not None}

    def _check_teacher(self) -> None:
        teacher = self.method.teacher
        if not isinstance(teacher, Teacher) or teacher.stored is not None:
            raise UnfitError("the teacher's outputs are stored ones")
        if self.method.direction not in CLOSED:
            raise UnfitError(f"the direction {self.method.direction} has no closed form")


def _refused(error: UnfitError) -> UserError:
    return UserError(f"chunked: true is not possible here: {error}; leave it out")


def _rows(head: Head, kept: Tensor) -> Head:
    """A head with the hidden states [N, H] of the positions that count, of hidden states [B, T, H]."""
    return Head(head.hidden[:, :-1][kept], head.weight, head.bias, head.softcap)
