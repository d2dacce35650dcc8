"""Adaptive pooling as products of matrices equals PyTorch's, at every size."""

from __future__ import annotations

import pytest

from unet_batch.workbench.importers.wrappers import with_exact_pooling

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("size", [2, 3, 6, (2, 5), (None, 3), (4, None), 7])
def test_it_equals_pytorch_s_pooling(size):
    """Also where bins overlap, and where the picture has fewer pixels than bins."""
    images = [torch.randn(2, 3, height, width) for height in (1, 2, 5, 6, 13, 16) for width in (3, 7, 12, 32)]
    pool = torch.nn.AdaptiveAvgPool2d(size)
    expected = [pool(image) for image in images]
    exact = with_exact_pooling(torch.nn.Sequential(pool))
    for image, values in zip(images, expected, strict=True):
        torch.testing.assert_close(exact(image), values, rtol=1e-5, atol=1e-6)


def test_a_pooling_that_is_held_in_a_list_is_changed_too():
    """As UperNet holds its own: beside the registered modules."""

    class Holds(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pools = [torch.nn.AdaptiveAvgPool2d(3)]
            self.add_module("0", self.pools[0])

        def forward(self, image):
            return self.pools[0](image)

    program = torch.export.export(with_exact_pooling(Holds()), (torch.randn(1, 2, 8, 8),))
    assert "adaptive" not in str(program.graph)


def test_a_pooling_to_one_value_stays():
    """ONNX has it as an operator."""
    pool = torch.nn.AdaptiveAvgPool2d(1)
    with_exact_pooling(torch.nn.Sequential(pool))
    assert type(pool) is torch.nn.AdaptiveAvgPool2d
