#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <ATen/core/Tensor.h>

namespace fovea {

/// Which of the processes that work together this one is.
struct ProcessPlace {
  int rank = 0;              ///< 0 to world_size - 1
  int world_size = 1;        ///< processes on all machines
  int local_rank = 0;        ///< 0 to world_size - 1: number on this machine, and of its GPU
  int local_world_size = 1;  ///< processes on this machine
  std::string master_addr;   ///< host name or address where rank 0 runs; empty when alone
  int master_port = 0;       ///< TCP port that rank 0 listens at, 1 to 65535; 0 when alone
};

/// The place as RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT tell it, the variables
/// that `fovea train --gpus`, torchrun and other launchers set; none of them: one process alone.
/// LOCAL_WORLD_SIZE may be missing: then all processes are taken to be on this machine.
///
/// throws  Error usage naming the variable that is missing, no number or out of range
ProcessPlace read_process_place();

struct ProcessGroupOptions {
  /// How long the others may take to join.
  double join_seconds = 20;
  /// How long a process may give no sign of life before it counts as gone. Each has a thread that
  /// gives them, whatever else it does.
  double silence_seconds = 20;
  /// How long processes that are alive may let one wait in an operation of the group; longer than
  /// what only one of them does, such as writing a checkpoint.
  double stall_seconds = 600;
};

/// Processes that train together: every one calls the same functions in the same order, from one
/// thread.
///
/// Uses LibTorch's c10d: a TCPStore at rank 0, Gloo between the hosts, NCCL between GPUs. Works in
/// every build with one process; with more it needs FOVEA_DISTRIBUTED. While a group of several
/// processes is made, LibTorch's own log is set to fatal errors, unless TORCH_CPP_LOG_LEVEL is set.
///
/// All functions throw Error device when a process of the group is gone (at once when its
/// connection closes, else after `silence_seconds`) or does not come (`stall_seconds`). After that
/// the group is of no more use: every call throws the same, and its destructor leaves what may
/// never end (threads, GPU work) behind; see `process_group_abandoned`.
class ProcessGroup {
 public:
  /// Joins the group, and returns when all have.
  ///
  /// device  the CPU, or the GPU of this process
  /// throws  Error usage when the port is taken or this build has no c10d, device when rank 0
  ///         cannot be reached or the others do not come within `join_seconds`
  static std::unique_ptr<ProcessGroup> make(const ProcessPlace& place, at::Device device,
                                            const ProcessGroupOptions& options = {});
  virtual ~ProcessGroup() = default;
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;

  int rank() const { return place_.rank; }
  int world_size() const { return place_.world_size; }
  at::Device device() const { return device_; }

  /// Replaces the tensor by its mean over the processes: fp32 or fp64, contiguous, on the group's
  /// device, the same shape everywhere. On GPUs it is queued on the current stream and does not
  /// block the host.
  void all_reduce_mean(at::Tensor& tensor);
  /// Replaces the tensor by that of process `root`: any dtype, else as `all_reduce_mean`.
  void broadcast(at::Tensor& tensor, int root);
  /// Replaces each number by its maximum over the processes and blocks until all have come; a NaN
  /// counts as +infinity.
  void agree_max(std::span<double> values);
  /// Blocks until all processes have come.
  void barrier();
  /// Throws Error conflict in every process unless all give the same text; `what` names it.
  void require_equal(const std::string& what, std::string_view text);
  /// Blocks until the current stream of the group's GPU is done; nothing on CPU. Unlike LibTorch's
  /// own ways to wait it ends, with Error device, when another process is gone and NCCL's kernels
  /// therefore never finish: call it before anything that waits for the GPU (`item()`, a copy to
  /// the host) after an `all_reduce_mean` or `broadcast`.
  void wait_device();

 protected:
  ProcessGroup(ProcessPlace place, at::Device device);
  const ProcessPlace& place() const { return place_; }

 private:
  // As the public functions, for checked arguments.
  virtual void do_all_reduce_mean(at::Tensor& tensor) = 0;
  virtual void do_broadcast(at::Tensor& tensor, int root) = 0;
  virtual void do_agree_max(std::span<double> values) = 0;
  virtual void do_wait_device() = 0;

  void check_tensor(const char* where, const at::Tensor& tensor) const;

  ProcessPlace place_;
  at::Device device_;
};

/// Whether a group that failed left threads or GPU work behind. A program should then end with
/// std::_Exit once its output is flushed: exit handlers could wait for them.
bool process_group_abandoned() noexcept;

}  // namespace fovea
