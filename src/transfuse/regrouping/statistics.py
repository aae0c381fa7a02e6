"""What the heads of one attention do on real data, as second moments: all that a conversion needs to know of it.

Rotary positions turn keys pair by pair of coordinates, and so does what can be shared of them: such keys' moments are
taken pair by pair, as complex numbers.

Shapes: B rows, T queries, S keys, R rows times positions, H query heads, G key/value heads, K head width, N = G · K; P
problems that do not touch each other, M numbers of each: 1 and N, or with rotary positions K / 2 and G.
"""

from __future__ import annotations

import torch
from torch import Tensor

from transfuse.nn.attention import Attention, attention_weights


class HeadStatistics:
    """Sums over calibration data, in float64.

    `queries_HKK` is the second moment of each head's queries. `keys_HPMM` is, for each query head, the covariance of
    all heads' keys *within* a query, under that head's attention weights: what its softmax can see, since a vector
    added to all keys of a query changes nothing. `values_HNN` and `value_means_HN` are second moment and mean of all
    heads' values, attended to with that head's weights.
    """

    def __init__(self, attention: Attention) -> None:
        H, K = attention.n_heads, attention.d_head
        N = attention.n_kv_heads * K
        self.n_queries = 0
        self._pairs = K // 2 if attention.rotary is not None else None
        self._queries_HKK = torch.zeros(H, K, K, dtype=torch.float64)
        self._keys_HPMM = (
            torch.zeros(H, 1, N, N, dtype=torch.float64)
            if self._pairs is None
            else torch.zeros(H, self._pairs, attention.n_kv_heads, attention.n_kv_heads, dtype=torch.complex128)
        )
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
        keys_PRM = self._apart(keys_BSN)
        q_HRK = (q_BHTK * real_BT[:, None, :, None]).transpose(0, 1).flatten(1, 2)
        self._queries_HKK += (q_HRK.transpose(1, 2) @ q_HRK).double().cpu()
        for h in range(attention.n_heads):
            weights_BTS = weights_BHTS[:, h]
            looked_at_PRM = weights_BTS.sum(1).flatten()[:, None] * keys_PRM
            mean_PRM, mean_value = self._apart(weights_BTS @ keys_BSN), (weights_BTS @ values_BSN).flatten(0, 1)
            self._keys_HPMM[h] += _wide(_moment(keys_PRM, looked_at_PRM) - _moment(mean_PRM, mean_PRM)).cpu()
            self._values_HNN[h] += _wide(mean_value.T @ mean_value).cpu()
            self._value_sums_HN[h] += mean_value.sum(0).double().cpu()
        self.n_queries += int(real_BT.sum())

    @property
    def queries_HKK(self) -> Tensor:
        """E[q qᵀ] of each head."""
        return self._queries_HKK / self.n_queries

    @property
    def keys_HPMM(self) -> Tensor:
        """E[cov_s(k) | query] of all heads' keys under each head's attention."""
        return self._keys_HPMM / self.n_queries

    @property
    def value_means_HN(self) -> Tensor:
        """E[v̄] of all heads' values under each head's attention."""
        return self._value_sums_HN / self.n_queries

    def values_HNN(self, *, centred: bool) -> Tensor:
        """E[v̄ v̄ᵀ], or, where their mean is dealt with otherwise, the covariance."""
        moment, mean = self._values_HNN / self.n_queries, self.value_means_HN
        return moment - mean[:, :, None] * mean[:, None, :] if centred else moment

    def _apart(self, keys_BSN: Tensor) -> Tensor:
        """Keys as (P, R, M), those of rotary positions as complex numbers."""
        keys_RN = keys_BSN.flatten(0, 1)
        if self._pairs is None:
            return keys_RN[None]
        real, imaginary = keys_RN.view(len(keys_RN), -1, 2, self._pairs).unbind(2)
        return torch.complex(real, imaginary).permute(2, 0, 1)


def _moment(a_PRM: Tensor, b_PRM: Tensor) -> Tensor:
    """Σ a b* over rows, (P, M, M)."""
    return a_PRM.mT @ b_PRM.conj()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.complex128 if x.is_complex() else torch.float64)
