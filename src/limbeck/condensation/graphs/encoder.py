"""An encoder that sorts rows into clusters, and how it begins: as half of an autoencoder, with centres of k-means."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.condensation.graphs.contrast import soft_assignments
from limbeck.engine.noise import key_of, uniform
from limbeck.errors import UserError


def layers(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between them."""
    linear = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(*[part for layer in linear for part in (layer, nn.ReLU())][:-1])


class NodeEncoder(nn.Module):
    """An MLP that embeds rows and gives each its share in every cluster; it needs no graph.

    Args:
        sizes: of a row, of the hidden layers, and of the embedding.
        clusters: K.
        nodes: how many rows it has itself, to be called by number; 0 where it is called with the rows.
        words: places of the ones in its own rows, int64 [2, E]; each row then has the sum 1.
        seed: what is drawn before the training follows from it.
    """

    bags: Tensor | None

    def __init__(
        self, sizes: Sequence[int], clusters: int, nodes: int = 0, words: Tensor | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.encoder = layers(sizes)
        self.centres = nn.Parameter(torch.randn(clusters, sizes[-1]))
        self.register_buffer("bags", words)
        self.sizes, self.nodes, self.seed = tuple(sizes), nodes, seed

    def rows(self, given: Tensor) -> Tensor:
        """What the encoder reads, [B, F]: the rows [B, ...] flattened, or those with the given numbers int64 [B]."""
        if self.bags is None:
            return given.flatten(1)
        own = self.centres.new_zeros(self.nodes, self.sizes[0])
        own[self.bags[0], self.bags[1]] = 1.0
        chosen = own[given]
        return chosen / chosen.sum(1, keepdim=True).clamp(min=1)

    def forward(self, given: Tensor) -> dict[str, Tensor]:
        """Rows [B, ...] or their numbers int64 [B] -> ``embedding`` [B, D] and ``logits`` [B, K].

        The logits are the logarithms of the shares of :func:`soft_assignments`.
        """
        embedding = self.encoder(self.rows(given))
        return {"embedding": embedding, "logits": soft_assignments(embedding, self.centres).log()}


def cluster_encoder(student: nn.Module) -> NodeEncoder:
    """The student as an encoder with clusters.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(student, NodeEncoder):
        name = type(student).__name__
        raise UserError(f"clustering learns an encoder with centres: the student must be a node_encoder, not {name}")
    return student


def pretrain(
    student: NodeEncoder, rows: Tensor, *, steps: int, lr: float, batch_size: int, key: Hashable
) -> nn.Sequential:
    """Let the encoder learn as half of an autoencoder, by Adam on the squared error, in place.

    Args:
        student: whose encoder learns; the decoder has its layers in reverse.
        rows: [N, F], what is encoded and rebuilt.
        steps: of the optimizer.
        lr: learning rate.
        batch_size: rows a step.
        key: of the decoder's first weights and of the order of the rows.

    Returns:
        the decoder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key_of(key, "decoder") % 2**63)
        decoder = layers(student.sizes[::-1]).to(rows.device)
    optimizer = torch.optim.Adam([*student.encoder.parameters(), *decoder.parameters()], lr=lr)
    order: list[Tensor] = []
    with torch.enable_grad():
        for step in range(steps):
            if not order:
                order = list(uniform(torch.arange(len(rows)), (1,), (key, step))[:, 0].argsort().split(batch_size))
            batch = rows[order.pop().to(rows.device)]
            optimizer.zero_grad()
            F.mse_loss(decoder(student.encoder(batch)), batch).backward()
            optimizer.step()
    student.zero_grad()
    return decoder


@torch.no_grad()
def place_centres(student: NodeEncoder, rows: Tensor, starts: int) -> None:
    """Make the centres those of k-means on the embedding of the rows, the best of several starts.

    Args:
        student: whose centres are set; its seed is that of the starts.
        rows: [N, F], no fewer than there are clusters.
        starts: of k-means.
    """
    from sklearn.cluster import KMeans

    points = student.encoder(rows).double().cpu().numpy()
    found = KMeans(len(student.centres), n_init=starts, random_state=student.seed % 2**32).fit(points)
    student.centres.copy_(torch.as_tensor(found.cluster_centers_))
