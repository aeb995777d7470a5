#include "models/lpips/lpips.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/json.h"
#include "tests/support/files.h"
#include "tests/support/golden.h"

namespace fovea::models {
namespace {

using test::expect_error;

const std::vector<std::string> kNetworks = {"alex", "vgg"};

fs::path golden_file(const std::string& network) {
  return test::golden("lpips") / (network + ".safetensors");
}

Lpips load(const fs::path& file) {
  Report strict(/*strict=*/true);
  return load_lpips(file, at::kCPU, strict);
}

// The two pictures of a case, one after the other.
std::string pictures_of(const Json& item) {
  return read_file(test::golden("lpips") / item["file"].get<std::string>(), 1 << 20);
}

double distance_of(const Lpips& lpips, const Json& item, const std::string& both) {
  const auto* data = reinterpret_cast<const uint8_t*>(both.data());
  const size_t half = both.size() / 2;
  return lpips_distance(lpips, {data, half}, {data + half, half}, item["width"], item["height"]);
}

Json cases_of(const std::string& network) {
  Json out = Json::array();
  for (const Json& item : read_json(test::golden("lpips") / "cases.json")) {
    if (item["network"] == network) out.push_back(item);
  }
  return out;
}

TEST(Lpips, EqualsTheFormulas) {
  for (const std::string& network : kNetworks) {
    const Lpips lpips = load(golden_file(network));
    EXPECT_EQ(lpips.network(), network == "alex" ? "alexnet" : "vgg16");
    const Json cases = cases_of(network);
    ASSERT_GE(cases.size(), 6u);
    double worst = 0;
    for (const Json& item : cases) {
      const double expected = item["lpips"], got = distance_of(lpips, item, pictures_of(item));
      worst = std::max(worst, std::abs(got / expected - 1));
      EXPECT_LE(std::abs(got / expected - 1), 1e-5) << item["file"];
    }
    std::printf("%s: %.1e\n", network.c_str(), worst);
  }
}

TEST(Lpips, IsZeroForEqualPicturesAndTheSameBothWays) {
  const Lpips lpips = load(golden_file("alex"));
  const Json item = cases_of("alex")[0];
  const std::string both = pictures_of(item);
  const std::string first = both.substr(0, both.size() / 2), second = both.substr(first.size());
  EXPECT_EQ(distance_of(lpips, item, first + first), 0);
  EXPECT_EQ(lpips.distance(at::ones({2, 3, 40, 40}), at::ones({2, 3, 40, 40})).max().item<float>(),
            0);
  EXPECT_NEAR(distance_of(lpips, item, second + first), distance_of(lpips, item, both), 1e-7);
}

TEST(Lpips, TakesEachPairOfABatchForItself) {
  at::manual_seed(2);
  const Lpips lpips = load(golden_file("alex"));
  const at::Tensor a = at::rand({3, 3, 48, 40}).mul(2).sub(1), b = at::rand_like(a).mul(2).sub(1);
  const at::Tensor whole = lpips.distance(a, b);
  ASSERT_EQ(whole.sizes(), at::IntArrayRef({3}));
  for (int64_t i = 0; i < 3; ++i) {
    const at::Tensor alone = lpips.distance(a.narrow(0, i, 1), b.narrow(0, i, 1));
    EXPECT_NEAR(alone.item<float>(), whole[i].item<float>(), 1e-6);
  }
}

// A file of the network with its tensors changed.
template <typename Change>
fs::path changed(const fs::path& folder, const std::string& network, Change change) {
  TensorMap tensors = load_tensors(golden_file(network));
  change(tensors);
  const fs::path path = folder / "changed.safetensors";
  save_tensors(path, tensors, /*overwrite=*/true);
  return path;
}

TEST(Lpips, TakesAllThatThePackageHolds) {
  const test::TemporaryFolder folder;
  const auto constants = [](double factor) {
    return [factor](TensorMap& tensors) {
      for (int i = 0; i < 5; ++i) {
        tensors[str("lins.", i, ".model.1.weight")] = tensors[str("lin", i, ".model.1.weight")];
      }
      tensors["scaling_layer.shift"] = at::tensor({-0.030f, -0.088f, -0.188f}).view({1, 3, 1, 1});
      tensors["scaling_layer.scale"] =
          at::tensor({0.458f, 0.448f, 0.450f}).view({1, 3, 1, 1}).mul(factor);
    };
  };
  const Json item = cases_of("alex")[0];
  const std::string both = pictures_of(item);
  const double plain = distance_of(load(golden_file("alex")), item, both);
  EXPECT_EQ(distance_of(load(changed(folder.path, "alex", constants(1))), item, both), plain);
  // The file's constants count, whatever they are.
  EXPECT_NE(distance_of(load(changed(folder.path, "alex", constants(2))), item, both), plain);
}

TEST(Lpips, RefusesOtherFilesByName) {
  const test::TemporaryFolder folder;
  const auto refused = [&](const std::string& network, const std::string& text, auto change,
                           ErrorCode code = ErrorCode::bad_data) {
    const fs::path file = changed(folder.path, network, change);
    expect_error(code, file.string() + ": ", [&] { load(file); });
    expect_error(code, text, [&] { load(file); });
  };
  refused("alex", "1 missing tensor: 'lin3.model.1.weight'",
          [](TensorMap& tensors) { tensors.erase("lin3.model.1.weight"); });
  refused("alex", "2 missing tensors: 'net.slice2.3.weight', 'net.slice2.3.bias'",
          [](TensorMap& tensors) {
            tensors.erase("net.slice2.3.weight");
            tensors.erase("net.slice2.3.bias");
          });
  refused("vgg", "tensor 'net.slice3.10.weight': expected shape [256, 128, 3, 3]",
          [](TensorMap& tensors) {
            tensors["net.slice3.10.weight"] = at::zeros({256, 64, 3, 3});
          });
  refused("alex", "tensor 'lin0.model.1.weight': expected shape [1, 64, 1, 1], got [64]",
          [](TensorMap& tensors) { tensors["lin0.model.1.weight"] = at::zeros({64}); });
  refused("alex", "holds no network", [](TensorMap& tensors) {  // as SqueezeNet's
    for (const char* name : {"slice2.3", "slice3.6", "slice4.8", "slice5.10"}) {
      tensors.erase(str("net.", name, ".weight"));
    }
  });
  refused("alex", "holds no network", [](TensorMap& tensors) {
    tensors = {{"latents", at::zeros({1})}};
  });
  refused("alex", "unused tensor: 'head'",
          [](TensorMap& tensors) { tensors["head"] = at::zeros({1}); });
  refused(
      "alex", "'net.slice1.0.bias' holds NaN",
      [](TensorMap& tensors) { tensors["net.slice1.0.bias"][5] = std::nan(""); },
      ErrorCode::non_finite);
  const fs::path text = folder.path / "text.safetensors";
  test::write_bytes(text, "no tensors at all, only words");
  expect_error(ErrorCode::bad_data, text.string(), [&] { load(text); });
  expect_error(ErrorCode::bad_data, "no such file", [&] { load(folder.path / "none"); });
}

TEST(Lpips, RefusesPicturesThatDoNotFit) {
  const Lpips alex = load(golden_file("alex")), vgg = load(golden_file("vgg"));
  const auto between = [](const Lpips& lpips, at::IntArrayRef a, at::IntArrayRef b) {
    return lpips.distance(at::zeros(a), at::zeros(b));
  };
  expect_error(ErrorCode::usage, "alexnet needs pictures of 31x31 or more, got 64x30", [&] {
    between(alex, {1, 3, 30, 64}, {1, 3, 30, 64});
  });
  expect_error(ErrorCode::usage, "vgg16 needs pictures of 16x16 or more, got 15x64", [&] {
    between(vgg, {1, 3, 64, 15}, {1, 3, 64, 15});
  });
  expect_error(ErrorCode::usage, "one size", [&] {
    between(alex, {1, 3, 40, 40}, {1, 3, 40, 48});
  });
  expect_error(ErrorCode::usage, "RGB", [&] { between(alex, {1, 1, 40, 40}, {1, 1, 40, 40}); });
  const std::vector<uint8_t> large(48 * 48 * 3), small(48 * 40 * 3);
  expect_error(ErrorCode::usage, "expected 6912 samples, got 6912 and 5760",
               [&] { lpips_distance(alex, large, small, 48, 48); });
}

TEST(Lpips, SaysWhenTheNetworkOverflows) {
  const test::TemporaryFolder folder;
  const fs::path file = changed(folder.path, "alex", [](TensorMap& tensors) {
    at::Tensor& weight = tensors["net.slice1.0.weight"];
    weight = weight.to(at::kFloat).mul(1e38);
  });
  const Json item = cases_of("alex")[0];
  expect_error(ErrorCode::non_finite, "LPIPS",
               [&] { distance_of(load(file), item, pictures_of(item)); });
}

}  // namespace
}  // namespace fovea::models
