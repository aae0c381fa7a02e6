"""What the heads of one attention do on real data, as second moments: all that a conversion needs to know of it.

Shapes: B rows, T queries, S keys, H query heads, G key/value heads, K head width, N = G · K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from transfuse.nn.attention import Attention, attention_weights


class HeadStatistics:
    """Sums over calibration data, in float64.

    `queries_HKK` is the second moment of each head's queries. `keys_HNN` is, for each query head, the covariance of all
    heads' keys *within* a query, under that head's attention weights: what its softmax can see, since a vector added to
    all keys of a query changes nothing. `values_HNN` and `value_means_HN` are second moment and mean of all heads'
    values, attended to with that head's weights.
    """

    def __init__(self, attention: Attention) -> None:
        H, K = attention.n_heads, attention.d_head
        N = attention.n_kv_heads * K
        self.n_queries = 0
        self._queries_HKK = torch.zeros(H, K, K, dtype=torch.float64)
        self._keys_HNN = torch.zeros(H, N, N, dtype=torch.float64)
        self._values_HNN = torch.zeros(H, N, N, dtype=torch.float64)
        self._value_sums_HN = torch.zeros(H, N, dtype=torch.float64)

    def add(
        self,
        attention: Attention,
        x_BTD: Tensor,
        memory_BSD: Tensor | None = None,
        *,
        keep: Tensor | None = None,
        real_BT: Tensor,
    ) -> None:
        """Count a batch; positions that are not `real` (padding) count for nothing."""
        q_BHTK, k_BGSK, v_BGSK = attention.project(x_BTD, memory_BSD)
        weights_BHTS = attention_weights(q_BHTK, k_BGSK, keep, attention.causal) * real_BT[:, None, :, None]
        keys_BSN, values_BSN = (part.transpose(1, 2).flatten(2) for part in (k_BGSK, v_BGSK))
        # a shift of all keys is invisible, and without their mean the difference below keeps its digits
        keys_BSN = keys_BSN - keys_BSN.mean((0, 1))
        flat_keys = keys_BSN.flatten(0, 1)
        q_HRK = (q_BHTK * real_BT[:, None, :, None]).transpose(0, 1).flatten(1, 2)
        self._queries_HKK += (q_HRK.transpose(1, 2) @ q_HRK).double().cpu()
        for h in range(attention.n_heads):
            weights_BTS = weights_BHTS[:, h]
            looked_at = weights_BTS.sum(1).flatten()[:, None] * flat_keys
            mean_key, mean_value = ((weights_BTS @ part).flatten(0, 1) for part in (keys_BSN, values_BSN))
            self._keys_HNN[h] += (flat_keys.T @ looked_at - mean_key.T @ mean_key).double().cpu()
            self._values_HNN[h] += (mean_value.T @ mean_value).double().cpu()
            self._value_sums_HN[h] += mean_value.sum(0).double().cpu()
        self.n_queries += int(real_BT.sum())

    @property
    def queries_HKK(self) -> Tensor:
        """E[q qᵀ] of each head."""
        return self._queries_HKK / self.n_queries

    @property
    def keys_HNN(self) -> Tensor:
        """E[cov_s(k) | query] of all heads' keys under each head's attention."""
        return self._keys_HNN / self.n_queries

    @property
    def value_means_HN(self) -> Tensor:
        """E[v̄] of all heads' values under each head's attention."""
        return self._value_sums_HN / self.n_queries

    def values_HNN(self, *, centred: bool) -> Tensor:
        """E[v̄ v̄ᵀ], or, where their mean is dealt with otherwise, the covariance."""
        moment, mean = self._values_HNN / self.n_queries, self.value_means_HN
        return moment - mean[:, :, None] * mean[:, None, :] if centred else moment
