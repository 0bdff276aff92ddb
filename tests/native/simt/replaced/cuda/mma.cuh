// mma.sync.aligned.m16n8k16 as the PTX ISA defines its fragments: lane 4 g + q of a warp has rows g
// and g + 8 of the left operand and of the sums, and column g of the right operand.
#pragma once

#include "core/scalar.h"
#include "simt.h"

namespace clasp::cuda {

template <class T>
void multiply_add(float (&sums)[4], const uint32_t (&rows)[4], const uint32_t (&columns)[2]) {
  struct Given {
    uint32_t rows[4], columns[2];
  } own;
  memcpy(own.rows, rows, sizeof(rows));
  memcpy(own.columns, columns, sizeof(columns));
  const auto lanes = simt::block->all_lanes(own);
  const auto element = [](uint32_t word, int place) {
    T halves[2];
    memcpy(halves, &word, sizeof(word));
    return to_float(halves[place]);
  };
  const int lane = simt::block->current % simt::kWarp;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8;
    const int column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int quad = k % 8 / 2;
      const Given& left = lanes[row % 8 * 4 + quad];
      const Given& right = lanes[column * 4 + quad];
      sums[i] +=
          element(left.rows[row / 8 + k / 8 * 2], k % 2) * element(right.columns[k / 8], k % 2);
    }
  }
}

}  // namespace clasp::cuda
