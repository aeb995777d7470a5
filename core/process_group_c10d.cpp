#include "core/process_group_c10d.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include "core/check.h"
#include "core/guard.h"
#include "core/process_liveness.h"

namespace fovea {
namespace {

using Clock = ProcessLiveness::Clock;
using c10d::Backend;

constexpr auto kPoll = std::chrono::microseconds(100);
// c10d's own limits: far beyond ours, which know whether the others are alive.
constexpr auto kNever = std::chrono::hours(24 * 365);

Clock::duration to_duration(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// The first line of what went wrong.
std::string reason_of(std::exception_ptr exception) {
  try {
    std::rethrow_exception(std::move(exception));
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    return text.substr(0, text.find('\n'));
  } catch (const std::exception& error) {
    const std::string text = error.what();
    return text.substr(0, text.find('\n'));
  } catch (...) {
    return "unknown exception";
  }
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

// c10d logs what we report ourselves, in its own form.
void quiet_log() {
  constexpr int kFatal = 3;
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = kFatal;
}

[[noreturn]] void throw_unjoined(const ProcessPlace& place, const std::string& reason) {
  const std::string address = str(place.master_addr, ":", place.master_port);
  if (contains(reason, "EADDRINUSE") || contains(reason, "address already in use")) {
    throw Error(ErrorCode::usage, "MASTER_PORT",
                str("port ", place.master_port, " is in use already: choose another"));
  }
  if (place.rank == 0) {
    throw Error(ErrorCode::device, "process group",
                str("rank 0 waited at ", address, " for ", place.world_size - 1,
                    " other processes: ", reason));
  }
  throw Error(ErrorCode::device, "process group",
              str("rank ", place.rank, " cannot join rank 0 at ", address, ": ", reason));
}

c10d::TCPStoreOptions store_options(const ProcessPlace& place, Clock::duration timeout) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(place.master_port);
  options.timeout = std::chrono::ceil<std::chrono::seconds>(timeout);
  return options;
}

bool is_loopback(const std::string& address) {
  return address == "localhost" || address == "::1" || address.rfind("127.", 0) == 0;
}

c10::intrusive_ptr<Backend> make_gloo(const c10::intrusive_ptr<c10d::Store>& store,
                                      const ProcessPlace& place, Clock::duration timeout) {
  using c10d::ProcessGroupGloo;
  const auto limit = std::chrono::ceil<std::chrono::milliseconds>(timeout);
  auto options = ProcessGroupGloo::Options::create_default(limit);  // heeds GLOO_SOCKET_IFNAME
  // What this machine's name resolves to need not be there; the loopback address is.
  if (is_loopback(place.master_addr)) {
    options->devices = {ProcessGroupGloo::createDeviceForHostname("127.0.0.1")};
  }
  c10::intrusive_ptr<Backend> gloo = c10::make_intrusive<ProcessGroupGloo>(
      c10::make_intrusive<c10d::PrefixStore>("gloo", store), place.rank, place.world_size, options);
  gloo->setTimeout(kNever);
  return gloo;
}

#ifdef USE_C10D_NCCL
c10::intrusive_ptr<Backend> make_nccl(const c10::intrusive_ptr<c10d::Store>& store,
                                      const ProcessPlace& place) {
  // Its watchdog threads must neither end the process nor wait for kernels that never finish: we
  // notice and report that ourselves. There is no other way to tell it.
  for (const char* name : {"TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ENABLE_MONITORING",
                           "TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_RETHROW_CUDA_ERRORS",
                           "TORCH_NCCL_PROPAGATE_ERROR", "TORCH_NCCL_BLOCKING_WAIT"}) {
    ::setenv(name, "0", /*replace=*/1);
  }
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = kNever;
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(
      c10::make_intrusive<c10d::PrefixStore>("nccl", store), place.rank, place.world_size, options);
}
#endif

// [numel] bytes of any dense tensor, sharing its memory.
at::Tensor bytes_of(const at::Tensor& tensor) { return tensor.detach().view({-1}).view(at::kByte); }

class C10dGroup final : public ProcessGroup {
 public:
  C10dGroup(const ProcessPlace& place, at::Device device, const ProcessGroupOptions& options)
      : ProcessGroup(place, device),
        join_(to_duration(options.join_seconds)),
        silence_(to_duration(options.silence_seconds)),
        stall_(to_duration(options.stall_seconds)) {
    try {
      connect();
    } catch (...) {
      leave();  // no destructor runs
      throw;
    }
  }

  ~C10dGroup() override { leave(); }

 private:
  void connect();
  void connect_gpus();
  c10::intrusive_ptr<c10d::Store> connect_store(const c10d::TCPStoreOptions& options);
  void leave() noexcept;
  void abandon() noexcept;

  void do_all_reduce_mean(at::Tensor& tensor) override;
  void do_broadcast(at::Tensor& tensor, int root) override;
  void do_agree_max(std::span<double> values) override;
  void do_wait_device() override;

  // Runs one operation of the group; what it throws becomes the group's failure.
  void attempt(const char* what, const std::function<void()>& operation);
  [[noreturn]] void fail(const char* what, const std::string& reason);
  std::optional<int> silent_rank(Clock::duration limit) const {
    return liveness_ ? liveness_->silent_rank(limit) : std::nullopt;
  }
  // Blocks until `done()`, or throws when another process is gone or none comes.
  void await(const std::function<bool()>& done);
  void await(const c10::intrusive_ptr<c10d::Work>& work);
  // Runs `body`, which may never return, in a thread that is abandoned when `await` throws.
  void await_thread(std::function<void()> body);
  // Tensors go through NCCL on GPUs, which orders them on the current stream.
  void finish(const c10::intrusive_ptr<c10d::Work>& work);
  Backend& tensor_backend() { return nccl_ ? *nccl_ : *gloo_; }

  Clock::duration join_;
  Clock::duration silence_;
  Clock::duration stall_;
  c10::intrusive_ptr<c10d::Store> store_;
  c10::intrusive_ptr<Backend> gloo_;  // between hosts
  c10::intrusive_ptr<Backend> nccl_;  // between GPUs
  std::unique_ptr<ProcessLiveness> liveness_;
  std::optional<Error> failure_;
};

void C10dGroup::connect() {
  quiet_log();
  auto options = store_options(place(), join_);
  options.isServer = rank() == 0;
  options.numWorkers = static_cast<size_t>(world_size());
  store_ = connect_store(options);
  liveness_ = std::make_unique<ProcessLiveness>(connect_store(store_options(place(), join_)),
                                                rank(), world_size());
  attempt("joining", [&] { gloo_ = make_gloo(store_, place(), join_); });
  barrier();
  if (device().is_cuda()) connect_gpus();
}

// The store looks at its own limit between attempts only, which come less and less often.
c10::intrusive_ptr<c10d::Store> C10dGroup::connect_store(const c10d::TCPStoreOptions& options) {
  const auto store = std::make_shared<c10::intrusive_ptr<c10d::Store>>();
  const Clock::duration stall = std::exchange(stall_, join_ + std::chrono::milliseconds(1500));
  try {
    await_thread([store, options, host = place().master_addr] {
      *store = c10::make_intrusive<c10d::TCPStore>(host, options);
    });
  } catch (...) {
    throw_unjoined(place(), reason_of(std::current_exception()));
  }
  stall_ = stall;
  return *store;
}

// NCCL connects during its first collective, in which it waits for the others without a limit.
void C10dGroup::connect_gpus() {
#ifdef USE_C10D_NCCL
  nccl_ = make_nccl(store_, place());
#endif
  attempt("joining the GPUs", [&] {
    await_thread([nccl = nccl_, device = device()] {
      std::vector<at::Tensor> tensors = {at::zeros({1}, at::TensorOptions().device(device))};
      nccl->allreduce(tensors)->wait();
    });
  });
  wait_device();
  barrier();
}

void C10dGroup::leave() noexcept {
  const bool unwinding = std::uncaught_exceptions() > 0;
  if (nccl_ && !failure_ && !unwinding) {
    // That the others have left by now is no failure.
    liveness_.reset();
    stall_ = join_;
    try {
      attempt("leaving", [&] { await_thread([nccl = nccl_] { nccl->shutdown(); }); });
    } catch (const Error&) {
    }
  }
  // After an error of this process alone Gloo is idle, and its connections must close so that the
  // others notice; NCCL may be in the middle of something.
  if (failure_ || (nccl_ && unwinding)) abandon();
}

// Never destroyed: their destructors wait for operations that may not end.
void C10dGroup::abandon() noexcept {
  mark_process_group_abandoned();
  (void)nccl_.release();
  if (!failure_) return;
  (void)gloo_.release();
  (void)store_.release();
}

void C10dGroup::await_thread(std::function<void()> body) {
  struct State {
    std::atomic<bool> done = false;
    std::exception_ptr exception;
  };
  const auto state = std::make_shared<State>();
  std::thread thread([state, body = std::move(body)] {
    try {
      body();
    } catch (...) {
      state->exception = std::current_exception();
    }
    state->done = true;
  });
  try {
    await([&state] { return state->done.load(); });
  } catch (...) {
    mark_process_group_abandoned();
    thread.detach();
    throw;
  }
  thread.join();
  if (state->exception) std::rethrow_exception(state->exception);
}

void C10dGroup::attempt(const char* what, const std::function<void()>& operation) {
  if (failure_) throw Error(*failure_);
  try {
    operation();
  } catch (...) {
    fail(what, reason_of(std::current_exception()));
  }
}

void C10dGroup::fail(const char* what, const std::string& reason) {
  // A connection that closes does not say whose it was; the missing signs of life do, soon after.
  const auto short_silence = std::min<Clock::duration>(silence_, std::chrono::seconds(2));
  const auto deadline = Clock::now() + short_silence + std::chrono::seconds(1);
  std::optional<int> gone;
  while (!(gone = silent_rank(short_silence)) && Clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  const std::string who = gone ? str("no sign of life from rank ", *gone, ", it is gone")
                               : str("a process of the group is gone or failed");
  failure_.emplace(
      ErrorCode::device, "process group",
      str("rank ", rank(), " of ", world_size(), ", ", what, ": ", who, " (", reason, ")"));
  throw Error(*failure_);
}

void C10dGroup::await(const std::function<bool()>& done) {
  const auto start = Clock::now();
  while (!done()) {
    const auto waited = Clock::now() - start;
    // What a process sent before it left may still be on its way for a moment.
    if (waited > std::chrono::seconds(1) && silent_rank(silence_)) {
      throw std::runtime_error("no answer");
    }
    if (waited > stall_) {
      throw std::runtime_error(
          str("still waiting after ", std::chrono::duration<double>(stall_).count(), " s"));
    }
    std::this_thread::sleep_for(kPoll);
  }
}

void C10dGroup::await(const c10::intrusive_ptr<c10d::Work>& work) {
  await([&work] { return work->isCompleted(); });
  work->wait();  // throws what went wrong
}

void C10dGroup::finish(const c10::intrusive_ptr<c10d::Work>& work) {
  nccl_ ? static_cast<void>(work->wait()) : await(work);
}

void C10dGroup::do_all_reduce_mean(at::Tensor& tensor) {
  if (tensor.numel() == 0) return;
  attempt("all_reduce_mean", [&] {
    const c10::AutoGradMode no_gradient(false);
    std::vector<at::Tensor> tensors = {tensor.detach()};
    finish(tensor_backend().allreduce(tensors));
    tensors[0].div_(world_size());
  });
}

void C10dGroup::do_broadcast(at::Tensor& tensor, int root) {
  if (tensor.numel() == 0) return;
  attempt("broadcast", [&] {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    std::vector<at::Tensor> tensors = {bytes_of(tensor)};
    finish(tensor_backend().broadcast(tensors, options));
  });
}

void C10dGroup::do_agree_max(std::span<double> values) {
  attempt("agree_max", [&] {
    // A copy: Gloo may still write to it after we have given up.
    std::vector<at::Tensor> tensors = {
        at::empty({static_cast<int64_t>(values.size())}, at::kDouble)};
    std::copy(values.begin(), values.end(), tensors[0].mutable_data_ptr<double>());
    c10d::AllreduceOptions options;
    options.reduceOp = c10d::ReduceOp::MAX;
    await(gloo_->allreduce(tensors, options));
    const double* agreed = tensors[0].const_data_ptr<double>();
    std::copy(agreed, agreed + values.size(), values.begin());
  });
}

void C10dGroup::do_wait_device() {
  attempt("waiting for the GPU", [&] {
    const c10::DeviceGuard guard(device());
    c10::Event event(device().type());
    event.record(c10::impl::VirtualGuardImpl(device().type()).getStream(device()));
    await([&event] { return event.query(); });
  });
}

}  // namespace

std::unique_ptr<ProcessGroup> make_c10d_group(const ProcessPlace& place, at::Device device,
                                              const ProcessGroupOptions& options) {
  require(device.is_cpu() || device.is_cuda(), ErrorCode::usage, "process group",
          "expected the CPU or a GPU, got ", device);
#ifndef USE_C10D_NCCL
  require(device.is_cpu(), ErrorCode::usage, "process group",
          "built without NCCL: several processes can use the CPU only");
#endif
  return guarded("process group",
                 [&] { return std::make_unique<C10dGroup>(place, device, options); });
}

}  // namespace fovea
