#pragma once

#include "simt.h"

namespace cooperative_groups {

struct cluster_group {
  unsigned num_blocks() const { return simt::block->cluster.size; }
  unsigned block_rank() const { return simt::block->rank; }

  void sync() const {
    [[maybe_unused]] const simt::races::Paused paused;
    simt::block->wait(simt::block->in_cluster,
                      [] { simt::block->cluster.wait(static_cast<int>(simt::block->rank)); });
    ++simt::block->fiber().identity.barriers.cluster;
  }

  template <class T>
  T* map_shared_rank(T* own, unsigned rank) const {
    [[maybe_unused]] const simt::races::Paused paused;
    const simt::Cluster& cluster = simt::block->cluster;
    if (static_cast<int>(rank) >= cluster.size) simt::fail("no such block in the cluster");
    if (!cluster.running[rank])
      simt::fail("shared memory of a block that does not run yet, or no more");
    return reinterpret_cast<T*>(reinterpret_cast<std::byte*>(own) - &simt::landmark +
                                cluster.landmarks[rank]);
  }
};

inline cluster_group this_cluster() {
  return {};
}

}  // namespace cooperative_groups
