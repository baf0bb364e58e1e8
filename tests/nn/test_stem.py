import torch

from transmamba.nn.stem import ConvNorm, ConvStem, PatchMerging


def test_borders_that_do_not_fill_a_patch_are_filled_with_zeros():
    stem = ConvStem(7, patch_size=8, num_convs=1).eval()
    assert stem(torch.randn(2, 3, 20, 28)).shape == (2, 7, 3, 4)
    image = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(stem(torch.cat([image, torch.randn(2, 3, 16, 16)], 3))[..., :1], stem(image)[..., :1])


def test_four_neighbours_are_joined_columns_last():
    merging = PatchMerging(2, 5)
    x = torch.randn(3, 2, 5, 4)
    rows, columns = 2 * 1, 2 * 1  # the token in row 1, column 1 of the result
    offsets = ((0, 0), (1, 0), (0, 1), (1, 1))
    joined = torch.cat([x[:, :, rows + r, columns + c] for r, c in offsets], 1)
    torch.testing.assert_close(merging(x)[:, :, 1, 1], merging.reduction(merging.norm(joined)))
    assert merging(x).shape == (3, 5, 3, 2)


def test_norm_is_over_the_channels():
    for kernel_size, size in ((2, (2, 3)), (3, (3, 4)), (4, (1, 2))):
        y = ConvNorm(3, 7, kernel_size=kernel_size, stride=2)(torch.randn(2, 3, 5, 7))
        torch.testing.assert_close(y.mean(1), torch.zeros(2, *y.shape[2:]), atol=1e-5, rtol=0)
        assert y.shape[2:] == size
