#include "pipelines/train/train_log.h"

#include "tests/support/files.h"

namespace fovea::pipelines {
namespace {

using test::TemporaryFolder;
using test::write_bytes;

TEST(TrainLog, AppendsLines) {
  const TemporaryFolder folder;
  const TrainLog log(folder.path / "log.jsonl");
  log.begin(0);
  EXPECT_EQ(read_file(log.path(), 100), "");
  log.write({{"step", 1}});
  log.write({{"step", 2}});
  EXPECT_EQ(read_file(log.path(), 100), "{\"step\":1}\n{\"step\":2}\n");
}

TEST(TrainLog, DropsWhatComesAgain) {
  const TemporaryFolder folder;
  const TrainLog log(folder.path / "log.jsonl");
  const std::string kept = "{\"step\":1,\"loss\":2.5}\n{\"step\":2,\"event\":\"skipped\"}\n";
  write_bytes(log.path(), kept +
                              "{\"step\":2,\"evaluation\":{}}\n{\"step\":3}\n{\"loss\":1}\n7\n"
                              "{\"step\":\"1\"}\n\n{\"step\":1,\"lo");
  log.begin(2);
  EXPECT_EQ(read_file(log.path(), 1000), kept);
  log.begin(0);
  EXPECT_EQ(read_file(log.path(), 1000), "");
}

}  // namespace
}  // namespace fovea::pipelines
