"""How each kernel is launched: block sizes and warps, by shape, dtype and device.

A table and not a race at run time: the same shapes give the same code, the first call costs one
compilation, and results do not depend on what was timed. Nothing here depends on the batch, so
that an image's result does not either.

Every entry is counted, not measured: these kernels have not run on a GPU yet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


class SalienceTiles(NamedTuple):
    """A tile of logits, [keys, rows], and how the programs share them."""

    keys: int
    rows: int
    features: int
    """Summed over in one product."""
    row_blocks: int
    """Of each program, where all keys are one tile."""
    splits: int
    """Of the keys, at most, where they are many; 0 where all keys are one tile."""
    num_warps: int
    num_stages: int
    precision: str


# Two programs for each of the 132 multiprocessors of an H200.
SALIENCE_PROGRAMS = 264


def attention_salience(
    num_keys: int, num_rows: int, dim: int, key_heads: int, element_bytes: int
) -> SalienceTiles:
    """``num_rows`` are those that share a key head: T times the query heads per key head.

    Up to 1024 keys, whose logits with 16 rows are 32 registers in each of 512 threads, keys are
    read once for every block of rows, the first time from memory. The blocks of an image's heads
    are dealt to at most some 64 programs, as one program then adds up the sums of all.

    More keys are read twice, the second time from the L2 cache where they fit: few rows cost no
    more than that. A tile of keys has 32 KB, and each of two programs on a multiprocessor has two
    of them in flight. Keys are split until the programs of one image fill the GPU, or have one tile
    each. A tile takes up to 64 rows, as more do not fit the registers everywhere; each block of
    rows reads the keys again, but at the same time, from the cache.

    float32 is multiplied as three products of tf32, which keep 22 of the 24 bits of each factor:
    an error of 2^-21 of |q| |k|, of the order of what rounding adds up to in a sum of 128. Full
    products would not use tensor cores. Each factor takes twice the registers: tiles are halved.
    """
    single = element_bytes == 4
    # AMD GPUs have no tf32x3.
    precision = "tf32x3" if single and torch.version.hip is None else "ieee"
    width = max(next_power_of_2(dim), 16)
    if num_keys <= (512 if single else 1024):
        keys = max(next_power_of_2(num_keys), 128)
        rows = 32 if num_rows > 16 and keys < 512 and not single else 16
        features = min(width, 64 // element_bytes)
        row_blocks = -(-num_rows // rows)
        row_blocks = -(-row_blocks // max(64 // key_heads, 1))
        # AMD GPUs have 64 KB of shared memory a block, which 1024 keys in two stages overflow.
        stages = 2 if torch.version.hip is None else 1
        warps = max(keys // 64, 4)
        return SalienceTiles(keys, rows, features, row_blocks, 0, warps, stages, precision)
    rows = min(max(next_power_of_2(num_rows), 16), 32 if single else 64)
    features = min(width, 32 if single else 128)
    keys = 128 if single else min(16384 // min(width, 128), 512)
    splits = max(SALIENCE_PROGRAMS // (key_heads * -(-num_rows // rows)), 1)
    return SalienceTiles(keys, rows, features, 0, splits, 8, 2, precision)


class RowBlocks(NamedTuple):
    """Rows of D elements, a tile of them per program."""

    rows: int
    columns: int
    num_warps: int


def gather_tokens(dim: int, element_bytes: int) -> RowBlocks:
    """16 bytes a thread and row, and 4 rows in flight: enough to cover the latency of memory."""
    columns = min(next_power_of_2(dim), 2048 // element_bytes)
    return RowBlocks(4, columns, 4)


class CountBlocks(NamedTuple):
    """Tokens whose ranks a program counts, and how many others it compares them with at once."""

    tokens: int
    others: int
    num_warps: int


class SortBlocks(NamedTuple):
    """One program an image: rows x columns hold all its tokens."""

    rows: int
    columns: int
    pivots: int
    """How many are sorted at once."""
    num_warps: int


def select_pivots(num_tokens: int, num_pivots: int) -> CountBlocks | SortBlocks:
    """Counting costs some 4 instructions a comparison: for 16 images of 1024 tokens 17 million
    comparisons, 5 microseconds of an H200's integer units, four times that for twice the tokens.
    One program an image costs about as much for 1024 tokens as for 4096, most of it latency.

    Each of its threads holds a column of ranks. Few wide threads reduce faster than many narrow
    ones; 16 warps leave 128 registers to each, which 32 ranks and their tokens overflow.
    """
    if not 1024 < num_tokens <= 16384:
        return CountBlocks(16, 512, 8)
    columns = 512 if num_tokens <= 8192 else 256
    rows = next_power_of_2(num_tokens) // columns
    pivots = next_power_of_2(min(num_tokens, num_pivots))
    return SortBlocks(rows, columns, min(max(pivots, 64), 2048), columns // 32)


# What the similarities of all images in flight may take.
SIMILARITY_BYTES = 256 << 20
# Tokens that are sorted by index at a time.
SELECTION_BLOCK = 4096


class Completion(NamedTuple):
    """All similarities of an image, a square tile per program; its picks, one program an image."""

    rows: int
    """Tokens on a side of a tile."""
    columns: int
    """Features multiplied at a time."""
    padded: int
    """The tokens of an image, padded to a multiple of ``rows``."""
    wave: int
    """Images in flight; 0 where the similarities of one are too many: then a launch a step."""
    num_warps: int
    num_stages: int

    @property
    def num_pairs(self) -> int:
        blocks = self.padded // self.rows
        return blocks * (blocks + 1) // 2

    @property
    def block(self) -> int:
        """All tokens of an image in one block, whose size is a power of 2."""
        return next_power_of_2(self.padded)

    @property
    def block_out(self) -> int:
        return min(self.block, SELECTION_BLOCK)


def completion(num_tokens: int, dim: int, element_bytes: int) -> Completion:
    """Tiles of 64 for a few hundred tokens, so that one image alone fills a GPU; else of 128, which
    read half as much. 16 or 32 elements of the tile a thread leave room for 2 programs a
    multiprocessor, and the threads, which are also those that pick, 4 to 16 tokens each."""
    few = num_tokens <= 1024
    rows = min(max(next_power_of_2(num_tokens), 16), 64 if few else 128)
    padded = -(-num_tokens // rows) * rows
    # Elements that are loaded one by one take more registers.
    columns = 128 // element_bytes if dim * element_bytes % 16 == 0 else 16
    columns = min(max(next_power_of_2(dim), 16), columns)
    wave = SIMILARITY_BYTES // (4 * padded * padded)
    return Completion(rows, columns, padded, wave, 8 if few else 16, 3)


def completion_tokens(dim: int, element_bytes: int) -> RowBlocks:
    """Two rows a warp, 1 KB of each at a time: 64 bytes a thread in flight."""
    # Elements that are loaded one by one take more registers.
    columns = 1024 // element_bytes if dim * element_bytes % 16 == 0 else 256
    return RowBlocks(8, min(max(next_power_of_2(dim), 16), columns), 4)


def completion_step(dim: int, element_bytes: int) -> RowBlocks:
    return completion_tokens(dim, element_bytes)


# 64 layers compile in seconds, 200 in a minute, and not without spills. Models have fewer.
LAYERS_PER_LAUNCH = 64

# Whole rows up to here stay in registers while they are normalised, 16 elements a thread.
LONGEST_ROW_IN_REGISTERS = 8192


class FusionBlocks(NamedTuple):
    """Rows of D elements, a tile of them per program and layer."""

    rows: int
    columns: int
    layers_in_flight: int
    """How many layers are loaded before the first of them is used."""
    num_warps: int


def fuse_layers(dim: int, num_layers: int, element_bytes: int, *, norms: bool) -> FusionBlocks:
    """64 to 256 bytes in flight a thread: 64 to 128 KB a multiprocessor at what registers allow,
    where the product of latency and bandwidth is about 40."""
    if norms:
        columns = next_power_of_2(min(dim, LONGEST_ROW_IN_REGISTERS // 2))
        if LONGEST_ROW_IN_REGISTERS // 2 < dim <= LONGEST_ROW_IN_REGISTERS:
            columns = LONGEST_ROW_IN_REGISTERS
        return FusionBlocks(max(512 // columns, 1), columns, 4, max(columns // 512, 1))
    tile = 128 * 16 // element_bytes
    # The width that leaves the fewest columns over; of equal ones the widest.
    widths = (min(tile >> halvings, next_power_of_2(dim)) for halvings in range(3))
    columns = min(widths, key=lambda width: -(-dim // width) * width)
    # A single layer has a thread load four times, four layers once each.
    loads = next_power_of_2(-(-4 // num_layers))
    return FusionBlocks(loads * tile // columns, columns, 8, 4)


class AssignmentBlocks(NamedTuple):
    """Tokens compared with kept ones, a tile of similarities per program and step."""

    tokens: int
    slots: int
    features: int
    num_warps: int
    num_stages: int


def merge_assignment(
    num_tokens: int, num_slots: int, num_features: int, element_bytes: int
) -> AssignmentBlocks:
    """Up to 64 x 64: where as many are kept, tokens and kept rows are then read in equal parts, of
    which the kept ones come from the cache. 128 bytes a row and three steps are on their way; half
    of it where rows are no whole 16 bytes and elements are loaded one by one."""
    tokens = min(max(next_power_of_2(num_tokens), 16), 64)
    slots = min(max(next_power_of_2(num_slots), 16), 64)
    step = 64 if num_features * element_bytes % 16 else 128
    features = min(max(next_power_of_2(num_features), 16), step // element_bytes)
    return AssignmentBlocks(tokens, slots, features, 8, 4)


class MeanBlocks(NamedTuple):
    """The mean of one group: a tile of members of D elements per program and step."""

    tokens: int
    """Of how many tokens the members are looked for at once."""
    members: int
    columns: int
    num_warps: int


def merge_means(num_tokens: int, dim: int, element_bytes: int) -> MeanBlocks:
    """16 bytes a thread and member, 16 members in flight: more than a group has on average where
    one token in ten is kept. A quarter where rows are no whole 16 bytes."""
    tokens = min(max(next_power_of_2(num_tokens), 16), 512)
    width = 512 if dim * element_bytes % 16 else 2048
    return MeanBlocks(tokens, 16, min(next_power_of_2(dim), width // element_bytes), 4)
