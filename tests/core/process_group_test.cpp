#include "core/process_group.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "tests/support/child_process.h"
#include "tests/support/files.h"

namespace fovea {
namespace {

using test::ChildProcess;
using test::expect_error;
using test::TemporaryFolder;

// A listening socket on a free port of the loopback address.
struct Listener {
  Listener() : descriptor(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    auto* base = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(::bind(descriptor, base, size), 0);
    EXPECT_EQ(::listen(descriptor, 1), 0);
    EXPECT_EQ(::getsockname(descriptor, base, &size), 0);
    port = ntohs(address.sin_port);
  }
  ~Listener() { ::close(descriptor); }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  int descriptor;
  int port = 0;
};

int free_port() { return Listener().port; }

// Runs `process_group_child ARGUMENTS` as some ranks of a group.
class Children {
 public:
  Children(std::vector<std::string> arguments, int world_size, int port)
      : command_(std::move(arguments)), world_size_(world_size), port_(port) {
    command_.insert(command_.begin(), "process_group_child");
  }

  Children& start(int rank) {
    children_.emplace(std::piecewise_construct, std::forward_as_tuple(rank),
                      std::forward_as_tuple(command_,
                                            std::vector<std::string>{
                                                str("RANK=", rank), str("WORLD_SIZE=", world_size_),
                                                str("LOCAL_RANK=", rank), "MASTER_ADDR=127.0.0.1",
                                                str("MASTER_PORT=", port_)},
                                            folder_.path / std::to_string(rank)));
    return *this;
  }
  Children& start_all() {
    for (int rank = 0; rank < world_size_; ++rank) start(rank);
    return *this;
  }
  void wait_until_ready() {
    for (auto& [rank, child] : children_) ASSERT_TRUE(child.wait_for("ready")) << child.output();
  }
  ChildProcess& operator[](int rank) { return children_.at(rank); }

 private:
  TemporaryFolder folder_;
  std::vector<std::string> command_;
  int world_size_;
  int port_;
  std::map<int, ChildProcess> children_;
};

// The variables of a place, and no others of their kind, while it lives.
class Variables {
 public:
  explicit Variables(const std::map<std::string, std::string>& values) {
    for (const char* name : kNames) ::unsetenv(name);
    for (const auto& [name, value] : values) ::setenv(name.c_str(), value.c_str(), 1);
  }
  ~Variables() {
    for (const char* name : kNames) ::unsetenv(name);
  }

 private:
  static constexpr const char* kNames[] = {"RANK",        "WORLD_SIZE",  "LOCAL_RANK",
                                           "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE"};
};

const std::map<std::string, std::string> kSecondOfThree = {{"RANK", "1"},
                                                           {"WORLD_SIZE", "3"},
                                                           {"LOCAL_RANK", "0"},
                                                           {"MASTER_ADDR", "node-1"},
                                                           {"MASTER_PORT", "29500"}};

TEST(ProcessPlace, NoVariableMeansOneProcessAlone) {
  const Variables none({});
  const ProcessPlace place = read_process_place();
  EXPECT_EQ(place.rank, 0);
  EXPECT_EQ(place.world_size, 1);
  EXPECT_EQ(place.local_rank, 0);
}

TEST(ProcessPlace, IsReadFromTheVariables) {
  const Variables variables(kSecondOfThree);
  const ProcessPlace place = read_process_place();
  EXPECT_EQ(place.rank, 1);
  EXPECT_EQ(place.world_size, 3);
  EXPECT_EQ(place.local_rank, 0);
  EXPECT_EQ(place.master_addr, "node-1");
  EXPECT_EQ(place.master_port, 29500);
  EXPECT_EQ(place.local_world_size, 3);
  auto values = kSecondOfThree;
  values["LOCAL_WORLD_SIZE"] = "1";
  const Variables on_two_machines(values);
  EXPECT_EQ(read_process_place().local_world_size, 1);
}

TEST(ProcessPlace, AMissingVariableIsNamed) {
  for (const auto& [name, value] : kSecondOfThree) {
    auto values = kSecondOfThree;
    values.erase(name);
    const Variables variables(values);
    expect_error(ErrorCode::usage, name + ": not set", [] { read_process_place(); });
  }
}

TEST(ProcessPlace, WrongNumbersAreNamed) {
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"RANK", "3"},        {"RANK", "-1"},           {"RANK", "1x"},
      {"RANK", "0x1"},      {"WORLD_SIZE", "0"},      {"WORLD_SIZE", "1e2"},
      {"LOCAL_RANK", "3"},  {"LOCAL_RANK", " 0"},     {"LOCAL_WORLD_SIZE", "4"},
      {"MASTER_PORT", "0"}, {"MASTER_PORT", "65536"}, {"MASTER_PORT", "99999999999"}};
  for (const auto& [name, value] : wrong) {
    auto values = kSecondOfThree;
    values[name] = value;
    const Variables variables(values);
    expect_error(ErrorCode::usage, name + ": expected a number", [] { read_process_place(); });
  }
}

TEST(ProcessGroup, OneProcessChangesNothing) {
  const auto group = ProcessGroup::make({}, at::kCPU);
  EXPECT_EQ(group->rank(), 0);
  EXPECT_EQ(group->world_size(), 1);
  at::Tensor tensor = at::arange(3, at::kFloat);
  group->all_reduce_mean(tensor);
  group->broadcast(tensor, 0);
  EXPECT_TRUE(tensor.equal(at::arange(3, at::kFloat)));
  double value = 7;
  group->agree_max({&value, 1});
  EXPECT_EQ(value, 7);
  group->barrier();
  group->require_equal("the seed", "5");
  group->wait_device();
  EXPECT_FALSE(process_group_abandoned());
}

TEST(ProcessGroup, WrongTensorsAreRefused) {
  const auto group = ProcessGroup::make({}, at::kCPU);
  at::Tensor half = at::zeros({2}, at::kHalf);
  expect_error(ErrorCode::bad_data, "fp32 or fp64", [&] { group->all_reduce_mean(half); });
  at::Tensor strided = at::zeros({4, 4}).t();
  expect_error(ErrorCode::bad_data, "contiguous", [&] { group->all_reduce_mean(strided); });
  at::Tensor meta = at::zeros({2}, at::TensorOptions().device(at::kMeta));
  expect_error(ErrorCode::bad_data, "tensor on cpu", [&] { group->broadcast(meta, 0); });
  expect_error(ErrorCode::usage, "root 1", [&] { group->broadcast(half, 1); });
}

TEST(ProcessGroup, WrongPlacesAreRefused) {
  expect_error(ErrorCode::usage, "rank 2 of 2",
               [] { ProcessGroup::make({.rank = 2, .world_size = 2}, at::kCPU); });
  expect_error(ErrorCode::usage, "positive",
               [] { ProcessGroup::make({}, at::kCPU, {.join_seconds = 0}); });
}

class SeveralProcesses : public testing::Test {
 protected:
  void SetUp() override {
    if (!FOVEA_HAS_DISTRIBUTED) GTEST_SKIP() << "built without libgloo-dev (FOVEA_DISTRIBUTED)";
  }
};

TEST_F(SeveralProcesses, TwoExchange) {
  Children children({"exchange"}, 2, free_port());
  children.start_all();
  for (int rank = 0; rank < 2; ++rank) {
    children[rank].expect_end(0,
                              "mean 0 1.5 3 4.5 6 7.5\nprecise 0.5\nbroadcast 10 11 12\nscalar 0\n"
                              "max 3 4 inf\n");
  }
}

TEST_F(SeveralProcesses, ThreeExchange) {
  Children children({"exchange"}, 3, free_port());
  children.start_all();
  for (int rank = 0; rank < 3; ++rank) {
    children[rank].expect_end(0, "mean 0 2 4 6 8 10\nprecise 1\nbroadcast 10 11 12\n");
  }
}

TEST_F(SeveralProcesses, DifferentTextsAreAConflictEverywhere) {
  Children children({"differ"}, 2, free_port());
  children.start_all();
  children[0].expect_end(7, "error: 7: the seed: differs between the processes");
  children[1].expect_end(7, "error: 7: the seed: differs between the processes");
}

TEST_F(SeveralProcesses, AKilledProcessIsNoticedInAReduction) {
  Children children({"reduce"}, 3, free_port());
  children.start_all().wait_until_ready();
  children[1].send(SIGKILL);
  children[0].expect_end(6, "no sign of life from rank 1, it is gone");
  children[2].expect_end(6, "error: 6: process group: rank 2 of 3, all_reduce_mean: ");
}

TEST_F(SeveralProcesses, RankZeroMayBeTheOneThatIsKilled) {
  Children children({"agree"}, 2, free_port());
  children.start_all().wait_until_ready();
  children[0].send(SIGKILL);
  children[1].expect_end(6, "no sign of life from rank 0, it is gone");
}

TEST_F(SeveralProcesses, AStoppedProcessCountsAsGone) {
  Children children({"agree", "2"}, 2, free_port());
  children.start_all().wait_until_ready();
  children[1].send(SIGSTOP);
  children[0].expect_end(6, "no sign of life from rank 1, it is gone");
}

TEST_F(SeveralProcesses, AnErrorOfOneProcessEndsTheOthers) {
  Children children({"fail"}, 2, free_port());
  children.start_all();
  children[1].expect_end(5, "error: 5: loss: of its own");
  children[0].expect_end(6, "error: 6: process group: rank 0 of 2, agree_max: ");
}

TEST_F(SeveralProcesses, ABusyProcessIsWaitedFor) {
  Children children({"busy", "2"}, 2, free_port());
  children.start_all();
  children[0].expect_end(0, "");
  children[1].expect_end(0, "");
}

TEST_F(SeveralProcesses, AreReportedWhenTheyDoNotCome) {
  const int port = free_port();
  Children alone({"exchange", "20", "1"}, 2, port);
  alone.start(1);
  alone[1].expect_end(6, str("rank 1 cannot join rank 0 at 127.0.0.1:", port));
  alone.start(0);
  alone[0].expect_end(6, str("rank 0 waited at 127.0.0.1:", port, " for 1 other processes"));
}

TEST_F(SeveralProcesses, ATakenPortIsReported) {
  const Listener listener;
  Children children({"exchange", "20", "1"}, 2, listener.port);
  children.start(0);
  children[0].expect_end(2, str("MASTER_PORT: port ", listener.port, " is in use already"));
}

#if !FOVEA_HAS_DISTRIBUTED
TEST(ProcessGroup, SeveralProcessesNeedABuildWithC10d) {
  expect_error(ErrorCode::usage, "FOVEA_DISTRIBUTED",
               [] { ProcessGroup::make({.world_size = 2}, at::kCPU); });
}
#endif

}  // namespace
}  // namespace fovea
