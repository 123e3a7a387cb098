"""A linear map that knows what a decoding step looks like to a processor: one large matrix, few rows."""

import torch
from torch import Tensor, nn

FEW_ROWS = 64
LARGE = 2**21  # entries; smaller matrices stay in the cache, and gain nothing


class Linear(nn.Linear):
    """`nn.Linear`, in prediction on a CPU computed as W xᵀ where x has few rows.

    Measured with MKL on two cores: of the base model's vocabulary, a product with 4 to 40 rows takes 1.3 to 2.3 times
    as long the other way around; that of a feed-forward matrix 1.2 to 1.4 times with 20 rows.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Transform `input` (..., in) to (..., out)."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or input.device.type != "cpu":
            return super().forward(input)
        rows = input.numel() // input.shape[-1]
        is_plain = input.dtype == self.weight.dtype and not torch.is_autocast_enabled("cpu")
        if not (0 < rows <= FEW_ROWS and self.weight.numel() >= LARGE and is_plain):
            return super().forward(input)
        columns = input.reshape(rows, -1).T
        out = self.weight @ columns if self.bias is None else torch.addmm(self.bias[:, None], self.weight, columns)
        return out.T.reshape(*input.shape[:-1], -1).contiguous()
