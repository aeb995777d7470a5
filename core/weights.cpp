#include "core/weights.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "core/check.h"
#include "core/guard.h"
#include "core/interrupt.h"
#include "core/parallel.h"
#include "core/weight_index.h"

namespace fovea {
namespace {

// Bytes read at once. Each thread needs a buffer of this size while it casts.
constexpr int64_t kPieceBytes = 4 << 20;

at::ScalarType scalar_type(StoredType type) {
  switch (type) {
    case StoredType::boolean:
      return at::kBool;
    case StoredType::u8:
      return at::kByte;
    case StoredType::i8:
      return at::kChar;
    case StoredType::f8_e5m2:
      return at::kFloat8_e5m2;
    case StoredType::f8_e4m3:
      return at::kFloat8_e4m3fn;
    case StoredType::i16:
      return at::kShort;
    case StoredType::u16:
      return at::kUInt16;
    case StoredType::f16:
      return at::kHalf;
    case StoredType::bf16:
      return at::kBFloat16;
    case StoredType::i32:
      return at::kInt;
    case StoredType::u32:
      return at::kUInt32;
    case StoredType::f32:
      return at::kFloat;
    case StoredType::f64:
      return at::kDouble;
    case StoredType::i64:
      return at::kLong;
    case StoredType::u64:
      return at::kUInt64;
  }
  throw Error(ErrorCode::internal, "stored type", str("unknown value ", static_cast<int>(type)));
}

StoredType stored_type(at::ScalarType type, const std::string& where, const std::string& name) {
  for (int i = 0; i <= static_cast<int>(StoredType::u64); ++i) {
    if (scalar_type(static_cast<StoredType>(i)) == type) return static_cast<StoredType>(i);
  }
  throw Error(ErrorCode::usage, where,
              str("tensor '", name, "': the type ", at::toString(type), " cannot be stored"));
}

at::Tensor allocate(at::IntArrayRef shape, at::TensorOptions options, const std::string& where) {
  return guarded(where, [&] { return at::empty(shape, options); });
}

std::span<std::byte> bytes_of(at::Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.mutable_data_ptr()), tensor.nbytes()};
}

std::string location(const WeightIndex::Entry& entry) {
  return entry.file->path().string() + ": tensor '" + entry.tensor->name + "'";
}

// Whether no element has all the bits of `mask`, those that only NaN and Inf have set together.
template <typename Word>
bool none_has(std::span<const std::byte> bytes, Word mask) {
  const Word* words = reinterpret_cast<const Word*>(bytes.data());
  bool found = false;
  for (size_t i = 0; i < bytes.size() / sizeof(Word); ++i) found |= (words[i] & mask) == mask;
  return !found;
}

bool all_finite(std::span<const std::byte> bytes, StoredType type) {
  switch (type) {
    case StoredType::f64:
      return none_has<uint64_t>(bytes, 0x7FF0000000000000u);
    case StoredType::f32:
      return none_has<uint32_t>(bytes, 0x7F800000u);
    case StoredType::f16:
      return none_has<uint16_t>(bytes, 0x7C00u);
    case StoredType::bf16:
      return none_has<uint16_t>(bytes, 0x7F80u);
    case StoredType::f8_e5m2:
      return none_has<uint8_t>(bytes, 0x7Cu);
    case StoredType::f8_e4m3:
      return none_has<uint8_t>(bytes, 0x7Fu);
    default:
      return true;
  }
}

// Reads a tensor into `out`, which has its shape and any floating dtype and device (the stored one
// for others), piece by piece: the whole never exists in a second type.
void read_into(const WeightIndex::Entry& entry, const at::Tensor& out) {
  const at::ScalarType stored = scalar_type(entry.tensor->type);
  const bool direct = out.device().is_cpu() && out.scalar_type() == stored;
  const int64_t width = static_cast<int64_t>(stored_type_size(entry.tensor->type));
  const int64_t piece = kPieceBytes / width;
  const int64_t numel = entry.tensor->numel();
  const at::Tensor flat = out.view({-1});
  parallel_for((numel + piece - 1) / piece, 1, [&](int64_t begin, int64_t end) {
    at::Tensor buffer;
    if (!direct) buffer = at::empty({std::min(piece, numel)}, at::TensorOptions(stored));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t count = std::min(piece, numel - i * piece);
      at::Tensor target = flat.narrow(0, i * piece, count);
      at::Tensor part = direct ? target : buffer.narrow(0, 0, count);
      entry.file->read(*entry.tensor, static_cast<uint64_t>(i * piece * width), bytes_of(part));
      require(all_finite(bytes_of(part), entry.tensor->type), ErrorCode::non_finite,
              entry.file->path().string(), "tensor '", entry.tensor->name, "' holds NaN or Inf");
      if (!direct) target.copy_(part);
    }
  });
}

// "'a', 'b' and 3 more" for the first 8 names.
std::string first_names(const std::vector<std::string>& names) {
  std::string out;
  const size_t shown = std::min<size_t>(names.size(), 8);
  for (size_t i = 0; i < shown; ++i) out += (i ? ", '" : "'") + printable(names[i], 120) + "'";
  return names.size() > shown ? str(out, " and ", names.size() - shown, " more") : out;
}

}  // namespace

struct WeightFiles::Impl {
  Impl(const fs::path& folder, const std::string& stem, WeightOptions wanted)
      : index(folder, stem), options(wanted) {}
  Impl(const fs::path& file, WeightOptions wanted) : index(file), options(wanted) {}

  WeightIndex index;
  WeightOptions options;
  std::set<std::string> used;
  std::vector<std::string> missing;
};

WeightFiles::WeightFiles(const fs::path& folder, const std::string& stem, WeightOptions options)
    : impl_(std::make_unique<Impl>(folder, stem, options)) {}

WeightFiles::WeightFiles(const fs::path& file, WeightOptions options)
    : impl_(std::make_unique<Impl>(file, options)) {}

WeightFiles::~WeightFiles() = default;
WeightFiles::WeightFiles(WeightFiles&&) noexcept = default;

at::Tensor WeightFiles::get(const std::string& name, at::IntArrayRef shape, bool keep_fp32) {
  throw_if_interrupted();
  const bool half = impl_->options.dtype == at::kHalf || impl_->options.dtype == at::kBFloat16;
  const auto options = at::TensorOptions(keep_fp32 && half ? at::kFloat : impl_->options.dtype)
                           .device(impl_->options.device);
  const WeightIndex::Entry* entry = impl_->index.find(name);
  if (entry == nullptr) {
    impl_->missing.push_back(name);
    // One element seen as many: a config that lies about sizes costs no memory.
    return at::zeros({}, options).expand(shape);
  }
  impl_->used.insert(name);
  require(at::IntArrayRef(entry->tensor->shape) == shape, ErrorCode::bad_data, location(*entry),
          "expected shape ", shape, ", got ", at::IntArrayRef(entry->tensor->shape));
  require(is_floating(entry->tensor->type), ErrorCode::bad_data, location(*entry),
          "expected a floating dtype, got ", stored_type_name(entry->tensor->type));
  const at::Tensor out = allocate(shape, options, location(*entry));
  read_into(*entry, out);
  return out;
}

bool WeightFiles::has(const std::string& name) const { return impl_->index.find(name) != nullptr; }

void WeightFiles::ignore(const std::string& name) { impl_->used.insert(name); }

void WeightFiles::finish(Report& report) {
  const std::string where = impl_->index.path().string();
  const std::vector<std::string>& missing = impl_->missing;
  require(missing.empty(), ErrorCode::bad_data, where, missing.size(), " missing ",
          missing.size() == 1 ? "tensor: " : "tensors: ", first_names(missing));
  if (!impl_->index.variant().empty()) {
    report.warn(where,
                str("the variant '", impl_->index.variant(), "' is taken: there is no plain file"));
  }
  std::vector<std::string> unused;
  for (const WeightIndex::Entry& entry : impl_->index.entries()) {
    if (!impl_->used.contains(entry.tensor->name)) unused.push_back(entry.tensor->name);
  }
  if (!unused.empty()) {
    report.warn(where,
                str(unused.size(), unused.size() == 1 ? " unused tensor: " : " unused tensors: ",
                    first_names(unused)));
  }
}

uint64_t WeightFiles::bytes() const { return impl_->index.bytes(); }

RandomParameters::RandomParameters(uint64_t seed, WeightOptions options, double scale)
    : RandomParameters(at::detail::createCPUGenerator(seed), options, scale) {}

RandomParameters::RandomParameters(at::Generator generator, WeightOptions options, double scale)
    : generator_(std::move(generator)), options_(options), scale_(scale) {}

at::Tensor RandomParameters::get(const std::string& name, at::IntArrayRef shape, bool keep_fp32) {
  throw_if_interrupted();
  const bool half = options_.dtype == at::kHalf || options_.dtype == at::kBFloat16;
  const at::ScalarType dtype = keep_fp32 && half ? at::kFloat : options_.dtype;
  const auto floats = at::TensorOptions(at::kFloat).device(generator_.device());
  at::Tensor values = allocate(shape, floats, name);
  values.normal_(0, 1, generator_);
  count_ += values.numel();
  const bool norm = name.find("norm") != std::string::npos || name.ends_with("gamma");
  if (norm && name.ends_with("bias")) {
    values.mul_(0.1 * scale_);
  } else if (norm) {
    values.mul_(0.1 * scale_).add_(1);
  } else {
    const int64_t fan_in = shape.size() > 1 ? std::max<int64_t>(values.numel() / shape[0], 1) : 1;
    const double deviation = shape.size() > 1 ? 1 / std::sqrt(static_cast<double>(fan_in)) : 0.1;
    values.mul_(scale_ * deviation);
  }
  return values.to(options_.device, dtype);
}

at::Tensor load_tensor(const SafetensorsFile& file, const StoredTensor& stored) {
  throw_if_interrupted();
  const std::string where = file.path().string() + ": tensor '" + stored.name + "'";
  at::Tensor tensor = allocate(stored.shape, scalar_type(stored.type), where);
  file.read(stored, 0, bytes_of(tensor));
  return tensor;
}

TensorMap load_tensors(const fs::path& path) {
  const SafetensorsFile file(path);
  TensorMap tensors;
  for (const StoredTensor& stored : file.tensors()) {
    tensors.emplace(stored.name, load_tensor(file, stored));
  }
  return tensors;
}

void save_tensors(const fs::path& path, const TensorMap& tensors, bool overwrite,
                  const std::map<std::string, std::string>& metadata) {
  AtomicFile file(path, overwrite);
  SafetensorsHeader header;
  header.metadata = metadata;
  for (const auto& [name, tensor] : tensors) {
    require(tensor.defined(), ErrorCode::usage, path.string(), "tensor '", name, "' is undefined");
    header.tensors.push_back(
        {name, stored_type(tensor.scalar_type(), path.string(), name), tensor.sizes().vec()});
  }
  file.write(safetensors_preamble(header));
  for (const StoredTensor& stored : header.tensors) {
    throw_if_interrupted();
    at::Tensor values = tensors.at(stored.name).detach().cpu().contiguous();
    file.write(std::span<const std::byte>(bytes_of(values)));
  }
  file.commit();
}

}  // namespace fovea
