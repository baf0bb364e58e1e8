"""Linear maps by ridge regression, from sums over any number of tokens."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transmamba._typing import check_sizes, typed


class Readout(NamedTuple):
    """A solved linear map: weight (target, feature) and bias (target) as `nn.Linear` has them, in float64."""

    weight: Tensor
    bias: Tensor | None


class LeastSquares:
    """Sums of products from which a linear map from features to targets is solved.

    `solve` minimises sum_t w_t |y_t - W z_t - b|^2 + ridge g |W|^2 over all tokens t that `update` was given, with g
    the mean diagonal entry of sum_t w_t z_t z_t^T (about the mean if there is a bias, which the ridge leaves alone).
    Memory does not grow with the number of tokens.

    Args:
        features: width of the features z.
        targets: width of the targets y.
        bias: also solve a bias b.
        products: dtype in which the products of one update are computed. All sums are float64; float32 halves the time
            on a CPU, and changes the solution by about 1e-6 / ridge. An autocast does not touch them.
        device: where the sums are kept.

    Attributes:
        tokens: number of tokens so far.

    Example:
        >>> fit = LeastSquares(2, 1)
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> fit.update(z, z @ torch.tensor([[2.0], [3.0]]))
        >>> fit.solve(ridge=0.0).weight.round()
        tensor([[2., 3.]], dtype=torch.float64)
    """

    @typed
    def __init__(
        self,
        features: int,
        targets: int,
        *,
        bias: bool = False,
        products: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        check_sizes(features=features, targets=targets)
        if products not in (torch.float32, torch.float64):
            raise ValueError(f"products must be torch.float32 or torch.float64, got {products}")
        self.features, self.targets, self.bias, self.products = features, targets, bias, products
        width = features + targets
        self._moments = torch.zeros(features, width, dtype=torch.float64, device=device)  # of z with z and y
        self._sums = torch.zeros(width, dtype=torch.float64, device=device)
        self._totals = torch.zeros(3, dtype=torch.float64, device=device)  # sum of w, of w |y|^2, tokens

    @property
    def tokens(self) -> int:
        """Return the number of tokens so far."""
        return int(self._totals[2])

    @typed
    @torch.no_grad()
    def update(
        self,
        features: Float[Tensor, "*token feature"],
        targets: Float[Tensor, "*token target"],
        *,
        mask: Bool[Tensor, "*token"] | None = None,
        weights: Float[Tensor, "*token"] | None = None,
    ) -> None:
        """Add tokens to the sums.

        Args:
            features: z.
            targets: y.
            mask: True marks a real token; the others may hold anything.
            weights: w, one by default.

        Raises:
            ValueError: a width is not the one given at the start, or a weight is negative.
        """
        if (features.shape[-1], targets.shape[-1]) != (self.features, self.targets):
            raise ValueError(
                f"expected {self.features} features and {self.targets} targets per token, got {features.shape[-1]} and"
                f" {targets.shape[-1]}"
            )
        z, y = (t.detach().flatten(0, -2) if mask is None else t.detach()[mask] for t in (features, targets))
        rows = torch.cat([z.to(self.products), y.to(self.products)], 1).to(self._sums.device)
        self._totals[2] += len(rows)
        w = None
        if weights is not None:
            w = (weights.flatten() if mask is None else weights[mask]).detach().to(rows)
            if bool((w < 0).any()):
                raise ValueError("weights must not be negative")
        weighted = rows if w is None else rows * w[:, None]
        # an autocast around the models would round these products too, far below the precision that the solution needs
        with torch.autocast(rows.device.type, enabled=False):
            self._moments += (weighted[:, : self.features].T @ rows).double()
        self._sums += weighted.sum(0, dtype=torch.float64)
        self._totals[0] += len(rows) if w is None else w.sum(dtype=torch.float64)
        self._totals[1] += (weighted[:, self.features :] * rows[:, self.features :]).sum(dtype=torch.float64)

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Add the sums of all processes of a group; call it once, after the last update."""
        for sums in (self._moments, self._sums, self._totals):
            dist.all_reduce(sums, group=group)

    @typed
    def solve(self, ridge: float = 1e-3, *, min_tokens: int | None = None) -> Readout:
        """Return the map; the sums stay, so that another ridge can be tried.

        Args:
            ridge: strength of the penalty, relative to the mean square of a feature.
            min_tokens: fewer tokens are an error; one per unknown of a target by default.

        Raises:
            ValueError: there are too few tokens, a number is not finite, or the system is singular.
        """
        if not ridge >= 0:
            raise ValueError(f"ridge must not be negative, got {ridge}")
        unknowns = self.features + self.bias
        least = unknowns if min_tokens is None else min_tokens
        if self.tokens < max(least, 1):
            raise ValueError(
                f"{self.tokens} tokens for {unknowns} unknowns: fewer than {max(least, 1)} would be learnt by heart;"
                " give more batches, or accept it with min_tokens=1"
            )
        gram, cross = self._centred()
        if not bool(torch.isfinite(gram).all() and torch.isfinite(cross).all()):
            raise ValueError("features or targets hold NaN or infinity: mask the padding, and check the model's output")
        gram.diagonal().add_(ridge * gram.diagonal().mean())
        factor, info = torch.linalg.cholesky_ex(gram)
        pivots = factor.diagonal().abs()
        if int(info) or float(pivots.min()) <= 1e-7 * float(pivots.max()):
            raise ValueError(
                f"the {self.features} features are linearly dependent: give a larger ridge than {ridge}, or more"
                " varied tokens"
            )
        weight = torch.cholesky_solve(cross, factor).T.contiguous()
        if not self.bias:
            return Readout(weight, None)
        mean = self._sums / self._totals[0]
        return Readout(weight, mean[self.features :] - weight @ mean[: self.features])

    @typed
    def r2(self, weight: Float[Tensor, "target feature"], bias: Float[Tensor, " target"] | None = None) -> float:
        """Return the share of the targets' variance that a map explains on the tokens of these sums.

        With the sums of other tokens than those it was solved on, it is the share on held-out data.
        """
        weight = weight.detach().to(self._sums)
        gram, cross = self._moments.split([self.features, self.targets], 1)
        mass, square = self._totals[0], self._totals[1]
        z, y = self._sums.split([self.features, self.targets])
        error = square - 2 * (weight.T * cross).sum() + ((weight @ gram) * weight).sum()
        if bias is not None:
            bias = bias.detach().to(self._sums)
            error = error - 2 * bias @ (y - weight @ z) + mass * bias.square().sum()
        spread = square - y.square().sum() / mass
        return 1 - float(error / spread)

    def _centred(self) -> tuple[Tensor, Tensor]:
        """Return the products of features with features and with targets, about the mean if there is a bias."""
        moments = self._moments
        if self.bias:
            moments = moments - torch.outer(self._sums[: self.features], self._sums) / self._totals[0]
        return moments[:, : self.features].clone(), moments[:, self.features :].clone()


@torch.no_grad()
def write_readout(layer: nn.Linear, solved: Readout) -> None:
    """Copy a solved map into a linear layer, in place."""
    layer.weight.copy_(solved.weight)
    if solved.bias is not None:
        layer.bias.copy_(solved.bias)
    # as long as an autocast lasts, it keeps the rounded weights of the layer's last call, whatever becomes of them
    torch.clear_autocast_cache()
