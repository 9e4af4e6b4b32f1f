"""Falcon: a draft that says several tokens at once, trained by glancing at some of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.language.losses import token_divergence
from limbeck.language.speculative.method import FeatureMethod
from limbeck.losses import cross_entropy
from limbeck.models.forward import Signals
from limbeck.registry import register


@register("method")
class Falcon(FeatureMethod):
    """``SmoothL1(f', f_{t+k}) + token_weight ((1 - hard) KL(p || q) + hard CE(y, q))`` with glancing (CSGD).

    Gao et al. 2024, "Falcon: Faster and Parallel Inference of Large Language Models through Enhanced
    Semi-Autoregressive Drafting and Custom-Designed Decoding Tree" (arXiv 2412.12639). q and p are what the target's
    frozen output layer makes of the predicted and of the true feature, y a draw from p. A step first predicts without
    gradient and counts each row's wrong tokens; of so many times a share that falls over the training, blocks are
    chosen whose inputs are in part (a random run of places, never the last) replaced by what they are to predict:
    feature f_{t+k} and token x_{t+k+1}, so that the places after them in the block learn to depend on them.

    Args:
        glance_start: share of the wrong tokens that are shown at first.
        glance_end: and at the end; both 0 trains without glancing.
        token_weight: of the tokens' losses.
        hard: share of the drawn token in these.
        temperature: of both distributions in the KL.
        noise: half-width of the uniform noise on the features that are read.
        teacher_share: how often the rows are the target's own writing.
        new_tokens: how many tokens it writes at most.
        prompt: tokens of a plain row that it continues; by default half of it.
        heat: its sampling temperature.
    """

    needs = {"teacher": {"logits", "hidden_states"}}
    live = True
    same_view = False
    controls = {"plain": {"method": {"glance_start": 0.0, "glance_end": 0.0}}}
    student_is = "falcon_draft"
    speaks = "recurrent"

    def __init__(
        self,
        *,
        glance_start: float = 0.45,
        glance_end: float = 0.1,
        token_weight: float = 0.1,
        hard: float = 0.1,
        temperature: float = 0.95,
        noise: float = 0.1,
        teacher_share: float = 0.0,
        new_tokens: int = 64,
        prompt: int | None = None,
        heat: float = 1.0,
    ) -> None:
        super().__init__(teacher_share=teacher_share, new_tokens=new_tokens, prompt=prompt, heat=heat)
        self.glance_start = glance_start
        self.glance_end = glance_end
        self.token_weight = token_weight
        self.hard = hard
        self.temperature = temperature
        self.noise = noise

    def setup(self, parts: Parts) -> None:
        """Refuse a draft of another width than its target's, and rows too short for a block.

        Raises:
            UserError: either of these.
        """
        super().setup(parts)
        width = self.embedded(torch.zeros(1, 1, dtype=torch.int64)).shape[-1]
        if parts.student.hidden != width:
            raise UserError(f"falcon: the draft has hidden {parts.student.hidden}, its target {width}")
        self._block = int(parts.student.block)  # type: ignore[arg-type]
        self._blocks = parts.student.blocks
        if self.context is not None and self.context < 2 * self._block + 2:
            raise UserError(f"falcon: blocks of {self._block} need rows of {2 * self._block + 2}, not {self.context}")

    def losses(self, rows: Batch, target: Signals, clock: Clock) -> dict[str, Term]:
        """The terms ``feature``, ``token`` and ``hard``."""
        k, labels = self._block, rows["labels"][:, self._block + 1 :]
        count = labels.shape[1]
        features, embedded = target.hidden_states[-1], self.embedded(rows["input_ids"])
        after, logits = features[:, k : k + count], target.logits[:, k : k + count]
        drawn = clock.uniform(rows["id"], (count, features.shape[-1]), "feature noise").to(features)
        seen, heard = features[:, :count] + self.noise * (2 * drawn - 1), embedded[:, 1 : count + 1]
        shown = self.glanced(rows, seen, heard, logits, labels, clock)[..., None]
        imagined = self.student(
            torch.where(shown, after, seen), torch.where(shown, embedded[:, k + 1 : k + count + 1], heard)
        )
        own = self.out(imagined)
        soft = token_divergence(own, logits, temperature=self.temperature, scale=False)
        gumbel = -torch.log(-torch.log(clock.uniform(rows["id"], tuple(logits.shape[1:]), "token").clamp(1e-12)))
        token = (logits.float() + gumbel.to(logits.device)).argmax(-1)
        terms = {
            "feature": (F.smooth_l1_loss(imagined, after, reduction="none").mean(-1), 1.0),
            "token": (soft, self.token_weight * (1 - self.hard)),
            "hard": (cross_entropy(own, token), self.token_weight * self.hard),
        }
        given = rows["labels"]
        return {name: self.ahead(v, given, k + 1, weight) for name, (v, weight) in terms.items() if weight > 0}

    @torch.no_grad()
    def glanced(self, rows: Batch, seen: Tensor, heard: Tensor, logits: Tensor, labels: Tensor, clock: Clock) -> Tensor:
        """Which places are shown what they are to predict, bool [B, N]."""
        share = self.glance_start + (self.glance_end - self.glance_start) * clock.progress
        if share <= 0:
            return torch.zeros_like(labels, dtype=torch.bool)
        guess = self.out(self.student(seen, heard)).argmax(-1)
        wrong = ((guess != logits.argmax(-1)) & (labels != -100)).sum(1)
        number = self._blocks(labels.shape[1], 0, labels.device)  # type: ignore[operator]
        draws = clock.uniform(rows["id"], (3, int(number[-1]) + 1), "glance").to(labels.device)
        return glances(number, self._block, (share * wrong).long(), draws)

    def reach(self) -> int:
        """The token that a block's first place predicts."""
        return self._block + 1


def glances(number: Tensor, block: int, blocks: Tensor, draws: Tensor) -> Tensor:
    """In so many blocks of each row a run of places, never the block's last, bool [B, N].

    Args:
        number: the block of each place, int64 [N]; the first block may lack its first places.
        block: places of a block.
        blocks: how many, int64 [B].
        draws: uniform [B, 3, blocks of a row]: which blocks, where a run begins, how long it is.
    """
    order = draws[:, 0].argsort(-1).argsort(-1)
    chosen = order < blocks[:, None]
    first = (draws[:, 1] * (block - 1)).long()
    length = 1 + (draws[:, 2] * (block - 1 - first)).long()
    # Counted from the end, where every block is whole.
    within = (torch.arange(len(number), device=number.device) - len(number)) % block
    run = (within >= first[:, number]) & (within < (first + length)[:, number])
    return run & chosen[:, number]
