"""Measure the encoders' prediction with and without Winograd's algorithm, in turn in one process.

    python benchmarks/convolution.py            # ResNet-101 at 480 px, Cnn14 for ten seconds; two minutes

Weights are random. Medians of the repeats; errors are those of the largest feature, against float64.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from unival.memory import keep_freed_memory
from unival.model import convolution
from unival.model.audio import PannCNN
from unival.model.image import build_image_encoder, image_features


def encoders() -> dict[str, tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], Tensor]]:
    """Return by name a network, how it is called, and four inputs."""
    image = build_image_encoder({"name": "resnet101", "classifier": 1000})[0]
    audio = PannCNN()
    for network in (image, audio):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 0.4)  # timm begins with zero: its blocks would do nothing
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    return {
        "ResNet-101": (image.eval(), image_features, torch.randn(4, 3, 480, 480)),
        "Cnn14": (audio.eval(), lambda network, waveform: network(waveform), 0.1 * torch.randn(4, 480_000)),
    }


def main() -> None:
    """Print seconds with and without, their ratio, and both errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    limits = {"with": convolution.MIN_TILES, "without": 10**9}
    with torch.inference_mode():
        for name, (network, call, inputs) in encoders().items():
            for rows in (1, 4):
                seconds: dict[str, list[float]] = {kind: [] for kind in limits}
                found: dict[str, Tensor] = {}
                for _ in range(options.repeats + 1):
                    for kind, limit in limits.items():
                        convolution.MIN_TILES = limit
                        start = time.perf_counter()
                        found[kind] = call(network, inputs[:rows])
                        seconds[kind].append(time.perf_counter() - start)
                fast, plain = (statistics.median(values[1:]) for values in seconds.values())
                exact = call(network.double(), inputs[:rows].double())
                network.float()
                errors = [float((out - exact).abs().max() / exact.abs().max()) for out in found.values()]
                print(
                    f"{name}, {rows} rows: {plain:.3f} s, with {fast:.3f} s, {1 - fast / plain:.0%} less; "
                    f"errors {errors[1]:.1e}, with {errors[0]:.1e}"
                )


if __name__ == "__main__":
    main()
