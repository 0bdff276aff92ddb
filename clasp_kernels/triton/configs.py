"""Launch parameters of each kernel: block sizes and warps, by shape, dtype and device.

A table instead of autotuning: the same shapes give the same code, the first call compiles once, and
results do not depend on timings. Nothing depends on the batch size, so neither does the result of
an image.

All entries are estimates: these kernels have not run on a GPU yet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


class SalienceTiles(NamedTuple):
    """The shape of a tile of logits, [keys, rows], and how the programs divide the tiles."""

    keys: int
    rows: int
    features: int
    """Features per product."""
    row_blocks: int
    """Row blocks per program if all keys are one tile, else 0."""
    splits: int
    """The most splits of the keys; 0 if all keys are one tile."""
    num_warps: int
    num_stages: int
    precision: str


# Two programs for each of the 132 multiprocessors of an H200.
SALIENCE_PROGRAMS = 264


def attention_salience(
    num_keys: int, num_rows: int, dim: int, key_heads: int, element_bytes: int
) -> SalienceTiles:
    """``num_rows`` is the number of rows that share a key head: T * query heads / key heads.

    Up to 1024 keys, a tile holds all keys: with 16 rows its logits take 32 registers in each of 512
    threads. Keys are read once for every block of rows, from memory the first time. The row blocks
    of all heads of an image are dealt to at most about 64 programs, because one program adds the
    sums of all.

    More keys are read twice, the second time from the L2 cache if they fit. With few rows, these
    reads dominate the cost. A tile of keys has 32 KB, and two programs per multiprocessor have two
    tiles in flight each. Keys are split until the programs of one image fill the GPU or have one
    tile each. A tile takes up to 64 rows, because more do not fit the registers everywhere. Each
    block of rows reads the keys again, but at the same time and thus from the cache.

    float32 is multiplied as three products of tf32, which keep 22 of the 24 bits of each factor.
    The error is 2^-21 of |q| |k|, about the rounding error of a sum of 128. Full float32 products
    would not use tensor cores. Each factor takes twice the registers, so tiles are halved.
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
        # AMD GPUs have 64 KB of shared memory per block, which 1024 keys in two stages would
        # exceed.
        stages = 2 if torch.version.hip is None else 1
        warps = max(keys // 64, 4)
        return SalienceTiles(keys, rows, features, row_blocks, 0, warps, stages, precision)
    rows = min(max(next_power_of_2(num_rows), 16), 32 if single else 64)
    features = min(width, 32 if single else 128)
    keys = 128 if single else min(16384 // min(width, 128), 512)
    splits = max(SALIENCE_PROGRAMS // (key_heads * -(-num_rows // rows)), 1)
    return SalienceTiles(keys, rows, features, 0, splits, 8, 2, precision)


class RowBlocks(NamedTuple):
    """A tile of rows of D elements per program."""

    rows: int
    columns: int
    num_warps: int


def gather_tokens(dim: int, element_bytes: int) -> RowBlocks:
    """Loads 16 bytes per thread and row with 4 rows in flight, enough to hide memory latency."""
    columns = min(next_power_of_2(dim), 2048 // element_bytes)
    return RowBlocks(4, columns, 4)


class CountBlocks(NamedTuple):
    """The tokens whose ranks a program counts, and the tokens they are compared with at once."""

    tokens: int
    others: int
    num_warps: int


class SortBlocks(NamedTuple):
    """One program per image: rows x columns hold all its tokens."""

    rows: int
    columns: int
    pivots: int
    """The number of pivots that are sorted at once."""
    num_warps: int


def select_pivots(num_tokens: int, num_pivots: int) -> CountBlocks | SortBlocks:
    """Counts ranks for few tokens, and sorts in one program per image for more.

    Counting costs about 4 instructions per comparison: 17 million comparisons for 16 images of 1024
    tokens, or 5 microseconds of an H200's integer units, and four times that for twice the tokens.
    One program per image takes about as long for 1024 tokens as for 4096, most of it latency.

    In the sort, each thread holds a column of ranks. Few threads with long columns reduce faster
    than many with short ones. 16 warps leave 128 registers per thread, which 32 ranks and their
    tokens exceed.
    """
    if not 1024 < num_tokens <= 16384:
        return CountBlocks(16, 512, 8)
    columns = 512 if num_tokens <= 8192 else 256
    rows = next_power_of_2(num_tokens) // columns
    pivots = next_power_of_2(min(num_tokens, num_pivots))
    return SortBlocks(rows, columns, min(max(pivots, 64), 2048), columns // 32)


# Memory limit of the similarities of all images in flight.
SIMILARITY_BYTES = 256 << 20
# Number of tokens that are compacted by index at a time.
SELECTION_BLOCK = 4096
# Number of tokens whose weights are read at a time: 8 per thread.
WEIGHTS_BLOCK = 1024


class Completion(NamedTuple):
    """A square tile of an image's similarities per program; one program per image picks."""

    rows: int
    """Tokens on a side of a tile."""
    columns: int
    """Features multiplied at a time."""
    padded: int
    """The tokens of an image, padded to a multiple of ``rows``."""
    wave: int
    """Images in flight; 0 if the similarities of one image exceed SIMILARITY_BYTES, which takes one
    launch per step."""
    num_warps: int
    num_stages: int

    @property
    def num_pairs(self) -> int:
        blocks = self.padded // self.rows
        return blocks * (blocks + 1) // 2

    @property
    def block(self) -> int:
        """The size of a block that holds all tokens of an image, a power of 2."""
        return next_power_of_2(self.padded)

    @property
    def block_out(self) -> int:
        return min(self.block, SELECTION_BLOCK)


def completion(num_tokens: int, dim: int, element_bytes: int) -> Completion:
    """Uses tiles of 64 for a few hundred tokens, so that one image fills a GPU, else tiles of 128,
    which halve the bytes read. With 16 or 32 tile elements per thread, two programs fit on a
    multiprocessor. The same threads pick, with 4 to 16 tokens each."""
    few = num_tokens <= 1024
    rows = min(max(next_power_of_2(num_tokens), 16), 64 if few else 128)
    padded = -(-num_tokens // rows) * rows
    # Features that are loaded element by element take more registers.
    columns = 128 // element_bytes if dim * element_bytes % 16 == 0 else 16
    columns = min(max(next_power_of_2(dim), 16), columns)
    wave = SIMILARITY_BYTES // (4 * padded * padded)
    return Completion(rows, columns, padded, wave, 8 if few else 16, 3)


def completion_tokens(dim: int, element_bytes: int) -> RowBlocks:
    """Two rows per warp, 1 KB of each at a time: 64 bytes per thread in flight."""
    # Features that are loaded element by element take more registers.
    columns = 1024 // element_bytes if dim * element_bytes % 16 == 0 else 256
    return RowBlocks(8, min(max(next_power_of_2(dim), 16), columns), 4)


def completion_step(dim: int, element_bytes: int) -> RowBlocks:
    return completion_tokens(dim, element_bytes)


def covering(num_tokens: int, dim: int, element_bytes: int) -> Completion:
    """The tiles of :func:`completion`, or smaller ones if they are computed again in each step.

    A tile and the gains that come of it take more registers. Smaller tiles have at most 64 rows and
    half as many features at a time, with one step more in flight.
    """
    config = completion(num_tokens, dim, element_bytes)
    if config.wave > 0:
        return config
    rows = min(config.rows, 64)
    padded = -(-num_tokens // rows) * rows
    columns = max(config.columns // 2, 16)
    return Completion(rows, columns, padded, 0, num_warps=8, num_stages=4)


def covering_step(tile_rows: int, num_padded: int) -> RowBlocks:
    """The candidates of a program, and the tokens that they represent at a time: up to 64 bytes of
    similarities in flight per thread. With few candidates, a few images fill a GPU; a program reads
    its similarities in about the time of a launch. ``num_padded`` is a multiple of ``tile_rows``.
    """
    return RowBlocks(min(tile_rows, 32), min(next_power_of_2(num_padded), 128), 8)


# Compiling 64 layers takes seconds; 200 layers take a minute and spill registers. Models have
# fewer.
LAYERS_PER_LAUNCH = 64

# Rows up to this length stay in registers while they are normalized, 16 elements per thread.
LONGEST_ROW_IN_REGISTERS = 8192


class FusionBlocks(NamedTuple):
    """A tile of rows of D elements per program and layer."""

    rows: int
    columns: int
    layers_in_flight: int
    """The number of layers that are loaded before the first one is used."""
    num_warps: int


def fuse_layers(dim: int, num_layers: int, element_bytes: int, *, norms: bool) -> FusionBlocks:
    """Keeps 64 to 256 bytes per thread in flight: 64 to 128 KB per multiprocessor at the occupancy
    that registers allow, where latency times bandwidth is about 40 KB."""
    if norms:
        columns = next_power_of_2(min(dim, LONGEST_ROW_IN_REGISTERS // 2))
        if LONGEST_ROW_IN_REGISTERS // 2 < dim <= LONGEST_ROW_IN_REGISTERS:
            columns = LONGEST_ROW_IN_REGISTERS
        return FusionBlocks(max(512 // columns, 1), columns, 4, max(columns // 512, 1))
    tile = 128 * 16 // element_bytes
    # The width that wastes the fewest columns; among equal ones, the widest.
    widths = (min(tile >> halvings, next_power_of_2(dim)) for halvings in range(3))
    columns = min(widths, key=lambda width: -(-dim // width) * width)
    # With a single layer each thread loads four times, with four layers once per layer.
    loads = next_power_of_2(-(-4 // num_layers))
    return FusionBlocks(loads * tile // columns, columns, 8, 4)


class AssignmentBlocks(NamedTuple):
    """Tokens and kept tokens compared: a tile of similarities per program and step."""

    tokens: int
    slots: int
    features: int
    num_warps: int
    num_stages: int


def merge_assignment(
    num_tokens: int, num_slots: int, num_features: int, element_bytes: int
) -> AssignmentBlocks:
    """Uses tiles of up to 64 x 64, for which tokens and kept rows are read in equal amounts; the
    kept rows come from the cache. 128 bytes per row and three steps are in flight, or half of that
    if rows are not a multiple of 16 bytes and are loaded element by element."""
    tokens = min(max(next_power_of_2(num_tokens), 16), 64)
    slots = min(max(next_power_of_2(num_slots), 16), 64)
    step = 64 if num_features * element_bytes % 16 else 128
    features = min(max(next_power_of_2(num_features), 16), step // element_bytes)
    return AssignmentBlocks(tokens, slots, features, 8, 4)


class MeanBlocks(NamedTuple):
    """The mean of one group: a tile of members of D elements per program and step."""

    tokens: int
    """The number of tokens that are searched for members at once."""
    members: int
    columns: int
    num_warps: int


def merge_means(num_tokens: int, dim: int, element_bytes: int) -> MeanBlocks:
    """Keeps 16 bytes per thread and member in flight, for 16 members: more than an average group
    has if one token in ten is kept. A quarter of that if rows are not a multiple of 16 bytes."""
    tokens = min(max(next_power_of_2(num_tokens), 16), 512)
    width = 512 if dim * element_bytes % 16 else 2048
    return MeanBlocks(tokens, 16, min(next_power_of_2(dim), width // element_bytes), 4)
