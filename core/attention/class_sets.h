#pragma once

#include <ATen/core/Tensor.h>

#include "core/attention/plan.h"

// Set algebra of what is kept: "sink or window or text", "window without sink".

namespace fovea {

// Of class maps: uint8 of `block_class`, which broadcast to each other. A block is in the set that
// a map stands for unless its class is `skip`. Where both keep a block the stronger class stays:
// exact before summaries, and of these the one with the lower number, whose means are the finer
// ones. Nothing is read by the host.

/// Blocks of either.
at::Tensor unite(const at::Tensor& a, const at::Tensor& b);
/// Blocks of both.
at::Tensor intersect(const at::Tensor& a, const at::Tensor& b);
/// Blocks of a that b skips, with their class of a.
at::Tensor without(const at::Tensor& a, const at::Tensor& b);
/// Blocks that a skips, exact. `a` may be bool.
at::Tensor complement(const at::Tensor& a);

// The same of selections over the same blocks. One without a class map keeps all blocks, exact.
// Summaries that both have count as one; of the others those of a come first. Predicates cut
// through blocks, so that only some of them go along, as each function says.
//
// throws  Error usage: other blocks (blocks that only the device knows have to be the same tensor),
//         predicates that blocks cannot express, no blocks where a class map is needed

/// Both have the same predicates.
Selection unite(const Selection& a, const Selection& b);
/// Any predicates; those of both hold.
Selection intersect(const Selection& a, const Selection& b);
/// b has no predicates; those of a hold.
Selection without(const Selection& a, const Selection& b);
/// a has no predicates.
Selection complement(const Selection& a);

/// Whether two sides are cut alike as far as the host can see.
bool same_blocks(const BlockAxis& a, const BlockAxis& b);

}  // namespace fovea
