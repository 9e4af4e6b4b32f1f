"""EAGLE: a one-layer draft continues its target's features, not only its tokens."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.language.losses import forward_kl
from limbeck.language.speculative.method import FeatureMethod
from limbeck.losses import log_softmax
from limbeck.models.forward import Signals
from limbeck.registry import register


@register("method")
class Eagle(FeatureMethod):
    """From feature f_t and token x_{t+1} the draft predicts f_{t+1}; the target's frozen output layer reads it.

    - ``eagle1``: ``SmoothL1(f', f) + token_weight * CE(softmax(head(f)), softmax(head(f')))`` with uniform noise on
      the features that it reads (Li et al. 2024, arXiv 2401.15077). EAGLE-2 (arXiv 2406.16858) has the same weights;
      its tree by confidence is how they are decoded (``speculative`` with a ``width``).
    - ``eagle3``: no feature loss; the draft is unrolled over its own outputs as in decoding ("training-time test"),
      with the cross-entropy at each step (Li et al. 2025, arXiv 2503.01840); its student has ``fused: 3``. The
      official code trains an output layer of its own over a cut vocabulary; here it is the target's.

    The cross-entropy is taken as the KL from the target's distribution, which has the same gradient.

    Args:
        version: which loss.
        token_weight: of the tokens' loss in ``eagle1``.
        noise: half-width of the noise on the features in ``eagle1``.
        steps: of the unrolling in ``eagle3``; 1 is plain teacher forcing.
        decay: weight of a step over that of the one before it.
        teacher_share: how often the rows are the target's own writing.
        new_tokens: how many tokens it writes at most.
        prompt: tokens of a plain row that it continues; by default half of it.
        heat: its sampling temperature.
    """

    needs = {"teacher": {"logits", "hidden_states"}}
    live = True
    same_view = False
    controls = {"tokens": {"student": {"look": "tokens"}}}
    student_is = "eagle_draft"
    speaks = "joined"

    def __init__(
        self,
        *,
        version: Literal["eagle1", "eagle3"] = "eagle1",
        token_weight: float = 0.1,
        noise: float = 0.1,
        steps: int = 3,
        decay: float = 0.8,
        teacher_share: float = 0.0,
        new_tokens: int = 64,
        prompt: int | None = None,
        heat: float = 1.0,
    ) -> None:
        super().__init__(teacher_share=teacher_share, new_tokens=new_tokens, prompt=prompt, heat=heat)
        self.version = version
        self.token_weight = token_weight
        self.noise = noise
        self.steps = steps
        self.decay = decay

    def setup(self, parts: Parts) -> None:
        """Refuse a draft of another width than its target's, and an unrolling that the rows have no room for.

        Raises:
            UserError: either of these; or fused features whose regression has no target.
        """
        super().setup(parts)
        width = self.embedded(torch.zeros(1, 1, dtype=torch.int64)).shape[-1]
        if parts.student.hidden != width:
            raise UserError(f"eagle: the draft has hidden {parts.student.hidden}, its target {width}")
        if self.version == "eagle1" and parts.student.levels > 1:  # type: ignore[operator]
            raise UserError("eagle: eagle1 regresses the last hidden state: its draft has fused 1")
        if self.steps < 1 or (self.context is not None and self.steps + 2 > self.context):
            raise UserError(f"eagle: steps must be at least 1 and leave room in the rows, got {self.steps}")

    def losses(self, rows: Batch, target: Signals, clock: Clock) -> dict[str, Term]:
        """``feature`` and ``token``; or ``step_1`` and so on."""
        embedded = self.embedded(rows["input_ids"])[:, 1:-1]
        log_p = log_softmax(target.logits[:, 1:-1])
        if self.version == "eagle1":
            return self.regressed(rows, target.hidden_states[-1], embedded, log_p, clock)
        features = self.student.features(target.hidden_states)[:, :-2]  # type: ignore[operator]
        return self.unrolled(rows, features, embedded, log_p)

    def regressed(
        self, rows: Batch, features: Tensor, embedded: Tensor, log_p: Tensor, clock: Clock
    ) -> dict[str, Term]:
        """EAGLE-1: the next feature and what the output layer makes of it."""
        drawn = clock.uniform(rows["id"], tuple(features[:, :-2].shape[1:]), "feature noise").to(features)
        seen = features[:, :-2] + self.noise * (2 * drawn - 1)
        imagined = self.student(seen, embedded, use_cache=False).last_hidden_state
        distance = F.smooth_l1_loss(imagined, features[:, 1:-1], reduction="none").mean(-1)
        token = forward_kl(log_p, log_softmax(self.out(imagined)))
        labels = rows["labels"]
        return {
            "feature": self.ahead(distance, labels, 2),
            "token": self.ahead(token, labels, 2, self.token_weight),
        }

    def unrolled(self, rows: Batch, features: Tensor, embedded: Tensor, log_p: Tensor) -> dict[str, Term]:
        """EAGLE-3: step j reads at place t what step j - 1 made of place t - 1, as in decoding."""
        from transformers import DynamicCache

        cache, labels, terms = DynamicCache(), rows["labels"], {}
        count = features.shape[1]
        places = torch.arange(count, device=features.device)[None]
        for step in range(self.steps):
            mask = unrolled_mask(count, step, features.device)
            imagined = self.student(
                features,
                embedded,
                attention_mask=mask,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            values = forward_kl(log_p, log_softmax(self.out(imagined)))[:, step:]
            terms[f"step_{step + 1}"] = self.ahead(values, labels, 2 + step, self.decay**step)
            features = torch.cat([imagined[:, :1], imagined[:, :-1]], dim=1)
        return terms

    def reach(self) -> int:
        """The first token that the last step predicts."""
        return 1 + (1 if self.version == "eagle1" else self.steps)


def unrolled_mask(count: int, step: int, device: torch.device) -> Tensor:
    """Where the unrolled draft may look, bool [1, 1, count, (step + 1) * count].

    In decoding, the place t at step j follows j places that the draft imagined at steps 1 to j, and before them those
    with the target's own features. So it sees the places up to t - j of step 0, and the place t - j + i of step i. The
    first j places have not so many before them, and no loss looks at them.
    """
    t = torch.arange(count, device=device)
    blocks = []
    for i in range(step + 1):
        place = t[:, None] - step + i
        seen = t[None] <= place if i == 0 else t[None] == place
        blocks.append(seen)
    return torch.cat(blocks, dim=1)[None, None]
