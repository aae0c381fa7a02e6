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
    """Means over calibration data, in float64.

    `queries_HKK` is the second moment of each head's queries, E[q qᵀ]. `keys_HPMM` is, for each query head, the
    covariance of all heads' keys *within* a query, under that head's attention weights: what its softmax can see, since
    a vector added to all keys of a query changes nothing. `values_HNN` and `value_means_HN` are second moment and mean
    of all heads' values, attended to with that head's weights. `spreads_H` is E[Σ_s w_s |W_O (v_s - v̄)|²] of the
    head's own values: how far what it adds to the residual stream moves when its weights do.
    """

    def __init__(self, attention: Attention) -> None:
        H, K = attention.n_heads, attention.d_head
        N = attention.n_kv_heads * K
        self.n_queries = 0
        self._pairs = K // 2 if attention.rotary is not None else None
        self.queries_HKK = torch.zeros(H, K, K, dtype=torch.float64)
        self.keys_HPMM = (
            torch.zeros(H, 1, N, N, dtype=torch.float64)
            if self._pairs is None
            else torch.zeros(H, self._pairs, attention.n_kv_heads, attention.n_kv_heads, dtype=torch.complex128)
        )
        self.values_HNN = torch.zeros(H, N, N, dtype=torch.float64)
        self.value_means_HN = torch.zeros(H, N, dtype=torch.float64)
        self.spreads_H = torch.zeros(H, dtype=torch.float64)

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
        keys_BSN, values_BSN = (part.transpose(1, 2).flatten(2) for part in (k_BGSK, v_BGSK))
        # a shift of all keys is invisible, and without their mean the difference below keeps its digits
        keys_BSN = keys_BSN - keys_BSN.mean((0, 1))
        keys_PRM = self._apart(keys_BSN)
        q_HRK = (q_BHTK * real_BT[:, None, :, None]).transpose(0, 1).flatten(1, 2)
        before, self.n_queries = self.n_queries, self.n_queries + int(real_BT.sum())

        def count(mean: Tensor, total: Tensor) -> None:
            mean.mul_(before / self.n_queries).add_(_wide(total).cpu() / self.n_queries)

        count(self.queries_HKK, q_HRK.transpose(1, 2) @ q_HRK)
        H, K, sharing = attention.n_heads, attention.d_head, attention.n_heads // attention.n_kv_heads
        out_HKD = attention.out.weight.detach().T.reshape(H, K, -1)
        for h in range(H):  # one at a time: all heads' weights are more memory than a layer's own
            q_B1TK, k_B1SK = q_BHTK[:, h : h + 1], k_BGSK[:, h // sharing : h // sharing + 1]
            weights_BTS = attention_weights(q_B1TK, k_B1SK, keep, attention.causal)[:, 0] * real_BT[:, :, None]
            looked_at_PRM = weights_BTS.sum(1).flatten()[:, None] * keys_PRM
            mean_PRM, mean_value = self._apart(weights_BTS @ keys_BSN), (weights_BTS @ values_BSN).flatten(0, 1)
            count(self.keys_HPMM[h], _moment(keys_PRM, looked_at_PRM) - _moment(mean_PRM, mean_PRM))
            count(self.values_HNN[h], mean_value.T @ mean_value)
            count(self.value_means_HN[h], mean_value.sum(0))
            # nor does a shift of all values move what is added
            own_BSK = v_BGSK[:, h // sharing] - v_BGSK[:, h // sharing].mean((0, 1))
            means_RK = (weights_BTS @ own_BSK).flatten(0, 1)
            own_RK, looked_at_RK = (x.flatten(0, 1) for x in (own_BSK, weights_BTS.sum(1)[:, :, None] * own_BSK))
            spread_KK = looked_at_RK.T @ own_RK - means_RK.T @ means_RK
            count(self.spreads_H[h], (spread_KK * (out_HKD[h] @ out_HKD[h].T)).sum().clamp(min=0))

    def value_covariances_HNN(self) -> Tensor:
        """As `values_HNN`, about the mean."""
        mean_HN = self.value_means_HN
        return self.values_HNN.baddbmm(mean_HN[:, :, None], mean_HN[:, None, :], alpha=-1)

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
