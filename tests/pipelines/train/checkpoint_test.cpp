#include "pipelines/train/checkpoint.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "tests/support/files.h"

namespace fovea::pipelines {
namespace {

TrainingState some_state() {
  return {.step = 12,
          .skipped = 2,
          .tensors = {{"master/a", at::arange(6, at::kFloat).view({2, 3})},
                      {"adam_steps", at::scalar_tensor(10.0f)}}};
}

// The code of the error that loading throws; internal when there is none.
ErrorCode load_error(const Checkpoint& checkpoint) {
  try {
    checkpoint.load();
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::internal;
}

class CheckpointTest : public testing::Test {
 protected:
  fovea::test::TemporaryFolder folder_;
  fs::path path_ = folder_.path / "run.safetensors";
};

TEST_F(CheckpointTest, ComesBack) {
  const Checkpoint checkpoint(path_, "settings");
  EXPECT_FALSE(checkpoint.load().has_value());
  checkpoint.save(some_state());
  const auto state = checkpoint.load();
  ASSERT_TRUE(state.has_value());
  EXPECT_EQ(state->step, 12);
  EXPECT_EQ(state->skipped, 2);
  EXPECT_TRUE(at::equal(state->tensors.at("master/a"), some_state().tensors.at("master/a")));
}

TEST_F(CheckpointTest, RefusesOtherSettings) {
  Checkpoint(path_, "settings").save(some_state());
  EXPECT_EQ(load_error(Checkpoint(path_, "other settings")), ErrorCode::conflict);
}

TEST_F(CheckpointTest, FindsEveryFlippedByte) {
  const Checkpoint checkpoint(path_, "settings");
  checkpoint.save(some_state());
  std::string bytes = read_file(path_, 1 << 20);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<char>(bytes[i] ^ 0x11);
    fovea::test::write_bytes(path_, bytes);
    const ErrorCode code = load_error(checkpoint);
    // A flipped byte of the settings makes it another run's.
    EXPECT_TRUE(code == ErrorCode::bad_data || code == ErrorCode::conflict ||
                code == ErrorCode::resource)
        << "byte " << i;
    bytes[i] = static_cast<char>(bytes[i] ^ 0x11);
  }
}

TEST_F(CheckpointTest, RefusesEveryTruncation) {
  const Checkpoint checkpoint(path_, "settings");
  checkpoint.save(some_state());
  const std::string bytes = read_file(path_, 1 << 20);
  for (size_t size = 0; size < bytes.size(); ++size) {
    fovea::test::write_bytes(path_, bytes.substr(0, size));
    EXPECT_EQ(load_error(checkpoint), ErrorCode::bad_data) << size << " bytes";
  }
}

}  // namespace
}  // namespace fovea::pipelines
