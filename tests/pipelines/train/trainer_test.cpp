#include "pipelines/train/trainer.h"

#include <fstream>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "core/interrupt.h"
#include "tests/pipelines/train/training_rig.h"
#include "tests/support/files.h"

namespace fovea::pipelines {
namespace {

using fovea::test::expect_error;
using test::InterruptAt;
using test::tiny_config;
using test::TinyRun;

double relative_distance(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

class TrainerTest : public testing::TestWithParam<const char*> {
 protected:
  // The folder of one run; the transformer's has a small autoencoder in it.
  fs::path out(const std::string& name) {
    const fs::path folder = root_.path / name;
    if (std::string(GetParam()) == "transformer" && !fs::exists(folder / "vae")) {
      Json config = tiny_config("autoencoder");
      config["steps"] = 1;
      TinyRun(folder, config).trainer.run();
    }
    return folder;
  }

  static const char* component() {
    return std::string(GetParam()) == "autoencoder" ? "vae" : "transformer";
  }

  fovea::test::TemporaryFolder root_;
};

TEST_P(TrainerTest, TenAndTenStepsEqualTwentyBitForBit) {
  Json config = tiny_config(GetParam());
  config["steps"] = 20;
  config["data"]["buckets"][0]["refresh"] = 3;
  config["data"]["buckets"].push_back(config["data"]["buckets"][0]);
  config["data"]["buckets"][1]["width"] = 24;
  TinyRun whole(out("whole"), config);
  whole.trainer.run();

  {
    TinyRun first(out("parts"), config, false, std::make_unique<InterruptAt>(10));
    expect_error(ErrorCode::interrupted, "SIGINT", [&] { first.trainer.run(); });
  }
  TinyRun second(out("parts"), config, /*resume=*/true);
  EXPECT_EQ(second.report.facts["resumed_from_step"], 10);
  second.trainer.run();
  EXPECT_TRUE(at::equal(second.weights(), whole.weights()));
  EXPECT_EQ(read_file(root_.path / "parts" / component() / "diffusion_pytorch_model.safetensors",
                      1 << 24),
            read_file(root_.path / "whole" / component() / "diffusion_pytorch_model.safetensors",
                      1 << 24));
}

// In fp64: the autoencoder's gradients in fp32 are off by 2e-6, however many parts there are.
TEST_P(TrainerTest, MicroBatchesEqualOneBatch) {
  Json config = tiny_config(GetParam());
  config["steps"] = 1;
  const auto distance = [&](at::ScalarType dtype) {
    at::Tensor gradient[2];
    for (const int64_t parts : {1, 4}) {
      config["micro_batches"] = parts;
      TinyRun run(out(str(at::toString(dtype), parts)), config, /*resume=*/false,
                  make_progress(ProgressStyle::silent), dtype);
      run.trainer.run();
      gradient[parts == 4] = run.trainer.parameters().gradient().clone();
    }
    return relative_distance(gradient[1], gradient[0]);
  };
  EXPECT_LE(distance(at::kDouble), 1e-12);
  // The transformer keeps the contract's bound in fp32 too.
  if (component() == std::string("transformer")) {
    EXPECT_LE(distance(at::kFloat), 1e-6);
  }
}

TEST_P(TrainerTest, LossFalls) {
  Json config = tiny_config(GetParam());
  config["steps"] = 60;
  config["log_every"] = 20;
  config["optimizer"]["learning_rate"] = 5e-3;
  TinyRun run(out("run"), config);
  run.trainer.run();
  std::ifstream log(root_.path / "run" / "training" / (std::string(GetParam()) + ".log.jsonl"));
  std::string first;
  std::getline(log, first);
  EXPECT_LT(run.trainer.last_loss(), 0.8 * Json::parse(first)["loss"].get<double>());
}

TEST_P(TrainerTest, RefusesToReplaceARun) {
  Json config = tiny_config(GetParam());
  config["steps"] = 1;
  TinyRun(out("run"), config).trainer.run();
  expect_error(ErrorCode::conflict, "--resume", [&] { TinyRun again(out("run"), config); });
  config["seed"] = 4;
  expect_error(ErrorCode::conflict, "another configuration",
               [&] { TinyRun again(out("run"), config, /*resume=*/true); });
}

// A whole run on the same eight rendered clips: it knows them, and no others.
TEST(TrainerOverfitTest, LearnsEightClipsByHeart) {
  const fovea::test::TemporaryFolder root;
  Json config = tiny_config("autoencoder");
  config["steps"] = 1;
  TinyRun(root.path, config).trainer.run();
  config = tiny_config("transformer");
  config["steps"] = 600;
  config["log_every"] = 50;
  config["caption_dropout"] = 0;
  config["evaluation"]["clips"] = 64;
  config["optimizer"] = {{"learning_rate", 1e-2}, {"warmup_steps", 10}};
  Json& bucket = config["data"]["buckets"][0];
  bucket["batch"] = 8;
  bucket["depth"] = 1;
  bucket["refresh"] = 0;
  TinyRun run(root.path, config);
  run.trainer.run();
  const Json& evaluation = run.report.facts["evaluation"];
  EXPECT_LT(run.trainer.last_loss(), 0.1);
  EXPECT_GT(evaluation["unseen"][0]["loss"].get<double>(), 0.3);
}

INSTANTIATE_TEST_SUITE_P(Stages, TrainerTest, testing::Values("autoencoder", "transformer"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace fovea::pipelines
