#pragma once

#include <cstddef>
#include <cstdint>

#include "core/attention/plan.h"

// Words of a plan's text form: what its writer and its reader share.

namespace fovea {

template <typename Value>
struct Name {
  const char* name;
  Value value;
};

inline constexpr Name<FeatureMap> kFeatureMaps[] = {{"softmax", FeatureMap::softmax},
                                                    {"elu", FeatureMap::elu_plus_one},
                                                    {"relu", FeatureMap::relu}};
inline constexpr Name<NumberFormat> kFormats[] = {
    {"storage", NumberFormat::storage}, {"int8", NumberFormat::int8}, {"e4m3", NumberFormat::e4m3}};
inline constexpr Name<ScaleUnit> kUnits[] = {{"head", ScaleUnit::head},
                                             {"block", ScaleUnit::block},
                                             {"token", ScaleUnit::token},
                                             {"channel", ScaleUnit::channel}};

/// Bits that a class of a block takes in a file: what `bits` of a class map has to be.
inline int64_t class_bits(size_t summaries) {
  const size_t classes = block_class::first_summary + summaries;
  return classes <= 2 ? 1 : classes <= 4 ? 2 : classes <= 16 ? 4 : 8;
}

}  // namespace fovea
