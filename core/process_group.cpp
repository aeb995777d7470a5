#include "core/process_group.h"

#include <array>
#include <atomic>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <optional>
#include <utility>

#include <ATen/ATen.h>

#include "core/check.h"
#include "core/device.h"
#include "core/file.h"
#include "core/process_group_c10d.h"

namespace fovea {
namespace {

constexpr std::array kVariables = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR",
                                   "MASTER_PORT"};
constexpr int kMaxProcesses = 1 << 16;

std::atomic<bool> g_abandoned = false;

// An empty variable counts as one that is not set.
std::optional<std::string> read_variable(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return std::nullopt;
  return text;
}

std::string need_variable(const char* name) {
  const auto text = read_variable(name);
  require(text.has_value(), ErrorCode::usage, name,
          "not set, but others of RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are");
  return *text;
}

int read_number(const char* name, int min, int max) {
  const std::string text = need_variable(name);
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  require(whole && value >= min && value <= max, ErrorCode::usage, name, "expected a number from ",
          min, " to ", max, ", got '", text, "'");
  return value;
}

class SingleProcess : public ProcessGroup {
 public:
  SingleProcess(const ProcessPlace& place, at::Device device) : ProcessGroup(place, device) {}

 private:
  void do_all_reduce_mean(at::Tensor&) override {}
  void do_broadcast(at::Tensor&, int) override {}
  void do_agree_max(std::span<double>) override {}
  void do_wait_device() override { synchronize(device()); }
};

}  // namespace

ProcessPlace read_process_place() {
  bool any = false;
  for (const char* name : kVariables) any = any || read_variable(name).has_value();
  if (!any) return {};
  ProcessPlace place;
  place.world_size = read_number("WORLD_SIZE", 1, kMaxProcesses);
  place.rank = read_number("RANK", 0, place.world_size - 1);
  place.local_rank = read_number("LOCAL_RANK", 0, place.world_size - 1);
  place.local_world_size = read_variable("LOCAL_WORLD_SIZE")
                               ? read_number("LOCAL_WORLD_SIZE", 1, place.world_size)
                               : place.world_size;
  place.master_addr = need_variable("MASTER_ADDR");
  place.master_port = read_number("MASTER_PORT", 1, 65535);
  return place;
}

std::unique_ptr<ProcessGroup> ProcessGroup::make(const ProcessPlace& place, at::Device device,
                                                 const ProcessGroupOptions& options) {
  require(place.world_size >= 1 && place.rank >= 0 && place.rank < place.world_size,
          ErrorCode::usage, "process group", "rank ", place.rank, " of ", place.world_size,
          " processes");
  require(options.join_seconds > 0 && options.silence_seconds > 0 && options.stall_seconds > 0,
          ErrorCode::usage, "process group", "time limits must be positive");
  if (place.world_size == 1) return std::make_unique<SingleProcess>(place, device);
#if FOVEA_HAS_DISTRIBUTED
  return make_c10d_group(place, device, options);
#else
  throw Error(ErrorCode::usage, "process group",
              str("built without several processes (FOVEA_DISTRIBUTED, package libgloo-dev), but ",
                  place.world_size, " are asked for"));
#endif
}

ProcessGroup::ProcessGroup(ProcessPlace place, at::Device device)
    : place_(std::move(place)), device_(device) {}

void ProcessGroup::check_tensor(const char* where, const at::Tensor& tensor) const {
  require(tensor.defined() && tensor.layout() == at::kStrided && tensor.is_contiguous(),
          ErrorCode::bad_data, where, "expected a contiguous tensor");
  require(tensor.device() == device_, ErrorCode::bad_data, where, "expected a tensor on ", device_,
          ", got ", tensor.device());
}

void ProcessGroup::all_reduce_mean(at::Tensor& tensor) {
  check_tensor("all_reduce_mean", tensor);
  require(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble,
          ErrorCode::bad_data, "all_reduce_mean", "expected fp32 or fp64, got ",
          tensor.scalar_type());
  do_all_reduce_mean(tensor);
}

void ProcessGroup::broadcast(at::Tensor& tensor, int root) {
  check_tensor("broadcast", tensor);
  require(root >= 0 && root < world_size(), ErrorCode::usage, "broadcast", "root ", root, " of ",
          world_size(), " processes");
  do_broadcast(tensor, root);
}

void ProcessGroup::agree_max(std::span<double> values) {
  for (double& value : values) {
    if (std::isnan(value)) value = std::numeric_limits<double>::infinity();
  }
  do_agree_max(values);
}

void ProcessGroup::barrier() {
  double nothing = 0;
  agree_max({&nothing, 1});
}

void ProcessGroup::require_equal(const std::string& what, std::string_view text) {
  // 52 bits: every value has an exact double.
  const auto hash = static_cast<double>(std::stoull(sha256(text).substr(0, 13), nullptr, 16));
  std::array<double, 2> range = {hash, -hash};
  agree_max(range);
  require(range[0] == -range[1], ErrorCode::conflict, what,
          "differs between the processes (this is rank ", rank(), " of ", world_size(),
          "): all must run the same command");
}

void ProcessGroup::wait_device() {
  if (!device_.is_cpu()) do_wait_device();
}

void mark_process_group_abandoned() noexcept { g_abandoned = true; }

bool process_group_abandoned() noexcept { return g_abandoned; }

}  // namespace fovea
