// Which keys the queries of a panel see. Every mask is at most two intervals of keys a query, so
// the kernels know nothing of causal, window, prefix, documents and lengths: only these intervals,
// the hull of a strip's, and what all queries of a vector see. A tile of keys outside the hull is
// passed over, rows within what all see need no mask, the others are compared lane by lane.
#pragma once

#include "math.h"
#include "ops.h"
#include "tile.h"

namespace tenarai {
namespace TENARAI_ISA {

constexpr i64 kPanel = 64;                     // queries
constexpr i64 kKeyTile = 64;                   // keys
constexpr i64 kStrip = kTileVectors * kLanes;  // queries as wide as a product's block
static_assert(kPanel % kStrip == 0, "a panel is whole strips");

TENARAI_INLINE i64 at_least(i64 x, i64 low) { return x > low ? x : low; }
TENARAI_INLINE i64 at_most(i64 x, i64 high) { return x < high ? x : high; }
TENARAI_INLINE i64 round_up(i64 n, i64 unit) { return (n + unit - 1) / unit * unit; }
TENARAI_INLINE Range common(Range a, Range b) {
  return {at_least(a.begin, b.begin), at_most(a.end, b.end)};
}
TENARAI_INLINE bool empty(Range r) { return r.begin >= r.end; }
TENARAI_INLINE bool operator==(Range a, Range b) { return a.begin == b.begin && a.end == b.end; }
TENARAI_INLINE Range hull(Range a, Range b) {
  if (empty(a)) return b;
  if (empty(b)) return a;
  return {at_most(a.begin, b.begin), at_least(a.end, b.end)};
}

TENARAI_INLINE vi load_ints(const int32_t* p) {
  vi v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// The keys of a query, `near` it, and behind a gap those of a prefix `before`.
struct TwoRanges {
  Range near, before;
};

// The document of the key at x, from where it begins; `last` is the one found for a query before.
static inline Range document_of(const AttentionShape& s, i64 b, i64 x, Range last) {
  if (!s.documents) return {0, s.S};
  const int32_t* starts = s.documents + b * s.S;
  if (!empty(last) && starts[x] == last.begin) return last;
  i64 end = x + 1;
  while (end < s.S && starts[end] <= x) ++end;
  return {starts[x], end};
}
static inline TwoRanges seen_by(const AttentionShape& s, i64 b, i64 t, Range document) {
  const i64 x = t + s.S - s.T, begin = document.begin;
  const i64 end = s.lengths ? at_most(document.end, s.lengths[b]) : document.end;
  const bool window = s.window < kNoWindow;
  Range near = {begin, end}, before = {begin, at_most(begin + (s.prefix ? s.prefix[b] : 0), end)};
  if (window) near.begin = at_least(begin, x - s.window + 1);
  if (s.causal)
    near.end = at_most(end, x + 1);
  else if (window)
    near.end = at_most(end, x + s.window);
  if (empty(before)) return {empty(near) ? Range{begin, begin} : near, {begin, begin}};
  if (empty(near)) return {before, {begin, begin}};
  if (before.end >= near.begin) return {hull(near, before), {begin, begin}};
  return {near, before};
}

struct Seen {
  int32_t first[kPanel], end[kPanel];                // of `near`; lanes past the last are as it
  int32_t before_first[kPanel], before_end[kPanel];  // where there are `two`
  Range all[kPanel / kLanes];                        // what every query of a vector sees
  Range strip_near[kPanel / kStrip], strip_before[kPanel / kStrip];  // hulls
  Range whole;                                                       // hull of all
  Range shared;  // what every query of the panel sees
  bool two = false;

  Seen(const AttentionShape& s, i64 b, i64 t, i64 count) {
    s.documents || s.lengths || s.prefix ? any(s, b, t, count) : band(s, t, count);
  }
  // Causal and window alone: both ends of the interval move with the query.
  void band(const AttentionShape& s, i64 t, i64 count) {
    for (i64 i = 0; i < kPanel; ++i) {
      const i64 x = t + at_most(i, count - 1) + s.S - s.T;
      first[i] = static_cast<int32_t>(at_least(x - s.window + 1, 0));
      end[i] = static_cast<int32_t>(s.causal ? x + 1 : at_most(x + s.window, s.S));
    }
    for (i64 i = 0; i < kPanel; i += kLanes) all[i / kLanes] = {first[i + kLanes - 1], end[i]};
    for (i64 i = 0; i < kPanel; i += kStrip) {
      strip_near[i / kStrip] = {first[i], end[i + kStrip - 1]};
      strip_before[i / kStrip] = {0, 0};
    }
    whole = {first[0], end[kPanel - 1]}, shared = {first[kPanel - 1], end[0]};
  }
  void any(const AttentionShape& s, i64 b, i64 t, i64 count) {
    whole = {0, 0}, shared = {0, s.S};
    Range document = {0, 0};
    for (Range& r : strip_near) r = {0, 0};
    for (Range& r : strip_before) r = {0, 0};
    for (Range& r : all) r = {0, s.S};
    for (i64 i = 0; i < kPanel; ++i) {
      const i64 query = t + at_most(i, count - 1);
      document = document_of(s, b, query + s.S - s.T, document);
      const TwoRanges r = seen_by(s, b, query, document);
      first[i] = static_cast<int32_t>(r.near.begin), end[i] = static_cast<int32_t>(r.near.end);
      before_first[i] = static_cast<int32_t>(r.before.begin);
      before_end[i] = static_cast<int32_t>(r.before.end);
      two |= !empty(r.before);
      all[i / kLanes] = common(all[i / kLanes], r.near);
      shared = common(shared, r.near);
      strip_near[i / kStrip] = hull(strip_near[i / kStrip], r.near);
      strip_before[i / kStrip] = hull(strip_before[i / kStrip], r.before);
      whole = hull(whole, hull(r.near, r.before));
    }
  }

  // The rows of the tile [key, key + count) that a strip's queries see, in whole blocks of a
  // product.
  Range rows(i64 strip, i64 key, i64 count) const {
    const Range tile = {key, key + count};
    const Range r = hull(common(strip_near[strip], tile), common(strip_before[strip], tile));
    if (empty(r)) return {0, 0};
    return {(r.begin - key) / kTileRows * kTileRows,
            at_most(round_up(r.end - key, kTileRows), count)};
  }
  // The same of any of the first `width` queries.
  Range rows_of_all(i64 width, i64 key, i64 count) const {
    Range r = {0, 0};
    for (i64 strip = 0; strip < width; strip += kStrip)
      r = hull(r, rows(strip / kStrip, key, count));
    return r;
  }
  // Of such rows, those that all queries of the vector at `lane` see.
  Range free_rows(i64 lane, i64 key, Range rows) const {
    const Range r = common({all[lane / kLanes].begin - key, all[lane / kLanes].end - key}, rows);
    return empty(r) ? Range{rows.end, rows.end} : r;
  }
  // The queries below `count` from the first to the last that see one of the keys.
  Range queries(Range keys, i64 count) const {
    if (shared.begin <= keys.begin && keys.end <= shared.end) return {0, count};
    i64 from = 0, to = count;
    while (from < to && !sees(from, keys)) ++from;
    while (from < to && !sees(to - 1, keys)) --to;
    return {from, to};
  }
  bool sees(i64 query, Range keys) const {
    return !empty(common(keys, {first[query], end[query]})) ||
           (two && !empty(common(keys, {before_first[query], before_end[query]})));
  }

  // x in the lanes whose query sees the key, `hidden` in the others.
  vf mask(vf x, i64 lane, i64 key, float hidden) const {
    const vi here = vi{} + static_cast<int32_t>(key);
    vi sees = (here >= load_ints(first + lane)) & (here < load_ints(end + lane));
    if (two)
      sees |= (here >= load_ints(before_first + lane)) & (here < load_ints(before_end + lane));
    return sees ? x : broadcast(hidden);
  }
  // x for queries that see a key, 0 for the others.
  vf of_those_who_see(vf x, i64 lane) const {
    return load_ints(first + lane) < load_ints(end + lane) ? x : vf{};
  }
};

}  // namespace TENARAI_ISA
}  // namespace tenarai
