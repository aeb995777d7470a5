// Times one forward of the Wan2.1 transformer and the decoding of a video by its autoencoder, with
// random weights of the published configurations, and prints one JSON line each.
//
//   wan_bench transformer 1.3b|14b FRAMES HEIGHT WIDTH REPEATS [DEVICE] [DTYPE]
//   wan_bench vae         -        FRAMES HEIGHT WIDTH REPEATS [DEVICE] [DTYPE]
//
// tests/bench/wan_bench.py is the same with Python diffusers; both print median milliseconds.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "core/device.h"
#include "core/guard.h"
#include "models/dit/wan/wan.h"
#include "models/vae/wan/autoencoder_wan.h"

namespace {

using namespace fovea;

struct Arguments {
  std::string part, model;
  int64_t frames, height, width, repeats;
  at::Device device = at::kCUDA;
  at::ScalarType dtype = at::kBFloat16;
};

double median_ms(const Arguments& arguments, const std::function<void()>& body) {
  body();
  std::vector<double> times;
  for (int64_t i = 0; i < arguments.repeats; ++i) {
    synchronize(arguments.device);
    const auto start = std::chrono::steady_clock::now();
    body();
    synchronize(arguments.device);
    times.push_back(
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
            .count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void print(const Arguments& arguments, double ms) {
  std::printf(
      "{\"program\": \"fovea\", \"part\": \"%s %s\", \"frames\": %ld, \"height\": %ld, \"width\": "
      "%ld, "
      "\"dtype\": \"%s\", \"median_ms\": %.2f, \"peak_gb\": %.2f, \"device\": \"%s\"}\n",
      arguments.part.c_str(), arguments.model.c_str(), arguments.frames, arguments.height,
      arguments.width, dtype_name(arguments.dtype).c_str(), ms,
      static_cast<double>(peak_device_bytes(arguments.device)) / 1e9,
      device_name(arguments.device).c_str());
}

// Drawn on the device: 14 billion of them take a CPU minutes.
RandomParameters random_parameters(const Arguments& arguments) {
  return {at::globalContext().defaultGenerator(arguments.device),
          {.dtype = arguments.dtype, .device = arguments.device}};
}

void bench_transformer(const Arguments& arguments) {
  models::WanConfig config;
  if (arguments.model == "1.3b") {
    config.num_attention_heads = 12;
    config.ffn_dim = 8960;
    config.num_layers = 30;
  }
  RandomParameters source = random_parameters(arguments);
  models::WanTransformer model(config, source);
  const auto options = at::TensorOptions().device(arguments.device).dtype(arguments.dtype);
  const models::WanInputs inputs{
      at::randn({1, 16, (arguments.frames - 1) / 4 + 1, arguments.height / 8, arguments.width / 8},
                options),
      at::full({1}, 900, options.dtype(at::kLong)),
      at::randn({1, 512, 4096}, options),
      {}};
  Attention attention;
  print(arguments, median_ms(arguments, [&] { model.forward(inputs, {}, attention); }));
}

void bench_vae(const Arguments& arguments) {
  Config defaults(Json::object(), "defaults");
  const auto config = models::WanVaeConfig::read(defaults);
  RandomParameters source = random_parameters(arguments);
  const models::AutoencoderWan vae(config, source, {.channels_last = arguments.device.is_cuda()});
  const auto options = at::TensorOptions().device(arguments.device).dtype(arguments.dtype);
  const at::Tensor z = at::randn(
      {1, 16, (arguments.frames - 1) / 4 + 1, arguments.height / 8, arguments.width / 8}, options);
  Attention attention;
  print(arguments, median_ms(arguments, [&] {
          models::WanVaeDecoder decoder(vae, attention);
          for (int64_t i = 0; i < z.size(2); ++i) decoder.push(z.slice(2, i, i + 1));
        }));
}

int run(int argc, char** argv) {
  if (argc < 7) throw Error(ErrorCode::usage, "wan_bench", "see the head of wan_bench.cpp");
  Arguments arguments{
      argv[1],           argv[2], std::stol(argv[3]), std::stol(argv[4]), std::stol(argv[5]),
      std::stol(argv[6])};
  arguments.device = parse_device(argc > 7 ? argv[7] : "cuda:0");
  arguments.dtype = parse_dtype(argc > 8 ? argv[8] : "bf16");
  const c10::InferenceMode inference;
  arguments.part == "vae" ? bench_vae(arguments) : bench_transformer(arguments);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return guarded("wan_bench", [&] { return run(argc, argv); });
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return error.exit_code();
  }
}
