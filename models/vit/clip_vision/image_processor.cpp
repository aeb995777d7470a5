#include "models/vit/clip_vision/image_processor.h"

#include <algorithm>
#include <cmath>
#include <set>

#include <ATen/ATen.h>
#include <ATen/Version.h>

#include "core/check.h"

namespace fovea::models {
namespace {

constexpr int64_t kMaxSide = 16'384;
constexpr int64_t kMaxPixels = int64_t{64} << 20;

/// The side `name` of the object `key`.
int64_t side(const Config& config, const std::string& key, const Json& object,
             const std::string& name) {
  const Json& value = object[name];
  const bool whole = value.is_number_integer() && value >= 1 && value <= kMaxSide;
  if (!whole) config.refuse(key, str("expected ", name, " to be an integer from 1 to ", kMaxSide));
  return value.get<int64_t>();
}

std::set<std::string> keys_of(const Json& object) {
  std::set<std::string> keys;
  for (const auto& [name, value] : object.items()) keys.insert(name);
  return keys;
}

/// A size given as a number or as [height, width], written out as an object.
Json written_out(const Config& config, const std::string& key, bool square) {
  const Json& value = config.json()[key];
  if (value.is_object()) return value;
  if (value.is_number_integer()) {
    return square ? Json{{"height", value}, {"width", value}} : Json{{"shortest_edge", value}};
  }
  if (value.is_array() && value.size() == 2) return Json{{"height", value[0]}, {"width", value[1]}};
  config.refuse(key, "expected a number, [height, width] or an object of sizes");
}

/// Numbers per channel, or one for all.
std::vector<double> channel_values(Config& config, const std::string& key,
                                   std::vector<double> fallback) {
  if (config.has(key) && config.json()[key].is_number()) return {config.number(key, 0)};
  std::vector<double> values = config.numbers(key, std::move(fallback));
  if (values.size() != 1 && values.size() != 3) config.refuse(key, "expected one number or three");
  return values;
}

}  // namespace

ClipImageProcessor::ClipImageProcessor(const Config& given, Report& report) {
  Config config(given.json(), given.where());
  const std::string type = config.text("image_processor_type", "CLIPImageProcessor");
  if (type != "CLIPImageProcessor" && type != "CLIPImageProcessorFast" &&
      type != "CLIPFeatureExtractor") {
    config.refuse("image_processor_type", "expected CLIPImageProcessor");
  }
  do_resize_ = config.boolean("do_resize", true);
  do_center_crop_ = config.boolean("do_center_crop", true);
  do_rescale_ = config.boolean("do_rescale", true);
  do_normalize_ = config.boolean("do_normalize", true);
  if (config.boolean("do_pad", false)) config.refuse("do_pad", "not supported");
  read_size(config);
  read_crop(config);
  read_values(config);
  // Pictures come as RGB; the rest says how the reference hands its result over.
  config.ignore({"do_convert_rgb", "feature_extractor_type", "processor_class", "pad_size",
                 "data_format", "input_data_format", "device", "return_tensors", "disable_grouping",
                 "image_seq_length"});
  config.finish(report);
}

void ClipImageProcessor::read_size(Config& config) {
  const bool square = config.boolean("default_to_square", false);
  config.ignore({"size"});
  if (config.boolean("use_square_size", false)) {
    rule_ = SizeRule::exact;
    size_ = {224, 224};
    return;
  }
  if (!config.has("size")) return;
  const Json size = written_out(config, "size", square);
  const std::set<std::string> keys = keys_of(size);
  const auto pair = [&](const char* first, const char* second) {
    return std::array<int64_t, 2>{side(config, "size", size, first),
                                  side(config, "size", size, second)};
  };
  if (keys == std::set<std::string>{"height", "width"}) {
    rule_ = SizeRule::exact;
    size_ = pair("height", "width");
  } else if (keys == std::set<std::string>{"shortest_edge"}) {
    rule_ = SizeRule::shortest_edge;
    size_ = pair("shortest_edge", "shortest_edge");
  } else if (keys == std::set<std::string>{"shortest_edge", "longest_edge"}) {
    rule_ = SizeRule::shortest_and_longest_edge;
    size_ = pair("shortest_edge", "longest_edge");
  } else if (keys == std::set<std::string>{"max_height", "max_width"}) {
    rule_ = SizeRule::largest_box;
    size_ = pair("max_height", "max_width");
  } else {
    config.refuse("size", "expected height and width, max_height and max_width, or shortest_edge");
  }
}

void ClipImageProcessor::read_crop(Config& config) {
  config.ignore({"crop_size"});
  if (!config.has("crop_size")) return;
  const Json size = written_out(config, "crop_size", /*square=*/true);
  if (keys_of(size) != std::set<std::string>{"height", "width"}) {
    config.refuse("crop_size", "expected height and width");
  }
  crop_ = {side(config, "crop_size", size, "height"), side(config, "crop_size", size, "width")};
  if (crop_[0] * crop_[1] > kMaxPixels)
    config.refuse("crop_size", str("expected at most ", kMaxPixels, " pixels"));
}

void ClipImageProcessor::read_values(Config& config) {
  constexpr int64_t kBicubic = 3;  // PIL's numbers
  switch (config.integer("resample", kBicubic, 0, 5)) {
    case 0:
      filter_ = Filter::nearest;
      break;
    case 2:
      filter_ = Filter::bilinear;
      break;
    case kBicubic:
      filter_ = Filter::bicubic;
      break;
    default:
      config.refuse("resample", "expected 0 (nearest), 2 (bilinear) or 3 (bicubic)");
  }
  rescale_factor_ = config.number("rescale_factor", 1.0 / 255);
  if (rescale_factor_ == 0) config.refuse("rescale_factor", "expected a number other than 0");
  mean_ = channel_values(config, "image_mean", mean_);
  std_ = channel_values(config, "image_std", std_);
  if (std::find(std_.begin(), std_.end(), 0.0) != std_.end()) {
    config.refuse("image_std", "expected numbers other than 0");
  }
}

/// Height and width after resizing; fractions are cut off where the reference cuts them off.
std::array<int64_t, 2> ClipImageProcessor::resized(int64_t height, int64_t width) const {
  const auto shorter = static_cast<double>(std::min(height, width));
  const auto longer = static_cast<double>(std::max(height, width));
  const auto oriented = [&](int64_t short_side, int64_t long_side) -> std::array<int64_t, 2> {
    if (width <= height) return {long_side, short_side};
    return {short_side, long_side};
  };
  switch (rule_) {
    case SizeRule::exact:
      return size_;
    case SizeRule::shortest_edge:
      return oriented(size_[0],
                      static_cast<int64_t>(static_cast<double>(size_[0]) * longer / shorter));
    case SizeRule::shortest_and_longest_edge: {
      double side = static_cast<double>(size_[0]);
      int64_t short_side = size_[0];
      if (longer / shorter * side > static_cast<double>(size_[1])) {
        side = static_cast<double>(size_[1]) * shorter / longer;
        short_side = static_cast<int64_t>(std::nearbyint(side));
      }
      if (std::min(height, width) == short_side) return {height, width};
      const auto long_side = static_cast<int64_t>(side * longer / shorter);
      if (height == width) return {short_side, long_side};
      return oriented(short_side, long_side);
    }
    case SizeRule::largest_box: {
      const double scale = std::min(static_cast<double>(size_[0]) / static_cast<double>(height),
                                    static_cast<double>(size_[1]) / static_cast<double>(width));
      return {static_cast<int64_t>(static_cast<double>(height) * scale),
              static_cast<int64_t>(static_cast<double>(width) * scale)};
    }
  }
  return size_;
}

at::Tensor ClipImageProcessor::resize(const at::Tensor& image) const {
  const auto [height, width] = resized(image.size(2), image.size(3));
  require(height >= 1 && width >= 1, ErrorCode::bad_data, "image processor", "a picture of ",
          image.size(3), " x ", image.size(2), " pixels would be resized to ", width, " x ",
          height);
  require(height <= kMaxPixels / width, ErrorCode::resource, "image processor", "a picture of ",
          image.size(3), " x ", image.size(2), " pixels would be resized to ", width, " x ", height,
          ", above ", kMaxPixels, " pixels");
  if (height == image.size(2) && width == image.size(3)) return image;
  const std::array<int64_t, 2> size{height, width};
  switch (filter_) {
    case Filter::nearest:
      return at::_upsample_nearest_exact2d(image, size, std::nullopt, std::nullopt);
    case Filter::bicubic:
      return at::_upsample_bicubic2d_aa(image, size, /*align_corners=*/false);
    case Filter::bilinear:
      break;
  }
  // torchvision interpolates bytes only where that is vectorized, else it rounds an fp32 result.
  const std::string simd = at::get_cpu_capability();
  if (simd == "AVX2" || simd == "AVX512") {
    return at::_upsample_bilinear2d_aa(image, size, /*align_corners=*/false);
  }
  return at::_upsample_bilinear2d_aa(image.to(at::kFloat), size, false).round().to(at::kByte);
}

at::Tensor ClipImageProcessor::center_crop(const at::Tensor& image) const {
  at::Tensor framed = image;
  const int64_t missing_rows = std::max<int64_t>(crop_[0] - image.size(2), 0);
  const int64_t missing_columns = std::max<int64_t>(crop_[1] - image.size(3), 0);
  if (missing_rows > 0 || missing_columns > 0) {
    framed = at::constant_pad_nd(image, {missing_columns / 2, (missing_columns + 1) / 2,
                                         missing_rows / 2, (missing_rows + 1) / 2});
  }
  const int64_t top = (framed.size(2) - crop_[0]) / 2;
  const int64_t left = (framed.size(3) - crop_[1]) / 2;
  return framed.slice(2, top, top + crop_[0]).slice(3, left, left + crop_[1]);
}

at::Tensor ClipImageProcessor::normalize(const at::Tensor& image) const {
  if (!do_normalize_) return do_rescale_ ? image * rescale_factor_ : image.to(at::kFloat);
  const auto per_channel = [&](const std::vector<double>& values) {
    const at::Tensor fp32 = at::tensor(values, at::kDouble).to(at::kFloat).view({-1, 1, 1});
    // Rescaling is folded into both, which saves a pass and decides how values round.
    return do_rescale_ ? fp32 * (1.0 / rescale_factor_) : fp32;
  };
  return (image.to(at::kFloat) - per_channel(mean_)) / per_channel(std_);
}

at::Tensor ClipImageProcessor::process(const Picture& picture) const {
  check_picture_size(picture.width, picture.height, "image");
  FOVEA_ASSERT(picture.rgb.size() == size_t{3} * picture.width * picture.height);
  // from_blob takes no const pointer; the bytes are copied before anything is written.
  auto* bytes = const_cast<uint8_t*>(picture.rgb.data());
  at::Tensor image =
      at::from_blob(bytes, {picture.height, picture.width, Picture::channels}, at::kByte)
          .permute({2, 0, 1})
          .contiguous()
          .unsqueeze(0);
  if (do_resize_) image = resize(image);
  if (do_center_crop_) image = center_crop(image);
  return normalize(image).contiguous();
}

ClipImageProcessor load_clip_image_processor(const fs::path& folder, Report& report) {
  const fs::path whole = folder / "processor_config.json";
  if (fs::exists(whole)) {
    const Json json = read_json(whole);
    if (json.is_object() && json.contains("image_processor")) {
      return ClipImageProcessor(
          Config(json["image_processor"], whole.string() + ": image_processor"), report);
    }
  }
  return ClipImageProcessor(Config::read(folder / "preprocessor_config.json"), report);
}

}  // namespace fovea::models
