#pragma once

#include "core/media/picture.h"

namespace fovea {

/// Interpolation of `resize`; the support in source pixels at scale 1 is 1, 2 and 3.
enum class ResizeFilter { bilinear, bicubic, lanczos };

/// Resizes as PIL's `Image.resize((width, height), resample)` does, bit for bit.
///
/// Each output pixel is a weighted mean of the source pixels under the filter, which widens with
/// the scale when shrinking (so that nothing aliases). Two passes, each rounded to 8 bits; weights
/// are fixed-point numbers with 22 fractional bits.
///
/// picture        RGB, 8 bits a channel
/// width, height  new size, at least 1
/// throws         Error usage below 1, resource above the size budget of `PictureLimits`
/// source         Pillow's documented resampling ("convolution based", antialiased), 8-bit form
/// differs        from Pillow 12 and older, which always take rows before columns: this is Pillow
///                13's order, which rounds differently where columns come first
Picture resize(const Picture& picture, int width, int height, ResizeFilter filter);

}  // namespace fovea
