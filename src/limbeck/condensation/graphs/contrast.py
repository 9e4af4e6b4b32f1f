"""Contrast along the edges of a graph: neighbours agree, and whole clusters stand for the nodes that should not.

Block contrast after PAMC (arXiv 2209.14067): the negatives of a node are the sums of the clusters' embeddings, called
meta-nodes, so that their cost does not grow with the number of nodes. The soft assignment and its sharpened form are
those of deep embedded clustering (Xie et al. 2016, arXiv 1511.06335).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-10
"""What is added before a logarithm, so that a node without neighbours has a finite loss."""


def nearest_edges(features: Tensor, neighbours: int) -> Tensor:
    """Edges int64 [2, E] between rows of which one is among the nearest of the other, each pair once, without loops.

    Args:
        features: [N, F], compared by their distance.
        neighbours: of each row, fewer than N.
    """
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=neighbours).fit(features.detach().cpu().numpy())
    near = torch.as_tensor(found.kneighbors(return_distance=False)).long()  # without the row itself
    pairs = torch.stack([torch.arange(len(near)).repeat_interleave(neighbours), near.flatten()])
    return pairs.sort(dim=0).values.unique(dim=1)


def influence(edges: Tensor, nodes: int, hops: int) -> tuple[Tensor, Tensor]:
    """Entries of ``A + A^2 + ... + A^hops`` off the diagonal, with ``A = D^-1 (W + I)`` of the edges W.

    Entry ij is the expected number of visits to j of a random walk of that many steps from i, which may also stay.

    Args:
        edges: int64 [2, E], each pair once, without loops.
        nodes: N.
        hops: 1 or more.

    Returns:
        places int64 [2, M] in ascending order, and values float32 [M].
    """
    from scipy.sparse import csr_array

    loops = torch.arange(nodes, device=edges.device).expand(2, -1)
    places = torch.cat([edges, edges.flip(0), loops], 1).cpu()
    shares = 1 / torch.bincount(places[0], minlength=nodes).double()
    step = csr_array((shares[places[0]].numpy(), tuple(places.numpy())), shape=(nodes, nodes))
    power = total = step
    for _ in range(hops - 1):
        power = power @ step
        total = total + power
    total.sort_indices()
    found = total.tocoo()
    rows, columns, values = (torch.as_tensor(x) for x in (found.row, found.col, found.data))
    apart = rows != columns
    return torch.stack([rows, columns])[:, apart].long().to(edges.device), values[apart].float().to(edges.device)


def soft_assignments(embedding: Tensor, centres: Tensor) -> Tensor:
    """Shares [N, K] of each row in each cluster: ``1 / (1 + |z_i - mu_k|^2)`` over its sum (Student's t, one degree).

    Args:
        embedding: z [N, D].
        centres: mu [K, D].
    """
    squares = (embedding[:, None] - centres[None]).square().sum(2)
    shares = 1 / (1 + squares)
    return shares / shares.sum(1, keepdim=True)


def sharpened(shares: Tensor) -> Tensor:
    """Targets [N, K] for shares q [N, K]: ``q_ik^2 / sum_i q_ik``, normalised over the clusters."""
    weights = shares.square() / shares.sum(0)
    return weights / weights.sum(1, keepdim=True)


def meta_nodes(embedding: Tensor, clusters: Tensor, count: int) -> Tensor:
    """The sum of the embeddings [N, D] of each cluster, [K, D]; 0 where it is empty.

    Args:
        embedding: z [N, D], which takes the gradient.
        clusters: int64 [N].
        count: K.
    """
    return embedding.new_zeros(count, embedding.shape[1]).index_add(0, clusters, embedding)


def positive_part(embedding: Tensor, places: Tensor, weights: Tensor, tau: float) -> Tensor:
    """``-mean_i log(sum_j w_ij exp(tau cos(z_i, z_j)))`` over the given places, a scalar.

    Args:
        embedding: z [N, D].
        places: int64 [2, M], pairs (i, j).
        weights: w [M], 0 or more.
        tau: what the cosine is multiplied by.
    """
    units = F.normalize(embedding, dim=1)
    cosines = (units[places[0]] * units[places[1]]).sum(1)
    near = embedding.new_zeros(len(embedding)).index_add(0, places[0], weights * (tau * cosines).exp())
    return -(near + TINY).log().mean()


def negative_part(vectors: Tensor, tau: float) -> Tensor:
    """``mean_i log(sum_j exp(tau cos(v_i, v_j)))`` over all pairs, the cosine of a vector with itself taken as 0.

    Args:
        vectors: v [M, D]: meta-nodes, or all nodes.
        tau: what the cosine is multiplied by.
    """
    units = F.normalize(vectors, dim=1)
    cosines = (units @ units.T).fill_diagonal_(0)
    return ((tau * cosines).exp().sum(1) + TINY).log().mean()
