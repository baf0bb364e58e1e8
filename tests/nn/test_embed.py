import pytest
import torch

from transmamba.nn import PatchEmbed, init_position


def test_tokens_are_linear_images_of_patches_in_raster_order():
    embed = PatchEmbed(5, patch_size=2, in_chans=3)
    image = torch.randn(2, 3, 4, 6)
    weight = embed.proj.weight.flatten(1)
    patches = [image[:, :, r : r + 2, c : c + 2].flatten(1) for r in (0, 2) for c in (0, 2, 4)]
    expected = torch.stack([patch @ weight.T + embed.proj.bias for patch in patches], 1)
    torch.testing.assert_close(embed(image), expected)


def test_overlapping_patches():
    embed = PatchEmbed(5, patch_size=4, stride=2)
    assert embed.grid(8, 6) == (3, 2)
    assert embed(torch.zeros(1, 3, 8, 6)).shape == (1, 6, 5)


@pytest.mark.parametrize(("height", "width"), [(3, 8), (8, 10)])
def test_image_that_patches_do_not_tile_is_refused(height, width):
    with pytest.raises(ValueError, match=f"patches of 4 pixels every 4 do not tile an image of {height} x {width}"):
        PatchEmbed(5, patch_size=4)(torch.zeros(1, 3, height, width))


def test_positions_are_drawn_with_unit_length_on_average():
    table = init_position(50, 400)
    assert table.shape == (1, 50, 400)
    assert table.requires_grad
    torch.testing.assert_close(table.norm(dim=-1).mean().item(), 1.0, rtol=0.02, atol=0)
