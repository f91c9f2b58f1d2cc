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

// A thread's share of a table of rows and columns: columns ``column``, ``column`` + ``columns``, ... of
// rows ``row``, ``row`` + ``rows``, ... Neighbors take neighboring columns, without a division an item.
struct Share {
  int column, columns, row, rows;
};

template <class Team>
AMDIM_HD Share share_of(const Team& team, int table_columns) {
  const int across = table_columns < team.count ? table_columns : team.count;
  const int groups = team.count / across, group = team.index / across;
  constexpr int kNone = 1 << 30;  // threads that do not fill a group have no row
  return {team.index - group * across, across, group < groups ? group : kNone, groups};
}

}  // namespace amdim
