#include "pipelines/train/train_config.h"

#include <gtest/gtest.h>

#include "core/check.h"
#include "tests/pipelines/train/training_rig.h"
#include "tests/support/files.h"

namespace fovea::pipelines {
namespace {

using fovea::test::expect_error;
using test::tiny_config;

// The tiny configuration with the value at a JSON pointer put in.
Json with(const char* pointer, const Json& value) {
  Json config = tiny_config("autoencoder");
  config[Json::json_pointer(pointer)] = value;
  return config;
}

void refuses(const char* pointer, const Json& value, const std::string& text) {
  SCOPED_TRACE(pointer);
  expect_error(ErrorCode::bad_data, text,
               [&] { TrainConfig::parse(with(pointer, value), "train.json"); });
}

TEST(TrainConfig, ReadsKeysAndDefaults) {
  const TrainConfig config = TrainConfig::parse(tiny_config("transformer"), "train.json");
  EXPECT_EQ(config.stage, TrainStage::transformer);
  EXPECT_EQ(std::string(config.stage_name()), "transformer");
  EXPECT_EQ(config.steps, 6);
  EXPECT_EQ(config.seed, 3u);
  EXPECT_EQ(config.micro_batches, 1);
  EXPECT_EQ(config.checkpoint_every, 1000);
  EXPECT_EQ(config.text_length, 24);
  EXPECT_EQ(config.samples, 1);
  EXPECT_EQ(config.scenes.max_objects, 1);
  ASSERT_EQ(config.buckets.size(), 1u);
  EXPECT_EQ(config.buckets[0].frames, 5);
  EXPECT_EQ(config.buckets[0].depth, 2);
  EXPECT_EQ(config.buckets[0].refresh, 1);
  EXPECT_EQ(config.buckets[0].flow_shift, 3);
  EXPECT_EQ(config.loss.kl, 1e-5);
  EXPECT_EQ(config.optimizer.learning_rate, 2e-3);
  EXPECT_EQ(config.evaluation_clips, 2);
  EXPECT_EQ(config.model_config("vae").integer("base_dim", 0, 1, 99), 8);
  EXPECT_FALSE(config.model_config("video").has("base_dim"));
}

TEST(TrainConfig, RefusesUnknownKeys) {
  for (const char* pointer : {"/setps", "/data/sample", "/data/buckets/0/size", "/loss/l2",
                              "/data/scenes/shape", "/optimizer/lr", "/evaluation/steps"}) {
    const std::string text = pointer;
    refuses(pointer, 1, text.substr(text.rfind('/') + 1));
  }
  refuses("/model/unet", Json::object(), "unet");
}

TEST(TrainConfig, RefusesValues) {
  refuses("/stage", "diffusion", "key 'stage'");
  for (const Json& value : {Json(0), Json("many"), Json(1.5), Json(true), Json(-1)}) {
    for (const char* key : {"steps", "micro_batches", "log_every", "checkpoint_every"}) {
      refuses(str("/", key).c_str(), value, str("key '", key, "'"));
    }
  }
  refuses("/seed", -1, "key 'seed'");
  refuses("/caption_dropout", 1.1, "key 'caption_dropout'");
  refuses("/loss/mse", -1, "key 'mse'");
  refuses("/loss", 3, "key 'loss'");
  refuses("/data", Json::array(), "key 'data'");
  refuses("/data/samples", 2, "key 'samples'");
  refuses("/data/scenes", "all", "key 'scenes'");
  refuses("/data/scenes/max_objects", 4, "key 'max_objects'");
  refuses("/optimizer/ema", 1, "key 'ema'");
  refuses("/model", 3, "key 'model'");
  refuses("/model/vae", 3, "key 'vae'");
}

TEST(TrainConfig, RefusesBuckets) {
  for (const Json& value : {Json::array(), Json::object(), Json(nullptr)}) {
    refuses("/data/buckets", value, "key 'buckets'");
  }
  refuses("/data/buckets/0", 3, "buckets[0]");
  refuses("/data/buckets/0/frames", 6, "buckets[0]: key 'frames'");
  refuses("/data/buckets/0/height", 0, "key 'height'");
  refuses("/data/buckets/0/width", 20, "key 'width'");
  refuses("/data/buckets/0/batch", 0, "key 'batch'");
  refuses("/data/buckets/0/depth", 0, "key 'depth'");
  refuses("/data/buckets/0/refresh", -1, "key 'refresh'");
  refuses("/data/buckets/0/flow_shift", 0, "key 'flow_shift'");
  refuses("/data/buckets/0/weight", 0, "key 'buckets'");
}

}  // namespace
}  // namespace fovea::pipelines
