#include "pipelines/train/train_config.h"

#include "core/check.h"
#include "core/json.h"

namespace fovea::pipelines {
namespace {

constexpr int64_t kMaxSide = 4096;

// The object `key` of `parent` with its own path for errors; empty when absent.
Config child(Config& parent, const std::string& key) {
  const Json& json = parent.json();
  parent.ignore({key.c_str()});
  const auto found = json.find(key);
  if (found == json.end()) return Config(Json::object(), parent.where() + ": " + key);
  if (!found->is_object()) parent.refuse(key, "expected an object");
  return Config(*found, parent.where() + ": " + key);
}

double share(Config& config, const std::string& key, double fallback, double high) {
  const double value = config.number(key, fallback);
  if (!(value >= 0 && value <= high)) config.refuse(key, str("expected a number from 0 to ", high));
  return value;
}

void finish(const Config& config) {
  Report strict(/*strict=*/true);  // a key that is misspelt must not pass unseen
  config.finish(strict);
}

ClipBucket read_bucket(const Json& json, const std::string& where) {
  require(json.is_object(), ErrorCode::bad_data, where, "expected an object");
  Config config(json, where);
  ClipBucket out;
  out.frames = config.integer("frames", out.frames, 1, 10'000);
  if (out.frames % 4 != 1) config.refuse("frames", "expected 4 k + 1");
  for (const auto& [key, side] : {std::pair("height", &out.height), {"width", &out.width}}) {
    *side = config.integer(key, *side, 8, kMaxSide);
    if (*side % 8 != 0) config.refuse(key, "expected a multiple of 8");
  }
  out.batch = config.integer("batch", out.batch, 1, 65'536);
  out.depth = config.integer("depth", out.depth, 1, 1 << 20);
  out.refresh = config.integer("refresh", out.refresh, 0, 1 << 20);
  out.weight = share(config, "weight", out.weight, 1e9);
  out.flow_shift = config.number("flow_shift", out.flow_shift);
  if (!(out.flow_shift > 0)) config.refuse("flow_shift", "expected a number above 0");
  finish(config);
  return out;
}

void read_data(Config data, TrainConfig& out) {
  Config scenes = child(data, "scenes");
  out.scenes = SceneOptions::read(scenes);
  finish(scenes);
  out.samples = data.integer("samples", out.samples, 1, 4);
  if (out.samples != 1 && out.samples != 4) data.refuse("samples", "expected 1 or 4");
  data.ignore({"buckets"});
  const auto buckets = data.json().find("buckets");
  require(buckets != data.json().end() && buckets->is_array() && !buckets->empty(),
          ErrorCode::bad_data, data.where(), "key 'buckets': expected a list of clip sizes");
  double weight = 0;
  for (size_t i = 0; i < buckets->size(); ++i) {
    out.buckets.push_back(read_bucket((*buckets)[i], str(data.where(), ": buckets[", i, "]")));
    weight += out.buckets.back().weight;
  }
  if (!(weight > 0)) data.refuse("buckets", "expected a weight above 0");
  finish(data);
}

}  // namespace

TrainConfig TrainConfig::read(const fs::path& path) {
  return parse(Config::read(path).json(), path.string());
}

TrainConfig TrainConfig::parse(const Json& json, const std::string& where) {
  require(json.is_object(), ErrorCode::bad_data, where, "expected an object");
  Config config(json, where);
  TrainConfig out;
  out.where = where;
  out.settings = json.dump();
  const std::string stage = config.text("stage", "");
  if (stage != "autoencoder" && stage != "transformer") {
    config.refuse("stage", "expected autoencoder or transformer");
  }
  out.stage = stage == "autoencoder" ? TrainStage::autoencoder : TrainStage::transformer;
  out.steps = config.integer("steps", out.steps, 1, 1 << 30);
  out.seed = static_cast<uint64_t>(config.integer("seed", 0, 0, int64_t{1} << 53));
  out.micro_batches = config.integer("micro_batches", out.micro_batches, 1, 65'536);
  out.log_every = config.integer("log_every", out.log_every, 1, 1 << 30);
  out.checkpoint_every = config.integer("checkpoint_every", out.checkpoint_every, 1, 1 << 30);
  out.text_length = config.integer("text_length", out.text_length, 1, 4096);
  out.caption_dropout = share(config, "caption_dropout", out.caption_dropout, 1);
  read_data(child(config, "data"), out);
  Config loss = child(config, "loss");
  out.loss.l1 = share(loss, "l1", out.loss.l1, 1e6);
  out.loss.mse = share(loss, "mse", out.loss.mse, 1e6);
  out.loss.gradient = share(loss, "gradient", out.loss.gradient, 1e6);
  out.loss.kl = share(loss, "kl", out.loss.kl, 1e6);
  finish(loss);
  Config optimizer = child(config, "optimizer");
  out.optimizer = OptimizerOptions::read(optimizer);
  finish(optimizer);
  Config evaluation = child(config, "evaluation");
  out.evaluation_clips = evaluation.integer("clips", out.evaluation_clips, 0, 65'536);
  finish(evaluation);
  out.model = child(config, "model").json();
  for (const auto& [key, value] : out.model.items()) {
    require(value.is_object() && (key == "vae" || key == "transformer" || key == "text_encoder" ||
                                  key == "scheduler"),
            ErrorCode::bad_data, where + ": model", "key '", key,
            "': expected an object called vae, transformer, text_encoder or scheduler");
  }
  finish(config);
  return out;
}

const char* TrainConfig::stage_name() const {
  return stage == TrainStage::autoencoder ? "autoencoder" : "transformer";
}

Config TrainConfig::model_config(const std::string& name) const {
  const auto found = model.find(name);
  return Config(found == model.end() ? Json::object() : *found, where + ": model." + name);
}

}  // namespace fovea::pipelines
