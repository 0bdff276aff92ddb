"""The design that the CUDA kernels use, the number of images per wave, and the tiles."""

from __future__ import annotations

from types import ModuleType


def check_cuda_design_follows_the_size_of_an_image(core: ModuleType) -> None:
    for num_tokens, design in ((0, "matrix"), (1, "matrix"), (8192, "matrix"), (8193, "steps")):
        assert core.cuda_design(num_tokens, None) == design
        assert core.cuda_design(num_tokens, "auto") == design
        assert core.cuda_design(num_tokens, "steps") == "steps"
    assert core.cuda_design(8192, "matrix") == "matrix"
    for arguments in ((8193, "matrix"), (1, "cluster"), (1, "tiles"), (1, "")):
        try:
            core.cuda_design(*arguments)
        except ValueError as error:
            assert "CLASP_KERNELS_CUDA_DESIGN" in str(error), error
        else:
            raise AssertionError(arguments)


def check_cuda_waves_stay_within_the_workspace(core: ModuleType) -> None:
    limit = core.cuda_workspace
    assert limit == 256 << 20
    for num_tokens in (1, 31, 576, 577, 2880, 8192):
        size = core.cuda_matrix_bytes(num_tokens)
        assert size >= 4 * num_tokens**2 and size % (128 * num_tokens) == 0
        for num_images in (1, 64, 100_000):
            wave = core.cuda_images_per_wave(num_images, size, limit)
            assert 1 <= wave <= num_images and wave * size <= limit
            assert wave == num_images or (wave + 1) * size > limit
    assert core.cuda_images_per_wave(3, 0, limit) == 3
    assert core.cuda_images_per_wave(3, 2 * limit, limit) == 1


def check_every_tile_pair_once(core: ModuleType) -> None:
    for num_blocks in (0, 1, 2, 9, 45, 257):
        pairs = core.tile_pairs(num_blocks)
        assert len(set(pairs)) == len(pairs) == num_blocks * (num_blocks + 1) // 2
        assert all(0 <= row <= column < num_blocks for row, column in pairs)
