// Who computes a view: ``count`` threads that share its scratch memory, of which this is ``index``.
//
// A team has members index and count and a member function sync(Site), a barrier of all its threads
// that also makes their writes visible. Loops of the block functions give thread i the items
// i, i + count, ... A test leaves out the barrier of one site at a time and expects to see a race.
#pragma once

#include "macros.h"

namespace amdim {

enum Site {
  kWeightsReady,
  kRowsStaged,
  kLinesReady,
  kPixelsReady,
  kPartialsReady,
  kPartialsAdded,
  kSites
};

// One thread, the whole job.
struct Solo {
  static constexpr int index = 0;
  static constexpr int count = 1;
  AMDIM_HD void sync(Site) const {}
};

}  // namespace amdim
