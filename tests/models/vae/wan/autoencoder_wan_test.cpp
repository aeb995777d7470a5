#include "models/vae/wan/autoencoder_wan.h"

#include <cstdlib>
#include <functional>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "core/device.h"
#include "core/json.h"

namespace fovea::models {
namespace {

// The convolutions are too small to share, and tests run beside each other.
class OneThread : public ::testing::Environment {
 public:
  void SetUp() override { set_num_threads(1); }
};
const auto* const kOneThread = ::testing::AddGlobalTestEnvironment(new OneThread);

const char* const kCases[] = {"plain", "wide", "odd", "flat", "still", "long"};

fs::path golden_dir() { return fs::path(std::getenv("FOVEA_GOLDEN_DIR")) / "vae"; }

WanVaeConfig read_config(const std::string& name) {
  Config config = Config::read(golden_dir() / name / "config.json");
  WanVaeConfig result = WanVaeConfig::read(config);
  Report report(/*strict=*/true);
  config.finish(report);
  return result;
}

// One case of tests/golden/make_vae.py.
struct Case {
  explicit Case(const std::string& name, at::ScalarType dtype = at::kFloat,
                AutoencoderWanOptions options = {})
      : golden(load_tensors(golden_dir() / name / "golden.safetensors")),
        files(golden_dir() / name, "diffusion_pytorch_model", {.dtype = dtype}),
        vae(read_config(name), files, options) {
    Report report(/*strict=*/true);
    files.finish(report);  // every name asked for is there, and none is left
  }
  const at::Tensor& operator[](const std::string& name) const { return golden.at(name); }

  TensorMap golden;
  WeightFiles files;
  AutoencoderWan vae;
  Attention attention;
};

double relative_error(const at::Tensor& ours, const at::Tensor& python) {
  EXPECT_EQ(ours.sizes(), python.sizes());
  EXPECT_EQ(ours.scalar_type(), python.scalar_type());
  const at::Tensor reference = python.to(at::kDouble);
  return ((ours.to(at::kDouble) - reference).norm() / reference.norm()).item<double>();
}

// The largest relative error of a test, shown with --gtest_output and by ctest -V.
class Worst {
 public:
  ~Worst() { ::testing::Test::RecordProperty("worst", str(value_)); }
  void expect_near(const at::Tensor& ours, const at::Tensor& python, double limit = 1e-5) {
    const double error = relative_error(ours, python);
    value_ = std::max(value_, error);
    EXPECT_LE(error, limit);
  }

 private:
  double value_ = 0;
};

at::Tensor stream(const AutoencoderWan& vae, const at::Tensor& latents, Attention& attention,
                  const std::optional<VaeTiling>& tiling = {}) {
  WanVaeDecoder decoder(vae, attention, tiling);
  std::vector<at::Tensor> frames;
  for (const at::Tensor& latent : latents.split(1, 2)) frames.push_back(decoder.push(latent));
  return at::cat(frames, 2);
}

VaeTiling tiling_of(const at::Tensor& sizes) {
  const int64_t* size = sizes.const_data_ptr<int64_t>();
  return {size[0], size[1], size[2], size[3]};
}

TEST(AutoencoderWan, EncodesLikePython) {
  const c10::InferenceMode guard;
  Worst worst;
  for (const std::string name : kCases) {
    SCOPED_TRACE(name);
    Case test(name);
    for (const std::string frames : {"frames1", "frames5", "frames17"}) {
      const LatentDistribution latents = test.vae.encode(test[frames + ".video"], test.attention);
      worst.expect_near(latents.mean, test[frames + ".mean"]);
      worst.expect_near(latents.logvar, test[frames + ".logvar"]);
      EXPECT_TRUE(latents.mode().is_same(latents.mean));
    }
  }
}

TEST(AutoencoderWan, DecodesLikePython) {
  const c10::InferenceMode guard;
  Worst worst;
  for (const std::string name : kCases) {
    SCOPED_TRACE(name);
    Case test(name);
    for (const std::string input : {"frames1", "frames5", "frames17", "zero"}) {
      const at::Tensor video = test.vae.decode(test[input + ".latents"], test.attention);
      worst.expect_near(video, test[input + ".decoded"]);
      EXPECT_LE(video.abs().max().item<double>(), 1.0);
    }
  }
}

TEST(AutoencoderWan, StreamsTheSameBits) {
  const c10::InferenceMode guard;
  for (const std::string name : kCases) {
    SCOPED_TRACE(name);
    Case test(name);
    const at::Tensor& latents = test["frames17.latents"];
    const at::Tensor whole = test.vae.decode(latents, test.attention);
    EXPECT_TRUE(at::equal(stream(test.vae, latents, test.attention), whole));

    WanVaeDecoder decoder(test.vae, test.attention);
    const at::Tensor first = decoder.push(latents.narrow(2, 0, 1));
    EXPECT_EQ(first.size(2), 1);
    EXPECT_TRUE(at::equal(first, whole.narrow(2, 0, 1)));
  }
}

TEST(AutoencoderWan, BatchRowsAreIndependent) {
  const c10::InferenceMode guard;
  Worst worst;
  for (const std::string name : kCases) {
    SCOPED_TRACE(name);
    Case test(name);
    const at::Tensor& video = test["frames5.video"];
    const at::Tensor& latents = test["frames5.latents"];
    for (int64_t row = 0; row < 2; ++row) {
      worst.expect_near(test.vae.encode(video.narrow(0, row, 1), test.attention).mean,
                        test["frames5.mean"].narrow(0, row, 1));
      worst.expect_near(test.vae.decode(latents.narrow(0, row, 1), test.attention),
                        test["frames5.decoded"].narrow(0, row, 1));
    }
  }
}

TEST(AutoencoderWan, ChannelsLastWeightsGiveTheSame) {
  const c10::InferenceMode guard;
  Worst worst;
  for (const std::string name : kCases) {
    SCOPED_TRACE(name);
    Case test(name, at::kFloat, {.channels_last = true});
    for (const std::string input : {"frames5", "frames17"}) {
      worst.expect_near(test.vae.encode(test[input + ".video"], test.attention).mean,
                        test[input + ".mean"]);
      worst.expect_near(test.vae.decode(test[input + ".latents"], test.attention),
                        test[input + ".decoded"]);
    }
  }
}

// In bfloat16 two orders of rounding differ by as much as each differs from the truth, so ours is
// held to Python's own distance from the fp64 result on the same rounded weights and input.
TEST(AutoencoderWan, IsAsGoodAsPythonInBfloat16) {
  const c10::InferenceMode guard;
  double worst_ratio = 0;
  for (const std::string name : kCases) {
    SCOPED_TRACE(name);
    Case test(name, at::kBFloat16);
    const auto compare = [&](const at::Tensor& ours, const std::string& output) {
      EXPECT_EQ(ours.scalar_type(), at::kBFloat16);
      const at::Tensor& exact = test["exact." + output];
      const double python = relative_error(test["bf16." + output].to(at::kDouble), exact);
      const double ratio = relative_error(ours.to(at::kDouble), exact) / python;
      worst_ratio = std::max(worst_ratio, ratio);
      EXPECT_LE(ratio, 2.0) << output << ", Python's error is " << python;
    };
    const LatentDistribution latents = test.vae.encode(test["bf16.video"], test.attention);
    compare(latents.mean, "mean");
    compare(latents.logvar, "logvar");
    compare(test.vae.decode(test["bf16.latents"], test.attention), "decoded");
  }
  RecordProperty("worst_ratio", str(worst_ratio));
}

TEST(AutoencoderWan, SamplesPythonsNoise) {
  const c10::InferenceMode guard;
  for (const std::string name : kCases) {
    const Case test(name);
    // From Python's own distribution, so that only the draw and the formula are compared.
    const LatentDistribution latents{test["frames17.mean"], test["frames17.logvar"]};
    EXPECT_TRUE(at::equal(latents.sample(at::make_generator<at::CPUGeneratorImpl>(7)),
                          test["sample.seed7"]))
        << name;
  }
}

// Weights that record gradients.
class TrainedParameters : public ParameterSource {
 public:
  explicit TrainedParameters(ParameterSource& source) : source_(source) {}
  at::Tensor get(const std::string& name, at::IntArrayRef shape, bool keep_fp32) override {
    return tensors[name] = source_.get(name, shape, keep_fp32).requires_grad_();
  }
  bool has(const std::string& name) const override { return source_.has(name); }

  TensorMap tensors;

 private:
  ParameterSource& source_;
};

TEST(AutoencoderWan, GradientsMatchPython) {
  Worst worst;
  for (const std::string name : kCases) {
    SCOPED_TRACE(name);
    const TensorMap golden = load_tensors(golden_dir() / name / "golden.safetensors");
    WeightFiles files(golden_dir() / name, "diffusion_pytorch_model", {.dtype = at::kDouble});
    TrainedParameters parameters(files);
    const AutoencoderWan vae(read_config(name), parameters);
    Attention attention;
    const at::Tensor video = golden.at("gradient.video").clone().requires_grad_();
    vae.decode(vae.encode(video, attention).mean, attention).square().mean().backward();
    worst.expect_near(video.grad(), golden.at("gradient.of_video"));
    int64_t compared = 0;
    for (const auto& [parameter, tensor] : parameters.tensors) {
      const auto found = golden.find("gradient." + parameter);
      if (found == golden.end()) continue;
      worst.expect_near(tensor.grad(), found->second);
      ++compared;
    }
    EXPECT_EQ(compared, 3);
  }
}

TEST(AutoencoderWan, TilesLikePythonInEitherOrder) {
  const c10::InferenceMode guard;
  Worst worst;
  for (const std::string name : kCases) {
    Case test(name);
    for (const char* tiles : {"overlap", "quarter", "wide", "uneven"}) {
      SCOPED_TRACE(name + " " + tiles);
      const std::string kind = str("tiled_", tiles);
      const VaeTiling tiling = tiling_of(test[kind + ".tiling"]);
      const LatentDistribution latents =
          test.vae.encode(test[kind + ".video"], test.attention, tiling);
      worst.expect_near(latents.mean, test[kind + ".mean"]);
      worst.expect_near(latents.logvar, test[kind + ".logvar"]);
      const at::Tensor& input = test[kind + ".latents"];
      const at::Tensor video = test.vae.decode(input, test.attention, tiling);
      worst.expect_near(video, test[kind + ".decoded"]);
      EXPECT_TRUE(at::equal(stream(test.vae, input, test.attention, tiling), video));
      // Tiling does something: the untiled result is another one.
      EXPECT_FALSE(at::equal(test.vae.decode(input, test.attention), video));
    }
  }
}

TEST(AutoencoderWan, NormalizesBitForBit) {
  const c10::InferenceMode guard;
  for (const char* name : {"plain", "wide"}) {
    const Case test(name);
    const at::Tensor& latents = test["statistics.latents"];
    EXPECT_TRUE(at::equal(test.vae.normalize(latents), test["statistics.normalized"])) << name;
    EXPECT_TRUE(at::equal(test.vae.denormalize(latents), test["statistics.denormalized"])) << name;
  }
}

// Answers every parameter with zeros and keeps the shapes asked for.
class RecordingParameters : public ParameterSource {
 public:
  at::Tensor get(const std::string& name, at::IntArrayRef shape, bool) override {
    EXPECT_FALSE(shapes.contains(name)) << name << " was asked for twice";
    shapes[name] = shape.vec();
    return at::zeros({1}).expand(shape);
  }
  bool has(const std::string&) const override { return true; }

  Json shapes = Json::object();
};

TEST(AutoencoderWan, AsksForTheParametersOfWan21) {
  Config config(Json::object(), "config.json");
  RecordingParameters parameters;
  const AutoencoderWan vae(WanVaeConfig::read(config), parameters);
  const Json expected = read_json(golden_dir() / "shapes.json");
  EXPECT_EQ(parameters.shapes.size(), 194u);
  EXPECT_EQ(parameters.shapes.size(), expected.size());
  for (const auto& [name, shape] : expected.items()) {
    ASSERT_TRUE(parameters.shapes.contains(name)) << name;
    EXPECT_EQ(parameters.shapes[name], shape) << name;
  }
}

// The error's text, or "" where nothing is thrown.
template <typename Call>
std::string refusal(ErrorCode code, const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "";
}

void expect_refusal(ErrorCode code, const std::string& part, const std::function<void()>& call) {
  const std::string text = refusal(code, call);
  EXPECT_NE(text.find(part), std::string::npos) << "expected " << part << " in: " << text;
}

TEST(AutoencoderWan, RefusesWhatItCannotUse) {
  const c10::InferenceMode guard;
  Case test("wide");  // ratio 4, 4 latent channels
  Attention& attention = test.attention;
  const auto encode = [&](at::IntArrayRef shape) {
    return [&test, shape = shape.vec()] { test.vae.encode(at::zeros(shape), test.attention); };
  };
  expect_refusal(ErrorCode::bad_data, "4 k + 1 frames", encode({1, 3, 4, 8, 8}));
  expect_refusal(ErrorCode::bad_data, "got [1, 4, 5, 8, 8]", encode({1, 4, 5, 8, 8}));
  expect_refusal(ErrorCode::bad_data, "at least 4 pixels", encode({1, 3, 5, 3, 8}));
  expect_refusal(ErrorCode::bad_data, "video", encode({3, 5, 8, 8}));
  const at::Tensor latents = at::zeros({1, 4, 2, 8, 8});
  expect_refusal(ErrorCode::bad_data, "got [1, 4, 0, 8, 8]",
                 [&] { test.vae.decode(latents.narrow(2, 0, 0), attention); });
  expect_refusal(ErrorCode::usage, "multiples of 4, got 18", [&] {
    test.vae.decode(latents, attention, VaeTiling{18, 16, 8, 8});
  });
  expect_refusal(ErrorCode::usage, "strides up to the tile size", [&] {
    test.vae.encode(at::zeros({1, 3, 1, 32, 32}), attention, VaeTiling{16, 16, 20, 8});
  });
  expect_refusal(ErrorCode::usage, "got 0", [&] {
    WanVaeDecoder(test.vae, attention, VaeTiling{16, 16, 0, 8}).push(latents.narrow(2, 0, 1));
  });
  WanVaeDecoder decoder(test.vae, attention);
  expect_refusal(ErrorCode::bad_data, "one frame at a time", [&] { decoder.push(latents); });
  decoder.push(latents.narrow(2, 0, 1));
  expect_refusal(ErrorCode::bad_data, "got [1, 4, 1, 7, 8]",
                 [&] { decoder.push(latents.narrow(2, 0, 1).narrow(3, 0, 7)); });
}

TEST(AutoencoderWan, NamesTheConfigKeyThatDoesNotFit) {
  const c10::InferenceMode guard;
  Case odd("odd");  // 3 latent channels and the default 16 statistics
  const at::Tensor latents = at::zeros({1, 3, 1, 2, 2});
  expect_refusal(ErrorCode::bad_data, "'latents_mean'", [&] { odd.vae.normalize(latents); });
  expect_refusal(ErrorCode::bad_data, "'latents_mean'", [&] { odd.vae.denormalize(latents); });

  WanVaeConfig config = read_config("plain");
  config.scale_factor_spatial = 16;
  WeightFiles files(golden_dir() / "plain", "diffusion_pytorch_model", {});
  const AutoencoderWan vae(config, files);
  expect_refusal(ErrorCode::usage, "'scale_factor_spatial'", [&] {
    vae.decode(at::zeros({1, 16, 1, 4, 4}), odd.attention, VaeTiling{16, 16, 8, 8});
  });
}

TEST(AutoencoderWan, APixelRestBelowOneLatentMakesNoTile) {
  const c10::InferenceMode guard;
  Case test("wide");
  const at::Tensor video = at::rand({1, 3, 1, 8, 34}) * 2 - 1;
  const LatentDistribution latents =
      test.vae.encode(video, test.attention, VaeTiling{16, 16, 16, 16});
  EXPECT_EQ(latents.mean.sizes(), (at::IntArrayRef{1, 4, 1, 2, 8}));
}

}  // namespace
}  // namespace fovea::models
